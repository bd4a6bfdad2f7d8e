# SPDX-License-Identifier: Apache-2.0
"""Mapping the library into a process that waits in a notification (ARCHITECTURE.md, "Injection").

Every reason not to is found before the process is touched if it can be; what fails later is undone.  A transient
failure leaves the process as it is for a next attempt at its next notified call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable

from sdlib import abi
from sdtrace import notify, procfs
from sdtrace.image import IMAGE_NAME, PAGE, Image, Segment
from sdtrace.keepsake import Keepsake
from sdtrace.memory import read_memory, write_memory
from sdtrace.notify import Listener, Notification
from sdtrace.ptrace import Registers, RemoteError
from sdtrace.remote import Stopped
from sdtrace.stacks import Stacks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MMAP, _MUNMAP, _CLOSE = 9, 11, 3
_MAP_PRIVATE: Final = 2
_MAP_ANONYMOUS: Final = 0x20
_MAP_FIXED_NOREPLACE: Final = 0x100000
_USER_CS_64: Final = 0x33
_VFORK_PATIENCE_S: Final = 0.002
_SYSCALL_AT: Final = slice(30, 34)
"""In a slot of the gate (gate.S); no program begins like that, and where we attached no mapping has a name."""
_UNHOOKED_AT: Final = abi.offsetof("struct sd_boot", "unhooked")


class Interrupted(RemoteError):
    """A signal has ended the notified call's wait; the call is made anew behind the handler."""

    def __init__(self) -> None:
        """Nothing more is to be said."""
        super().__init__("interrupted by a signal", transient=True)


class OtherLibrary(RemoteError):
    """An image of another sdrun, which nothing that we know of ours is true of: this one has been replaced since."""

    def __init__(self) -> None:
        """In reports it is what it would be for a program that we have not seen before."""
        super().__init__("address-taken")
        self.args = ("it has the library of another version of sdrun",)


def library_present(pid: int, image: Image) -> bool:
    """Is our image mapped there? RemoteError when something else is.

    All of its code is compared: what we know of places in it, and in its memory, has no version number.
    """
    try:
        found = [read_memory(pid, at, len(code)) for at, code in image.code[:1]]
    except OSError:
        return False
    with contextlib.suppress(OSError):
        found += [read_memory(pid, at, len(code)) for at, code in image.code[1:]]
    if found == [code for _, code in image.code]:
        return True
    if found[0][_SYSCALL_AT] == image.code[0][1][_SYSCALL_AT] or procfs.is_mapped(pid, image.base, IMAGE_NAME):
        raise OtherLibrary
    raise RemoteError("address-taken")


def is_given_back(pid: int, image: Image) -> bool:
    """Has it an image that has let go of it? OSError: it has none."""
    return any(read_memory(pid, image.symbols["sd_boot"] + _UNHOOKED_AT, 4))


def leave_given_back(pid: int, image: Image) -> None:
    """It was to be used again, and could not be."""
    write_memory(pid, image.symbols["sd_boot"] + _UNHOOKED_AT, (1).to_bytes(4, "little"))


def has_library(pid: int, image: Image) -> bool:
    """Is our image there, and in use? Of another sdrun, too, if it is the same."""
    try:
        return library_present(pid, image) and not is_given_back(pid, image)
    except (OSError, RemoteError):
        return False


def is_hooked(pid: int, image: Image) -> bool:
    """As has_library(). OtherLibrary: it has one that we cannot take out."""
    try:
        return library_present(pid, image) and not is_given_back(pid, image)
    except OtherLibrary:
        raise
    except (OSError, RemoteError):
        return False


def _check_threads(pid: int) -> None:
    """Threads that would not stop now: wait a little, then leave it for another time."""
    deadline = time.monotonic() + _VFORK_PATIENCE_S
    while "D" in (states := {state for tid, state in procfs.thread_states(pid).items() if not notify.waits(tid)}):
        if time.monotonic() > deadline:
            raise RemoteError("a thread is in an uninterruptible wait", transient=True)
        time.sleep(0.0002)
    if "T" in states:
        raise RemoteError("stopped by job control", transient=True)


def check(status: procfs.Status, pidfd: int, image: Image, own_filters: int, *, birth: bool = False) -> None:
    """All that can be known without touching the process; RemoteError with the reason it stays on the kernel.

    At a program's birth only an injection of which the supervisor has died can have left something there.
    """
    if not procfs.has_fsgsbase():
        raise RemoteError("no-fsgsbase")
    if status.tracer:
        ours = status.tracer == os.getpid()
        raise RemoteError("still being released" if ours else "already-traced", transient=True)
    if status.filters > own_filters:
        raise RemoteError("own-seccomp-filter")
    if procfs.out_of_reach(status.tgid, pidfd, status.uid):
        raise RemoteError("not-dumpable")
    if procfs.shares_memory(status.tgid, status.ppid):
        raise RemoteError("shares memory with its parent (vfork)", transient=True)
    if library_present(status.tgid, image) and not birth:
        raise RemoteError("library is there, task is not armed", transient=True)
    _check_threads(status.tgid)


def _check_stopped(stopped: Stopped) -> None:
    if not stopped.still_in_call:
        raise Interrupted
    check_registers(stopped.registers())


