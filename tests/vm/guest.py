# SPDX-License-Identifier: Apache-2.0
"""A machine with RDMA: a Debian kernel with soft RoCE, emulated by QEMU (TCG; never /dev/kvm), on this machine's files.

    python -m tests.vm.guest [--limit SECONDS] -- COMMAND...

Its root is this machine's, read only with an overlay in memory; the work tree is at its own path, so the project's
virtual environment runs there as it is.  Output and exit status are the command's.  The kernel is downloaded once
(apt-get download; nothing is installed) into build/vm.

What is missing is an error, never a reason to skip: 125 if the guest has not come up or has not ended.
"""

from __future__ import annotations

import argparse
import ctypes
import lzma
import mmap
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
OUT: Final = ROOT / "build" / "vm"
META: Final = "linux-image-6.12-amd64"
BOOT_MODULES: Final = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay")
FAILED: Final = 125
BOOTS: Final = 3
BOOT_S: Final = 300.0
_QEMU: Final = (  # which does not outlive us
    "setpriv --pdeathsig KILL -- qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none "
    "-machine q35,vmport=off,hpet=off "
    "-accel tcg,thread=multi,tb-size=512 -cpu max -smp 2 -m 2G -device isa-debug-exit,iobase=0xf4,iosize=1 "
    "-device virtio-serial-pci,id=vs"
)
_APPEND: Final = (
    "console=ttyS0 quiet loglevel=3 panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check "
    "random.trust_cpu=on audit=0 cryptomgr.notests"
)


class VmError(Exception):
    """The guest cannot be made or did not end; str() is for people."""


