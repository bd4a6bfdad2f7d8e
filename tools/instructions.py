# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions of a call under sdrun, from the call site and back, function by function.

    python -m tools.instructions            compare with the stored baseline
    python -m tools.instructions --write    renew the baseline (`make baseline`)
    python -m tools.instructions --list     functions, too

Callgrind cannot run a program with the library in it: its system calls come from a fixed address and its call sites
change under Syscall User Dispatch.  A copy of the library built as an ordinary program could be run, but it lacks the
way in and out, a fifth of what is to be guarded.  So the real thing is counted: tools/bench/fastpath.c runs under
sdrun, and once the library is in it, it is single-stepped through each call.  Two things are put right on the way, so
that the same library gives the same number every time:

* time: `rdtsc` reads a clock that advances by one cycle an instruction, since a program that is stepped is 10,000
  times slower than one that runs, and would take the paths of one that waits;
* `pushf`, which would save the trap flag and later restore it.

An instruction with a `rep` prefix counts once.  What the kernel does is not counted; a system call is, as such.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sdlib.wire.ready import readable
from sdtrace import ptrace
from tools import purposes
from tools.groups import Leader

ROOT = Path(__file__).resolve().parents[1]
SDRUN = ROOT / ".venv" / "bin" / "sdrun"
GUEST = ROOT / "build" / "bench" / "fastpath"
IMAGE_ELF = ROOT / "sdlib" / "_image" / "sdlib.elf"
BASELINE = ROOT / "tools" / "bench" / "baseline.json"

SINGLESTEP = 9
TRAP_FLAG = 1 << 8
SITE_BYTES = 7
"""`mov $nr,%eax; syscall`, or what the library has made of it."""

LIMIT = 1.05
WARM_ROUNDS = 40
"""Rounds at full speed: sites get patched, both directions of both connections move to shared memory."""
SETTLE_S = 0.2
"""For a tenth of a second after a connection has moved epoll_wait asks the kernel as well (poll/ep_order.c)."""
SETTLE_ROUNDS, COUNTED_ROUNDS = 2, 3
LONGEST_CALL = 20_000
UNLISTED = "also_"
"""Begins the names of probes that only bring about the state for others."""
VARIANTS = ("alone", "threads", "short")


class CountError(Exception):
    """Nothing could be counted; the text is for people."""


@dataclass
class Count:
    """Instructions of one call."""

    total: int = 0
    system_calls: int = 0
    traps: int = 0
    functions: Counter[str] = field(default_factory=Counter)
    purposes: Counter[str] = field(default_factory=Counter)
    places: Counter[int] = field(default_factory=Counter)
    """By address; once it is counted."""


class Symbols:
    """Which function an address of the library belongs to."""

    def __init__(self, elf: Path) -> None:
        from elftools.elf.elffile import ELFFile
        from elftools.elf.sections import SymbolTableSection

        names: dict[int, str] = {}
        with elf.open("rb") as file:
            image = ELFFile(file)
            table = image.get_section_by_name(".symtab")
            assert isinstance(table, SymbolTableSection), f"{elf} is stripped"
            for symbol in table.iter_symbols():
                info = symbol["st_info"]
                named = info["type"] == "STT_FUNC" or (info["type"] == "STT_NOTYPE" and symbol.name.startswith("sd_"))
                if named and isinstance(symbol["st_shndx"], int):
                    names.setdefault(symbol["st_value"], symbol.name)
            self._segments = [(segment["p_vaddr"], segment["p_vaddr"] + segment["p_memsz"])
                              for segment in image.iter_segments() if segment["p_type"] == "PT_LOAD"]
        self._starts = sorted(names)
        self._names = names

    def holds(self, address: int) -> bool:
        """Is it in the library?"""
        return any(low <= address < high for low, high in self._segments)

    def name(self, address: int) -> str:
        """The function's name; for what is not in the library, the call site with its stub."""
        if not self.holds(address):
            return "call site"
        index = bisect_right(self._starts, address) - 1
        return self._names[self._starts[index]] if index >= 0 else "library"


