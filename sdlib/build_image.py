# SPDX-License-Identifier: Apache-2.0
"""Build the image of the in-process library: `sdlib/_image/sdlib.{elf,img,json}`.

    python -m sdlib.build_image [--output DIR] [--cflag=FLAG]

The library is mapped into programs at one fixed address by a supervisor that knows nothing of ELF, so what is
shipped is flat: `sdlib.img` holds the segments one after the other, each starting on a page, and `sdlib.json` says
where each belongs and where the few symbols are that the supervisor must know.  `sdlib.elf` is kept for gdb
(`add-symbol-file sdlib.elf`).

The image is refused here, at build time, when it would misbehave only inside somebody's program: an undefined symbol,
a relocation left to do at run time, a system call instruction outside of the gate (it would trap into ourselves), or
a segment that is writable and executable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE = Path(__file__).resolve().parent
SRC = HERE / "src"
INCLUDE = HERE / "include"
LINKER_SCRIPT = HERE / "sdlib.ld"
HOT = HERE / "hot.txt"
OUTPUT = HERE / "_image"
PAGE = 4096

# Sources that exist only for the hosted build (build_ffi.py).
NOT_IN_IMAGE = ("py", "verbs")

# Every flag and why. The library runs in the middle of other people's system calls, on any thread, on small stacks.
CFLAGS = (
    "-std=gnu11",  # C11 atomics, plus inline assembly
    "-O2", "-g",  # -g costs nothing at run time: debug sections stay in sdlib.elf
    "-Wall", "-Wextra", "-Werror", "-Wmissing-prototypes", "-Wstrict-prototypes", "-Wvla",
    "-ffreestanding",  # there is no C library
    "-fno-tree-loop-distribute-patterns",  # a loop that copies must not become a call to memcpy
    "-fno-stack-protector",  # the canary lives in the program's TLS
    "-mgeneral-regs-only",  # vector registers belong to the program and are not saved on entry (but: base/vector.h)
    "-fpie",  # addresses relative to rip: 0x7e9000000000 is out of reach of absolute 32-bit ones
    "-fno-plt", "-fvisibility=hidden",  # no indirection through tables that a loader would fill
    "-fcf-protection=none",  # no endbr64 at entries that only we jump to
    "-fno-asynchronous-unwind-tables",  # nobody unwinds through us at run time; gdb has .debug_frame
    "-fno-strict-aliasing",  # the kernel's buffers and ring memory are looked at as several types
    "-fno-common",
    "-ffunction-sections",  # hot.txt puts what a warm call executes on few pages
)
LDFLAGS = (
    "-nostdlib", "-static", "-no-pie",
    "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096",
    "-Wl,--no-warn-rwx-segments",  # checked below, with a better message
    "-Wl,--fatal-warnings",
)
SYMBOLS = ("sd_gate_start", "sd_gate_end", "sd_init", "sd_boot", "sd_boot_stack_top",
           "sd_adopt", "sd_unhook", "sd_slot_ret", "sd_undo", "sd_nundo", "sd_stubs", "sd_sys_ret", "sd_restorer",
           "sd_nobody", "sd_give", "sd_give_what")


class ImageError(Exception):
    """The image would not work; the text says what is wrong with it."""


@dataclass(frozen=True)
class Paths:
    """Where the build of one flavour keeps its files."""

    output: Path

    @property
    def objects(self) -> Path:
        """Object and dependency files, kept so that only what changed is compiled again."""
        return self.output / "obj"

    @property
    def elf(self) -> Path:
        return self.output / "sdlib.elf"


def _run(*command: str | Path) -> str:
    """Run a tool and return its stdout; ImageError without a traceback when it fails (it has said why on stderr)."""
    result = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise ImageError(f"{command[0]} failed for {command[-1]}")
    return result.stdout


def sources() -> list[Path]:
    """Everything that goes into the image, in a fixed order so that equal sources give an equal image."""
    return sorted(path for suffix in ("*.c", "*.S") for path in SRC.rglob(suffix)
                  if path.relative_to(SRC).parts[0] not in NOT_IN_IMAGE)


def _is_fresh(target: Path, depfile: Path) -> bool:
    """True if `target` is newer than each file that gcc -MMD recorded for it."""
    if not target.exists() or not depfile.exists():
        return False
    words = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    built = target.stat().st_mtime_ns
    return all(os.path.exists(word) and os.stat(word).st_mtime_ns < built for word in words)


def _compile(source: Path, paths: Paths, flags: tuple[str, ...]) -> tuple[Path, bool]:
    """Compile one file unless its object is fresh; returns the object and whether work was done."""
    stem = "_".join(source.relative_to(SRC).parts)
    target, depfile = paths.objects / f"{stem}.o", paths.objects / f"{stem}.d"
    if _is_fresh(target, depfile):
        return target, False
    _run("gcc", *flags, "-MMD", "-MF", depfile, f"-I{INCLUDE}", f"-I{SRC}", "-c", "-o", target, source)
    return target, True


def _flags_changed(paths: Paths, flags: tuple[str, ...]) -> bool:
    """True, and remembered, if flags or compiler are not those of the objects that are there."""
    wanted = hashlib.sha256(" ".join((*flags, *LDFLAGS, _run("gcc", "--version"))).encode()).hexdigest()
    stamp = paths.objects / "flags"
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    for stale in paths.objects.glob("*.o"):
        stale.unlink()
    stamp.write_text(wanted)
    return True


def compile_all(paths: Paths, flags: tuple[str, ...]) -> tuple[list[Path], bool]:
    """Compile what changed; returns all objects and whether the image must be linked again."""
    paths.objects.mkdir(parents=True, exist_ok=True)
    changed = _flags_changed(paths, flags)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = list(pool.map(lambda source: _compile(source, paths, flags), sources()))
    if not results:
        raise ImageError(f"no sources under {SRC}")
    return [target for target, _done in results], changed or any(done for _target, done in results)


def hot() -> list[str]:
    """The functions of hot.txt, in its order."""
    return [name for line in HOT.read_text().splitlines() if not line.startswith("#") for name in line.split()]


def link(paths: Paths, objects: list[Path]) -> None:
    """Link at the fixed address; an undefined symbol is the linker's error."""
    order = paths.objects / "hot.ld"  # .NAME.isra.0 and the like are clones of NAME
    order.write_text("".join(f"*(.text.{name} .text.{name}.*)\n" for name in hot()))
    _run("gcc", *LDFLAGS, f"-Wl,-T,{LINKER_SCRIPT}", f"-L{paths.objects}", "-o", paths.elf, *objects)