def check_registers(found: Iterable[Registers]) -> None:
    """Can the library live in these threads? RemoteError."""
    for registers in found:
        if registers.gs_base:
            raise RemoteError("gs-in-use")
        if registers.cs != _USER_CS_64:
            raise RemoteError("32-bit")


def boot_bytes(threads: int, carry: list[tuple[int, int]], patch: bool, trace: int, *, adopt: bool = False,
               tracer: int = 0) -> bytes:
    """`struct sd_boot`. `adopt`: it takes over what the program has (`sd_adopt`). `tracer`: see there."""
    boot: abi.CData = abi.ffi.new("struct sd_boot *")
    boot.version = abi.const.SD_ABI_VERSION
    boot.threads = threads
    boot.no_patch = int(not patch)
    boot.secret = int.from_bytes(os.urandom(8), "little")
    boot.trace = trace
    boot.tracer = tracer
    boot.ncarry = abi.const.SD_CARRY_ADOPT if adopt else len(carry)
    for slot, (fd, block) in zip(boot.carry, carry, strict=False):
        slot.fd, slot.block = fd, block
    return bytes(abi.ffi.buffer(boot))


class _Mappings:
    """Segments mapped so far; undone if the injection fails."""

    def __init__(self, stopped: Stopped) -> None:
        self._stopped = stopped
        self._done: list[tuple[int, int]] = []

    def make_room(self, image: Image) -> None:
        """Take away what is there already (see check())."""
        end = max(segment.vaddr + segment.memsz for segment in image.segments)
        self._stopped.call(_MUNMAP, image.base, -(-(end - image.base) // PAGE) * PAGE)

    def add(self, segment: Segment, fd: int) -> None:
        """Map one segment, its file part and the zeroes behind."""
        from_file = -(-segment.filesz // PAGE) * PAGE
        zeroes = segment.memsz - from_file
        if segment.filesz:
            self._map(segment.vaddr, from_file, segment.prot, 0, fd, segment.offset)
        if zeroes > 0:
            self._map(segment.vaddr + from_file, zeroes, segment.prot, _MAP_ANONYMOUS, -1, 0)

    def _map(self, address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> None:
        flags |= _MAP_PRIVATE | _MAP_FIXED_NOREPLACE
        result = self._stopped.call(_MMAP, address, length, prot, flags, fd, offset)
        if result == address:
            self._done.append((address, length))
        else:
            raise RemoteError("address-taken" if result == -errno.EEXIST else f"mmap failed: {os.strerror(-result)}")

    def undo(self) -> None:
        """Unmap all; as far as the process still obeys."""
        with contextlib.suppress(RemoteError, OSError):
            for address, length in self._done:
                self._stopped.call(_MUNMAP, address, length)


def start_library(stopped: Stopped, image: Image, boot: bytes) -> None:
    """Run the library's beginning, then let it have the system calls of all threads."""
    write_memory(stopped.pid, image.symbols["sd_boot"], boot)
    result = stopped.run(image.symbols["sd_init"], image.symbols["sd_boot_stack_top"])
    if result:
        raise RemoteError(f"library refused to start: {os.strerror(-result) if result < 0 else result}")
    stacks = Stacks(stopped, image)
    try:
        stacks.part()
        stopped.dispatch_everywhere(image.symbols["sd_gate_start"], image.symbols["sd_gate_end"])
    except (RemoteError, OSError):
        stopped.dispatch_nowhere()
        stacks.undo()
        raise


def _map_and_start(stopped: Stopped, image: Image, remote_fd: int, boot: bytes, *, birth: bool) -> None:
    mappings = _Mappings(stopped)
    try:
        try:
            if birth:
                mappings.make_room(image)
            for segment in image.segments:
                mappings.add(segment, remote_fd)
        finally:
            # Before dispatch is on: from then on a call from here would trap.
            stopped.call(_CLOSE, remote_fd)
        start_library(stopped, image, boot)
    except (RemoteError, OSError):
        stopped.dispatch_nowhere()
        stopped.prepare_calls()
        mappings.undo()
        raise


def inject(
    pid: int, notif: Notification, listener: Listener, image: Image, keepsake: Keepsake,
    carry: list[tuple[int, int]], *, patch: bool, trace: int = 0, tracer: int = 0,
) -> None:
    """Map the library into process `pid` and start it; the notified call is then made anew, inside the library.

    RemoteError says why not, in which case nothing has changed but that the call is notified once more.
    """
    try:
        remote_fd = listener.add_fd(notif, image.fd)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise Interrupted from error
        raise RemoteError("no-free-descriptor", transient=True) from error
    try:
        with Stopped(pid, notif, keepsake) as stopped:
            stopped.prepare_calls()
            try:
                _check_stopped(stopped)
            except RemoteError:
                stopped.call(_CLOSE, remote_fd)
                raise
            boot = boot_bytes(stopped.thread_count, carry, patch, trace, tracer=tracer)
            _map_and_start(stopped, image, remote_fd, boot, birth=bool(carry))
            stopped.commit()
    except OSError as error:
        raise RemoteError(f"process does not obey: {os.strerror(error.errno or 0)}", transient=True) from error