class Stepper:
    """A traced program that runs into the marks of fastpath.c."""

    def __init__(self, pid: int, symbols: Symbols) -> None:
        self.pid = pid
        self._symbols = symbols
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        self._clock = 0
        self._runs = True

    def close(self) -> None:
        """Forget the program; it is killed by whoever started it."""
        os.close(self._memory)

    def _stopped(self) -> int:
        """Wait for the next stop; its signal."""
        _, status = os.waitpid(self.pid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            raise CountError(f"the counted program ended (wait status {status:#x})")
        return os.WSTOPSIG(status)

    def run_to_mark(self) -> int:
        """Go on at full speed to the next `int3` and return the probe's number; 0 behind a call."""
        passed = 0
        while True:
            if not self._runs:
                ptrace.ask(ptrace.CONT, self.pid, 0, passed)
            passed = self._stopped()
            self._runs = False
            if passed != signal.SIGTRAP:
                continue
            registers = ptrace.get_registers(self.pid)
            if os.pread(self._memory, 1, registers.rip - 1) == b"\xcc":
                return int(registers.r15)
            passed = 0

    def count(self) -> Count:
        """Step from here, behind the first `int3`, to the second one."""
        count = Count()
        registers = ptrace.get_registers(self.pid)
        end, last, passed = registers.rip + SITE_BYTES, 0, 0
        while registers.rip != end:
            code = os.pread(self._memory, 2, registers.rip)
            if registers.rip != last:
                count.total += 1
                count.functions[self._symbols.name(registers.rip)] += 1
                count.places[registers.rip] += 1
                count.system_calls += code == b"\x0f\x05"
            last = registers.rip
            ptrace.ask(SINGLESTEP, self.pid, 0, passed)
            passed = self._stopped()
            if passed == signal.SIGTRAP:
                passed = 0
            count.traps += passed == signal.SIGSYS
            registers = ptrace.get_registers(self.pid)
            self._put_right(code, registers)
            if count.total > LONGEST_CALL:
                raise CountError(f"more than {LONGEST_CALL} instructions in one call, the last at {registers.rip:#x}")
        return count

    def _put_right(self, code: bytes, registers: ptrace.Registers) -> None:
        """What stepping has changed in the instruction `code` that was just done."""
        self._clock += 1
        if code == b"\x0f\x31":  # rdtsc
            if self._clock < 1 << 32:  # the first one seen: begin with the true time
                self._clock += registers.rdx << 32 | registers.rax & 0xFFFFFFFF
            registers.rdx, registers.rax = self._clock >> 32, self._clock & 0xFFFFFFFF
            ptrace.set_registers(self.pid, registers)
        elif code[:1] == b"\x9c":  # pushf
            (flags,) = struct.unpack("<Q", os.pread(self._memory, 8, registers.rsp))
            os.pwrite(self._memory, struct.pack("<Q", flags & ~TRAP_FLAG), registers.rsp)


@contextmanager
def guest(variant: str, options: Sequence[str] = (), patience_s: float = 30) -> Iterator[tuple[Stepper, list[str]]]:
    """fastpath.c under sdrun with the arguments `variant`, injected and then traced; and the names of its probes."""
    runtime = Path(tempfile.mkdtemp(prefix="sdcount-"))
    env = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "XDG_CONFIG_HOME": str(runtime)}
    upgrade = "never" if variant == "short" else "eager"
    argv = [str(SDRUN), "--set", f"upgrade={upgrade}", *options, "--", str(GUEST), *variant.split()]
    program = Leader(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin and program.stdout
    try:
        if not readable(program.stdout, patience_s):
            raise CountError(f"fastpath did not start within {patience_s:g} s")
        names = program.stdout.readline().decode().split()
        if not names:
            raise CountError(f"fastpath ended with status {program.wait(10)}")
        ptrace.ask(ptrace.SEIZE, program.pid)
        stepper = Stepper(program.pid, Symbols(IMAGE_ELF))
        program.stdin.write(b"go\n")
        program.stdin.flush()
        try:
            yield stepper, names
        finally:
            stepper.close()
    finally:
        program.kill_group()
        with suppress(ChildProcessError):
            program.wait(10)
        shutil.rmtree(runtime, ignore_errors=True)


def one_round(stepper: Stepper, names: list[str], counts: dict[str, list[Count]] | None) -> None:
    """Every probe once; at full speed if `counts` is None."""
    for number, name in enumerate(names, 1):
        probe = stepper.run_to_mark()
        if probe != number:
            raise CountError(f"at probe {probe} instead of {name}")
        if counts is not None:
            counts.setdefault(name, []).append(stepper.count())
        stepper.run_to_mark()


def sort_out(counts: Iterable[Count]) -> None:
    """Say what the instructions of these calls were for."""
    counts = list(counts)
    image = Symbols(IMAGE_ELF)
    known = purposes.of_library((place for count in counts for place in count.places if image.holds(place)), IMAGE_ELF)
    for count in counts:
        for place, times in count.places.items():
            count.purposes[known.get(place, purposes.SHIM)] += times


def measure(variants: Sequence[str] = VARIANTS, options: Sequence[str] = ()) -> dict[str, Count]:
    """The median count of every probe, by "name", and "name, with threads" of that variant. `options`: sdrun's."""
    result = {}
    for variant in variants:
        counts: dict[str, list[Count]] = {}
        with guest(variant, options) as (stepper, names):
            for _ in range(WARM_ROUNDS):
                one_round(stepper, names, None)
            time.sleep(SETTLE_S)
            for number in range(SETTLE_ROUNDS + COUNTED_ROUNDS):
                one_round(stepper, names, counts if number >= SETTLE_ROUNDS else {})
        for name in names:
            if name.startswith(UNLISTED):
                continue
            several = sorted(counts[name], key=lambda count: count.total)
            result[f"{name}, with threads" if variant == "threads" else name] = several[len(several) // 2]
    return result


def save(counts: dict[str, Count], path: Path) -> None:
    """Write the baseline."""
    sort_out(counts.values())  # only here: it takes addr2line seconds, and no comparison needs it
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    calls = {name: {"total": count.total, "system_calls": count.system_calls,
                    "purposes": dict(count.purposes.most_common()),
                    "functions": dict(count.functions.most_common())} for name, count in counts.items()}
    path.write_text(json.dumps({"compiler": compiler, "calls": calls}, indent=1) + "\n")


def load(path: Path) -> dict[str, Count]:
    """Read the baseline."""
    calls = json.loads(path.read_text())["calls"]
    return {name: Count(call["total"], call["system_calls"], 0, Counter(call["functions"]), Counter(call["purposes"]))
            for name, call in calls.items()}


def grown(now: Count, before: Count) -> str:
    """The functions that do more than before, the worst first."""
    more = {name: now.functions[name] - before.functions[name] for name in now.functions}
    worst = sorted((name for name in more if more[name] > 0), key=lambda name: -more[name])
    return ", ".join(f"{name} {before.functions[name]} -> {now.functions[name]}" for name in worst)


def complaints(now: dict[str, Count], baseline: dict[str, Count]) -> list[str]:
    """One line for each call that is worse than the baseline allows."""
    lines = [f"{name}: not counted any more" for name in baseline if name not in now]
    for name, count in now.items():
        before = baseline.get(name)
        if before is None:
            lines.append(f"{name}: {count.total} instructions, not in the baseline")
        elif count.total > before.total * LIMIT:
            lines.append(f"{name}: {count.total} instructions, {before.total} in the baseline "
                         f"({count.total / before.total - 1:+.0%}); more in {grown(count, before)}")
        if before and count.system_calls > before.system_calls:
            lines.append(f"{name}: {count.system_calls} system calls, {before.system_calls} in the baseline")
        if count.traps:
            lines.append(f"{name}: its call site still traps")
    return lines


def render(counts: dict[str, Count], baseline: dict[str, Count], functions: bool) -> str:
    """A table for people."""
    lines = [f"{'instructions of a call':32}{'now':>7}{'base':>7}{'system calls':>14}"]
    for name, count in counts.items():
        before = baseline.get(name)
        lines.append(f"{name:32}{count.total:7}{before.total if before else '-':>7}{count.system_calls:14}")
        if functions:
            lines += [f"    {share:5}  {function}" for function, share in count.functions.most_common()]
    return "\n".join(lines)


def main() -> int:
    """Exit status 1 if something has grown."""
    parser = argparse.ArgumentParser(description="Instructions of a call under sdrun, against the stored baseline.")
    parser.add_argument("--write", action="store_true", help="renew the baseline")
    parser.add_argument("--list", action="store_true", help="list functions, too")
    options = parser.parse_args()
    try:
        counts = measure()
    except CountError as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 1
    baseline = load(BASELINE) if BASELINE.exists() else {}
    print(render(counts, baseline, options.list))
    if options.write:
        save(counts, BASELINE)
        return 0
    lines = complaints(counts, baseline)
    print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
