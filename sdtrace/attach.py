# SPDX-License-Identifier: Apache-2.0
"""Taking over a running program: `sdrun --attach PID`.

Order of things, all in one stop of all threads, so that whatever cannot be done is found out before anything is changed
for good:

1. what can be known without touching it (`_refuse`), once more when it stands still;
2. the library is mapped: copied into anonymous memory, as the program has no descriptor of ours. Undone if 3 fails;
3. the filter, for all threads at once (TSYNC). From here on the program is ours: a filter cannot be taken away. Its
   listener appears among the program's descriptors; it is taken from there, given to the keeper, and closed there;
4. what descriptors there are is noted (`sd_adopt`), and the library is started as in any injection (inject.py).

Children that exist are programs of their own, with filters and listeners of their own; those that are born later
inherit all of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policies import Settings
from sdlib import abi
from sdlib.wire import trees
from sdtrace import procfs
from sdtrace.dormant import Dormant, has_our_filter, is_ours, renew
from sdtrace.holders import adoptable
from sdtrace.image import PAGE, Image
from sdtrace.inject import boot_bytes, check_registers, is_given_back, leave_given_back, library_present, start_library
from sdtrace.keepsake import Keepsake
from sdtrace.memory import write_memory
from sdtrace.notify import Listener
from sdtrace.opening import AttachError
from sdtrace.ptrace import RemoteError
from sdtrace.seized import Seized
from sdtrace.syscalls import FILTERS, Variant

_MMAP, _MUNMAP, _CLOSE, _PRCTL, _EVENTFD, _SECCOMP = 9, 11, 3, 157, 284, 317
_MAP: Final = 2 | 0x20 | 0x100000
"""MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE."""
_SET_FILTER: Final = 1
_FLAGS: Final = 1 | 4 | 8 | 16
"""TSYNC | SPEC_ALLOW | NEW_LISTENER | TSYNC_ESRCH."""
_WAIT_KILLABLE: Final = 32
"""WAIT_KILLABLE_RECV; see launch/filter.c."""
_PR_SET_NO_NEW_PRIVS: Final = 38
_FPROG: Final = struct.Struct("=HxxxxxxQ")
_TRIES: Final = 20
_TRY_S: Final = 0.05
_ELF_32: Final = b"\x7fELF\x01"
_YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_WHY: Final = {
    "already-traced": "a debugger or strace has it; end that first",
    "own-seccomp-filter": "it has a seccomp filter of its own, or is under an sdrun that we cannot ask",
    "not-dumpable": "it is out of reach (set-uid, PR_SET_DUMPABLE, or it may do more than we may)",
    "gs-in-use": "it uses the gs register, which the library needs",
    "32-bit": "it is a program of 32 bit",
    "address-taken": f"something else is mapped at {abi.const.SD_LIB_BASE:#x}",
    "no-fsgsbase": "this machine has no fsgsbase instructions",
    "policy": "a policy leaves this program alone",
    "stopped by job control": "it is stopped by job control; continue it first",
}
_SETTLED: Final = {errno.EMFILE: "it has no free descriptor", errno.ENOMEM: "it has no memory left",
                   errno.ESRCH: "its threads have different seccomp filters",
                   errno.EBUSY: "it is under another supervisor's filter"}  # fmt: skip


@dataclass(frozen=True)
class Taken:
    """One process of ours."""

    listener: Listener | None
    """None: it has been given back before, and its listener is among those of `Attacher.dormant`."""
    status: procfs.Status


class Attacher:
    """For one supervisor."""

    def __init__(self, image: Image | str, variant: Variant, keepsake: Keepsake,
                 settings: Callable[[str, int], Settings], give: Callable[[int], None], *, trace: int = 0) -> None:
        """`give` hands a listener to the keeper."""
        self._image, self._keepsake, self._settings, self._give = image, keepsake, settings, give
        self._filter = Path(FILTERS, variant.file_name).read_bytes()
        self._flags = _FLAGS if variant.deny else _FLAGS | _WAIT_KILLABLE
        self._trace = trace
        self.dormant = Dormant(keepsake, give)

    def process(self, pid: int) -> Taken:
        """Take it over; AttachError."""
        for _ in range(_TRIES):
            try:
                return self._try(pid)
            except RemoteError as error:
                why = error.reason
                if not error.transient:
                    break
            except OSError as error:
                why = os.strerror(error.errno or 0)
                break
            time.sleep(_TRY_S)
        raise AttachError(_WHY.get(why, why) if why != "ptrace-refused" else _ptrace_refused(pid))

    def was_given_back(self, pid: int) -> bool:
        """It has the filter and an image, and neither is in use."""
        try:
            return (not isinstance(self._image, str) and library_present(pid, self._image)
                    and is_given_back(pid, self._image))
        except (RemoteError, OSError):
            return False

    def _try(self, pid: int) -> Taken:
        if isinstance(self._image, str):
            raise AttachError(self._image)
        status = _refuse(pid, self._image)
        settings = self._settings(procfs.exe(pid), status.uid)
        if not settings.accelerate:
            raise RemoteError("policy")
        with Seized(pid, self._keepsake) as seized:
            listener = self._take(seized, self._image, settings, filtered=status.filters > _filters())
            seized.commit()
        return Taken(listener, status)

    def _take(self, seized: Seized, image: Image, settings: Settings, *, filtered: bool) -> Listener | None:
        """RemoteError and AttachError: nothing has happened yet, or has been undone."""
        _refuse_files(seized.pid)
        check_registers(seized.registers())
        if seized.dispatched_by_itself():
            raise AttachError("it uses Syscall User Dispatch itself")
        seized.prepare_calls()
        listener = None
        if filtered:
            self._again(seized, image)
        else:
            listener = self._newly(seized, image)
        words = adoptable(seized.pid)
        write_memory(seized.pid, image.symbols["sd_adopt"], words.ljust(_FPROG.size + len(self._filter), b"\0"))
        boot = boot_bytes(seized.thread_count, [], settings.patch, self._trace, adopt=True)
        try:
            start_library(seized, image, boot)
        except (RemoteError, OSError):
            if listener is None:
                leave_given_back(seized.pid, image)
            raise
        return listener

    def _newly(self, seized: Seized, image: Image) -> Listener:
        mapped = _map(seized, image)
        try:
            fd = self._install(seized, image)
        except (RemoteError, AttachError):
            _unmap(seized, mapped)
            raise
        return Listener(self._fetch(seized, fd), self._keepsake)

    def _again(self, seized: Seized, image: Image) -> None:
        """It has been given back before, with an image or as one of a tree; its listener is in `dormant`."""
        if not self.dormant.find(seized):
            raise AttachError("it was given back, and the keeper that it was left with is not to be found")
        if _has_image(seized.pid, image):
            renew(seized, image)
        else:
            _map(seized, image)

    def _install(self, seized: Seized, image: Image) -> int:
        """The filter; its listener's number among the program's descriptors."""
        spare = seized.call(_EVENTFD, 0, 0)
        if spare < 0:
            raise AttachError(_SETTLED.get(-spare, os.strerror(-spare)))
        seized.call(_CLOSE, spare)
        at = image.symbols["sd_adopt"]
        program = at + _FPROG.size
        write_memory(seized.pid, at, _FPROG.pack(len(self._filter) // 8, program) + self._filter)
        self._keepsake.attaching(seized.pid)
        fd = seized.call(_SECCOMP, _SET_FILTER, self._flags, at)
        if fd == -errno.EACCES:  # as in launch/filter.c: no setuid program may run under it
            seized.call(_PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            fd = seized.call(_SECCOMP, _SET_FILTER, self._flags, at)
        if fd < 0:
            self._keepsake.attaching(0)
            raise AttachError(_SETTLED.get(-fd, f"the kernel takes no filter for it: {os.strerror(-fd)}"))
        return fd

    def _fetch(self, seized: Seized, fd: int) -> int:
        pidfd = os.pidfd_open(seized.pid)
        try:
            listener = procfs.get_fd(pidfd, fd)
        finally:
            os.close(pidfd)
        self._give(listener)
        seized.call(_CLOSE, fd)
        self._keepsake.attaching(0)
        return listener


def equip(pid: int, image: Image, keepsake: Keepsake, *, patch: bool, trace: int, tracer: int = 0) -> None:
    """Give a program under our filter the library, whatever it is doing, also again; RemoteError, AttachError."""
    with Seized(pid, keepsake) as seized:
        _refuse_files(pid)
        check_registers(seized.registers())
        if seized.dispatched_by_itself():
            raise AttachError("it uses Syscall User Dispatch itself")
        seized.prepare_calls()
        again = _has_image(pid, image)
        mapped = [] if again else _map(seized, image)
        try:
            if again:
                renew(seized, image)
            write_memory(pid, image.symbols["sd_adopt"], adoptable(pid))
            start_library(seized, image, boot_bytes(seized.thread_count, [], patch, trace, adopt=True,
                                                    tracer=tracer))
        except (RemoteError, OSError):
            seized.dispatch_nowhere()
            seized.prepare_calls()
            _unmap(seized, mapped)
            if again:
                leave_given_back(pid, image)
            raise
        seized.commit()


def _map(seized: Seized, image: Image) -> list[tuple[int, int]]:
    done: list[tuple[int, int]] = []
    try:
        for segment in image.segments:
            length = -(-segment.memsz // PAGE) * PAGE
            got = seized.call(_MMAP, segment.vaddr, length, segment.prot, _MAP, -1, 0)
            if got != segment.vaddr:
                raise RemoteError("address-taken" if got == -errno.EEXIST else f"mmap failed: {os.strerror(-got)}")
            done.append((segment.vaddr, length))
            if segment.filesz:
                seized.write(segment.vaddr, os.pread(image.fd, segment.filesz, segment.offset))
    except (RemoteError, OSError):
        _unmap(seized, done)
        raise
    return done


def _unmap(seized: Seized, mapped: list[tuple[int, int]]) -> None:
    with contextlib.suppress(RemoteError, OSError):
        for address, length in mapped:
            seized.call(_MUNMAP, address, length)


# ------------------------------------------------------------------- refusals


def why_not(error: RemoteError) -> str:
    """For a person."""
    return _WHY.get(error.reason, error.reason)


def _refuse(pid: int, image: Image) -> procfs.Status:
    """All that can be known without touching it; AttachError, RemoteError."""
    try:
        status = procfs.status(pid)
    except OSError:
        raise AttachError("there is no such process") from None
    if status.tgid != pid:
        raise AttachError(f"that is a thread of process {status.tgid}")
    if status.state in "ZX":
        raise AttachError("it has ended and waits for its parent (zombie)")
    if os.geteuid() not in (0, status.uid):
        raise AttachError(f"it belongs to user {status.uid}; only that user or root may")
    exe = procfs.exe(pid)
    if exe == "?":
        raise AttachError("it is a part of the kernel" if _is_kernel(pid) else _WHY["not-dumpable"])
    _refuse_ours(pid, exe)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/exe", "rb") as program:
        if program.read(len(_ELF_32)) == _ELF_32:
            raise RemoteError("32-bit")
    if not procfs.has_fsgsbase():
        raise RemoteError("no-fsgsbase")
    if status.tracer:
        ours = status.tracer == os.getpid()
        raise RemoteError("already-traced", transient=ours)
    _refuse_memory(pid, image)
    more = status.filters - _filters()
    known = more == int(_has_image(pid, image)) or (more == 1 and (is_ours(status) or has_our_filter(pid, _filters())))
    if not known:
        raise RemoteError("own-seccomp-filter")
    _refuse_threads(pid)
    return status


def _filters() -> int:
    """Of our own: what we have, all have that we have anything to do with."""
    return procfs.status(os.getpid()).filters


def _has_image(pid: int, image: Image) -> bool:
    """One that has let go of it, that is: others are refused."""
    return library_present(pid, image)


def _is_kernel(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return not Path(f"/proc/{pid}/maps").read_bytes() and not Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _refuse_ours(pid: int, exe: str) -> None:
    if pid == os.getpid() or exe == procfs.exe(os.getppid()):
        raise AttachError("it is a part of sdrun itself")
    for document in trees.ask_all():
        if any(line["pid"] == pid for line in document["processes"]) and document["here"]:
            raise AttachError(f"it is under sdrun already (supervisor {document['supervisor']['pid']})")


def _refuse_memory(pid: int, image: Image) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if procfs.out_of_reach(pid, pidfd, procfs.status(pid).uid):
            raise RemoteError("not-dumpable")
    finally:
        os.close(pidfd)
    if library_present(pid, image) and not is_given_back(pid, image):
        raise AttachError("it is under sdrun already")


def _refuse_threads(pid: int) -> None:
    states = procfs.thread_states(pid).values()
    if "T" in states:
        raise RemoteError("stopped by job control")
    if "D" in states:
        raise RemoteError("one of its threads is in an uninterruptible wait", transient=True)


def _refuse_files(pid: int) -> None:
    names = set(procfs.files(pid).values())
    if any(name.startswith("anon_inode:[io_uring]") for name in names):
        raise AttachError("it uses io_uring, which passes by the library")
    if any(name.startswith("anon_inode:seccomp notify") for name in names):
        raise AttachError("it supervises other programs by seccomp")


def _ptrace_refused(pid: int) -> str:
    scope = _YAMA.read_text().strip() if _YAMA.exists() else "0"
    if scope != "0" and os.geteuid():
        return (f"Yama keeps us from it (kernel.yama.ptrace_scope is {scope}): do it as root, set that to 0, or let "
                "the program allow it (prctl PR_SET_PTRACER)")
    return f"the kernel lets nobody trace it ({procfs.exe(pid)}): set-uid, capabilities, or a security module"