_TRAP: Final = ("<sd_signal_return>:", "<sd_trap>:")


def _check_instructions(elf: Path, gate: range) -> None:
    """Raise if an instruction that enters the kernel lies outside of the gate, but for those that are meant to trap."""
    function = ""
    for line in _run("objdump", "-d", "--no-show-raw-insn", elf).splitlines():
        address, _, instruction = line.strip().partition(":\t")
        mnemonic = instruction.split(" ", 1)[0]
        function = line if line.endswith(">:") else function
        if mnemonic in ("syscall", "sysenter") and int(address, 16) not in gate and not function.endswith(_TRAP):
            raise ImageError(f"{mnemonic} at {address}, outside of the gate")


def _segment_fields(header: Any, offset: int) -> dict[str, int]:
    """One PT_LOAD entry as the supervisor wants it: whole pages, prot in PROT_* bits."""
    flags = header.p_flags
    prot = (1 if flags & 4 else 0) | (2 if flags & 2 else 0) | (4 if flags & 1 else 0)
    if prot & 6 == 6:
        raise ImageError(f"segment at {header.p_vaddr:#x} is writable and executable")
    if header.p_vaddr % PAGE:
        raise ImageError(f"segment at {header.p_vaddr:#x} does not start on a page")
    pages = [-(-size // PAGE) * PAGE for size in (header.p_filesz, header.p_memsz)]
    return {"vaddr": header.p_vaddr, "offset": offset, "filesz": pages[0], "memsz": pages[1], "prot": prot}


def _describe(elf: Path) -> tuple[bytes, dict[str, Any]]:
    """Contents of sdlib.img and sdlib.json; ImageError if the ELF file breaks a rule of the injection."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    blob, segments = bytearray(), []
    with elf.open("rb") as stream:
        parsed = ELFFile(stream)
        left = [section.name for section in parsed.iter_sections()
                if section["sh_type"] in ("SHT_RELA", "SHT_REL", "SHT_DYNAMIC") and section["sh_size"]]
        if left:
            raise ImageError(f"relocations are left to do at run time: {', '.join(left)}")
        for segment in parsed.iter_segments("PT_LOAD"):
            if not segment.header.p_memsz:
                continue
            fields = _segment_fields(segment.header, len(blob))
            blob += segment.data().ljust(fields["filesz"], b"\0")
            segments.append(fields)
        table = parsed.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        by_name = {symbol.name: symbol for symbol in table.iter_symbols()}
        undefined = [name for name, symbol in by_name.items() if name and symbol["st_shndx"] == "SHN_UNDEF"]
        missing = [name for name in SYMBOLS if name not in by_name]
        if undefined or missing:
            raise ImageError(f"undefined symbols: {', '.join(undefined + missing)}")
        symbols = {name: int(by_name[name]["st_value"]) for name in SYMBOLS}
    return bytes(blob), {"segments": segments, "symbols": symbols}


def _check_places(description: dict[str, Any], window: int) -> None:
    """Raise if the supervisor would write where it cannot, or the image is not where the ABI says."""
    def prot_of(address: int) -> int:
        return next((int(segment["prot"]) for segment in description["segments"]
                     if segment["vaddr"] <= address < segment["vaddr"] + segment["memsz"]), 0)

    symbols = description["symbols"]
    if description["segments"][0]["vaddr"] != description["base"]:
        raise ImageError(f"linked at {description['segments'][0]['vaddr']:#x}, SD_LIB_BASE is {description['base']:#x}")
    end = max(segment["vaddr"] + segment["memsz"] for segment in description["segments"])
    if end > description["base"] + window:
        raise ImageError(f"ends at {end:#x}, outside of SD_LIB_WINDOW")
    wanted = {"sd_init": 5, "sd_gate_start": 5, "sd_boot": 3}
    for name, prot in wanted.items():
        if prot_of(symbols[name]) != prot:
            raise ImageError(f"{name} lies in a segment with prot {prot_of(symbols[name])}, not {prot}")
    if prot_of(symbols["sd_boot_stack_top"] - 8) != 3:
        raise ImageError("sd_boot_stack_top is not the end of writable memory")


def write_image(paths: Paths) -> None:
    """Check sdlib.elf and write sdlib.img and sdlib.json from it, each complete or not at all."""
    from sdlib import abi

    blob, description = _describe(paths.elf)
    description = {"base": abi.const.SD_LIB_BASE, "abi": abi.const.SD_ABI_VERSION, **description}
    _check_places(description, 1 << abi.const.SD_LIB_WINDOW)
    symbols = description["symbols"]
    _check_instructions(paths.elf, range(symbols["sd_gate_start"], symbols["sd_gate_end"]))
    for name, content in (("sdlib.img", blob), ("sdlib.json", json.dumps(description, indent=1).encode())):
        fresh = paths.output / f"{name}.new"
        fresh.write_bytes(content)
        fresh.replace(paths.output / name)


def build(output: Path = OUTPUT, extra_flags: tuple[str, ...] = ()) -> bool:
    """Bring the image in `output` up to date; returns whether anything had to be done."""
    paths = Paths(output)
    objects, changed = compile_all(paths, (*CFLAGS, *extra_flags))
    results = [output / "sdlib.img", output / "sdlib.json"]
    newest = max(path.stat().st_mtime_ns for path in (LINKER_SCRIPT, HOT, Path(__file__)))
    if not changed and all(path.exists() and path.stat().st_mtime_ns > newest for path in results):
        return False
    for path in results:  # a failure below must not leave an image that does not belong to the sources
        path.unlink(missing_ok=True)
    link(paths, objects)
    write_image(paths)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit 1 with one line when the image cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m sdlib.build_image", description="Build the library's image.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for sdlib.elf, sdlib.img and sdlib.json")
    parser.add_argument("--cflag", action="append", default=[], help="one more compiler flag, e.g. --cflag=-O0")
    options = parser.parse_args(arguments)
    try:
        done = build(options.output, tuple(options.cflag))
    except ImageError as error:
        print(f"build_image: {error}", file=sys.stderr)
        return 1
    if done:
        print(f"built {options.output / 'sdlib.img'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