def _run(*words: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VmError(f"{words[0]} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return done.stdout


# ---------------------------------------------------------------------------- making


def make() -> None:
    """Kernel, modules and initramfs in build/vm, unless they are there."""
    newest = max(path.stat().st_mtime for path in HERE.iterdir())
    if (OUT / "ready").exists() and (OUT / "ready").stat().st_mtime > newest:
        return
    for tool in ("qemu-system-x86_64", "busybox", "cpio", "apt-get", "dpkg-deb", "/sbin/depmod"):
        if shutil.which(tool) is None:
            raise VmError(f"{tool} is missing; see tools/setup/rdma.txt")
    kernel = OUT / "kernel"
    if not (kernel / "boot").exists():
        _download(kernel)
    (version,) = [path.name for path in (kernel / "lib/modules").iterdir()]
    _run("/sbin/depmod", "-b", kernel, version)
    image = (kernel / "boot" / f"vmlinuz-{version}").read_bytes()
    (OUT / "vmlinux").write_bytes(_vmlinux(image))
    _initramfs(kernel, version)
    link = OUT / "modules"
    link.unlink(missing_ok=True)
    link.symlink_to(kernel / "lib/modules" / version)
    (OUT / "ready").write_text(version)


def _download(kernel: Path) -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not _fetched(folder):
            # A new machine's lists may lack the archive that has this kernel; old ones name a version that is gone.
            root = [] if os.geteuid() == 0 else ["sudo"]
            _run(*root, "apt-get", "update", "-q", cwd=folder)
            if not _fetched(folder):
                raise VmError(f"apt-get cannot download {META}")
        (package,) = folder.glob("*.deb")
        _run("dpkg-deb", "-x", package, kernel)


def _fetched(folder: Path) -> bool:
    depends = subprocess.run(["apt-cache", "depends", META], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        return False
    command = ["apt-get", "-q", "download", "-o", "APT::Sandbox::User=root", found[1]]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def _vmlinux(image: bytes) -> bytes:
    """The ELF inside a bzImage: QEMU starts it by itself, which saves the guest from decompressing it."""
    start = ((image[0x1F1] or 4) + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    packed = image[start:start + int.from_bytes(image[0x24C:0x250], "little")]
    if packed.startswith(b"\xfd7zXZ\0"):
        elf = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x28\xb5\x2f\xfd"):
        elf = subprocess.run(["zstd", "-dcq"], input=packed[:-4], stdout=subprocess.PIPE, check=False).stdout
    elif packed.startswith(b"\x1f\x8b"):
        elf = zlib.decompressobj(31).decompress(packed)
    else:
        raise VmError(f"a kernel packed in an unknown way ({packed[:4]!r})")
    if not elf.startswith(b"\x7fELF"):
        raise VmError("no ELF inside the kernel image")
    return elf


def _initramfs(kernel: Path, version: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for folder in ("bin", "dev", "proc", "sys", "ro", "rw", "new", "ctl", "modules"):
            (tree / folder).mkdir()
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, tree / "bin/busybox")
        shutil.copy(HERE / "init.sh", tree / "init")
        shutil.copy(HERE / "init2.sh", tree / "init2")
        (tree / "init").chmod(0o755)
        order = [_copy_module(path, tree / "modules") for path in _with_needs(kernel, version)]
        (tree / "modules/order").write_text("".join(f"{module}\n" for module in order))
        files = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
        packed = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=files.encode(), cwd=tree,
                                stdout=subprocess.PIPE, check=True).stdout
        (OUT / "initrd").write_bytes(packed)


def _with_needs(kernel: Path, version: str) -> list[Path]:
    """The modules that are needed to reach the root, in an order in which they load."""
    found: list[Path] = []
    for module in BOOT_MODULES:
        shown = _run("/sbin/modprobe", "-d", kernel, "-S", version, "--show-depends", module)
        for line in shown.splitlines():
            words = line.split()
            if words[0] == "insmod" and Path(words[1]) not in found:
                found.append(Path(words[1]))
    return found


def _copy_module(path: Path, folder: Path) -> str:
    data = path.read_bytes()
    name = path.name
    if name.endswith(".xz"):
        data, name = lzma.decompress(data), name.removesuffix(".xz")
    elif name.endswith(".zst"):
        data = subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout
        name = name.removesuffix(".zst")
    (folder / name).write_bytes(data)
    return name


# --------------------------------------------------------------------------- running


def _tsc_khz() -> int:
    """Of this machine's time stamp counter, which is also the emulated one's.

    The guest would measure it against a timer while it boots, and get it wrong by as much as QEMU was kept waiting
    then: on a busy machine its clock has run three times too fast, and every time limit was over that much too early.
    """
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; rdx:rax to rax; ret
    count = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def both() -> tuple[int, int]:
        """The two clocks at one moment: of some tries the one that took the shortest."""
        tries = [(time.monotonic_ns(), count(), time.monotonic_ns()) for _ in range(50)]
        early, ticks, _ = min(tries, key=lambda one: one[2] - one[0])
        return early, ticks

    first = both()
    time.sleep(0.3)
    last = both()
    return round((last[1] - first[1]) * 1e6 / (last[0] - first[0]))


class Machine:
    """One guest, which runs one command; what it prints goes to our output, each line behind `mark`."""

    def __init__(self, control: Path, command: Sequence[str], *, mark: bytes = b"", more: Sequence[str] = ()) -> None:
        """`more`: for QEMU."""
        self._control = control
        script = f"export PATH={shlex.quote(os.environ['PATH'])}:/usr/sbin:/sbin HOME=/root TERM=dumb\n"
        script += "touch /run/ctl/begun\n"
        (control / "guest.sh").write_text(f"{script}cd {shlex.quote(str(ROOT))}\n{shlex.join(command)}\n")
        (control / "work").write_text(f"{ROOT}\n")
        self._pipes = [_pipe(control / "out", sys.stdout.buffer, mark), _pipe(control / "err", sys.stderr.buffer, mark)]
        self._qemu = subprocess.Popen([*_qemu(control), *more], stdin=subprocess.DEVNULL)

    @property
    def running(self) -> bool:
        return self._qemu.poll() is None

    @property
    def begun(self) -> bool:
        """Its command has started."""
        return (self._control / "begun").exists()

    @property
    def status(self) -> int | None:
        """The command's exit status; None: the machine has not told one."""
        path = self._control / "rc"
        return int(path.read_text()) if path.exists() and path.read_text() else None

    @property
    def last_words(self) -> str:
        """For people: how QEMU ended, and the console."""
        console = self._control / "console"
        tail = "\n".join(console.read_text(errors="replace").splitlines()[-30:]) if console.exists() else ""
        return f"qemu ended with {self._qemu.returncode}; its console:\n{tail}"

    def end(self) -> None:
        """Whatever it is at; all that it has printed is out then."""
        self._qemu.kill()
        self._qemu.wait()
        for done in self._pipes:
            done()
        self._pipes = []


def run(command: list[str], limit_s: float) -> int:
    """Run it in a guest; its exit status, FAILED when the guest did not tell one."""
    make()
    for _ in range(BOOTS):
        status = _boot(command, limit_s)
        if status is not None:
            return status
    return FAILED


def _boot(command: list[str], limit_s: float) -> int | None:
    """One machine. None: it died before the command's end; emulated, a kernel may do so while it patches itself."""
    with tempfile.TemporaryDirectory(prefix="sdvm-") as name:
        machine = Machine(Path(name), command)
        try:
            late = until_ended([machine], limit_s)
        finally:
            machine.end()
        if machine.status is not None:
            return machine.status
        print(f"vm: {late or 'not done'}; {machine.last_words}", file=sys.stderr)
        return FAILED if late and machine.begun else None


def until_ended(machines: Sequence[Machine], limit_s: float, grace_s: float = 0.0) -> str:
    """Wait for all; or until `grace_s` after one has failed. "", or what took too long."""
    since, failed_at = time.monotonic(), 0.0
    while any(machine.running for machine in machines):
        time.sleep(0.1)
        now = time.monotonic()
        up = all(machine.begun for machine in machines)
        if now - since > (limit_s if up else BOOT_S):
            return f"{'not done' if up else 'not up'} within {now - since:.0f} s"
        if not failed_at and any(not machine.running and machine.status != 0 for machine in machines):
            failed_at = now
        if failed_at and now - failed_at > grace_s:
            break
    return ""


def _pipe(path: Path, target: BinaryIO, mark: bytes) -> Callable[[], None]:
    """A FIFO whose content goes to `target`, by lines if they are marked; call the result when its writer has ended."""
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR)  # QEMU must not wait for a reader, nor the reader see an end before it writes

    def copy() -> None:
        with path.open("rb", buffering=0) as source:
            kept = b""
            while data := source.read(65536):
                *lines, kept = (kept + data).splitlines(keepends=True) if mark else (data, b"")
                if kept.endswith(b"\n"):
                    lines, kept = [*lines, kept], b""
                target.write(b"".join(mark + line for line in lines))
                target.flush()
            target.write(mark + kept + b"\n" if kept else b"")
            target.flush()

    thread = threading.Thread(target=copy)
    thread.start()

    def done() -> None:
        os.close(keep)
        thread.join()

    return done


def _qemu(control: Path) -> list[str]:
    words = [*shlex.split(_QEMU), "-kernel", str(OUT / "vmlinux"), "-initrd", str(OUT / "initrd"),
             "-append", f"{_APPEND} tsc_early_khz={_tsc_khz()}"]
    words += ["-chardev", f"file,id=con,path={control}/console", "-serial", "chardev:con"]
    for number, port in enumerate(("out", "err"), 1):
        words += ["-chardev", f"file,id={port},path={control}/{port}",
                  "-device", f"virtserialport,bus=vs.0,nr={number},chardev={port},name={port}"]
    words += share("root", Path("/"), readonly=True) + share("ctl", control) + share("work", ROOT)
    return words + share("mods", (OUT / "modules").resolve(), readonly=True)


def share(tag: str, path: Path, *, readonly: bool = False) -> list[str]:
    """For QEMU: a folder of ours, which the guest may mount by its tag."""
    return ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap"
                       f"{',readonly=on' if readonly else ''}"]


def leave_when_told() -> None:
    """SIGTERM ends the machines, too, and removes what was made for them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run a command in an emulated machine with RDMA.")
    parser.add_argument("--limit", type=float, default=480, metavar="SECONDS")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    leave_when_told()
    try:
        return run(options.command, options.limit)
    except (VmError, OSError, ValueError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
