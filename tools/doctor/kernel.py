# SPDX-License-Identifier: Apache-2.0
"""What the kernel can do. Each ability is used, on a process of our own: versions lie, and containers forbid.

The supervisor is no ancestor of the programs it looks after, so what it does to them is tried here between siblings:
a *target* that only waits, and a second child that does to it what the supervisor would do. Whatever becomes of
these two, we only learn a line of text.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from sdtrace import procfs
from tools.doctor.findings import Finding, ok, stops, without

_SECCOMP: Final = 317
_GET_ACTION_AVAIL: Final = 2
_RET_USER_NOTIF: Final = 0x7FC00000
_MEMBARRIER: Final = 324
_PRIVATE_EXPEDITED: Final = 1 << 3
_GLOBAL_EXPEDITED: Final = 1 << 1
_SET_DISPATCH: Final = 59
_PR_SET_PTRACER: Final = 0x59616D61
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_DETACH = 0x4206, 0x4207, 17
_PTRACE_GET_DISPATCH: Final = 0x4211
_WALL: Final = 0x40000000
_ENOUGH: Final = (6, 4)

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _error() -> str:
    number = ctypes.get_errno()
    return errno.errorcode.get(number, str(number))


def machine() -> Finding:
    """Processor."""
    name = "processor"
    if platform.machine() != "x86_64":
        return stops(name, f"{platform.machine()}: the library exists for x86_64 only")
    if not procfs.has_fsgsbase():
        return stops(name, "the kernel does not let programs use FSGSBASE",
                     "boot without nofsgsbase; Linux 5.9 or newer")
    return ok(name, "x86_64 with FSGSBASE")


def release() -> Finding:
    """Version."""
    text = platform.release()
    numbers = re.match(r"(\d+)\.(\d+)", text)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _ENOUGH:
        return stops("kernel", f"Linux {text}: needs 6.4 or newer",
                     "apt install -t bookworm-backports linux-image-amd64")
    return ok("kernel", f"Linux {text}")


def notification() -> Finding:
    """Seccomp user notification."""
    name = "seccomp user notification"
    action = ctypes.c_uint32(_RET_USER_NOTIF)
    if _libc.syscall(_SECCOMP, _GET_ACTION_AVAIL, 0, ctypes.byref(action)) < 0:
        return stops(name, f"not available ({_error()})",
                     "a kernel with CONFIG_SECCOMP_FILTER; in a container: --security-opt seccomp=unconfined")
    return ok(name, "available")


def dispatch() -> Finding:
    """Syscall User Dispatch."""
    name = "syscall user dispatch"
    if _libc.prctl(_SET_DISPATCH, 0, 0, 0, 0) != 0:
        return stops(name, f"not available ({_error()})", "a kernel of 5.11 or newer (CONFIG_GENERIC_ENTRY)")
    return ok(name, "available")


def membarrier() -> Finding:
    """Both kinds in use: within a process, and between the two ends of a ring."""
    name = "membarrier"
    found = int(_libc.syscall(_MEMBARRIER, 0, 0, 0))
    wanted = _PRIVATE_EXPEDITED | _GLOBAL_EXPEDITED
    if found < 0 or found & wanted != wanted:
        return stops(name, f"commands {max(found, 0):#x} of {wanted:#x}" if found >= 0 else f"refused ({_error()})",
                     "a kernel with CONFIG_MEMBARRIER; in a container: allow membarrier")
    return ok(name, "private and global expedited")


def seals() -> Finding:
    """Sealed memory files, by which an end knows that nobody takes its memory away."""
    name = "memfd seals"
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    try:
        fd = os.memfd_create("sddoctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, wanted)
            held = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        finally:
            os.close(fd)
    except OSError as error:
        return stops(name, f"refused: {error.strerror}", "in a container: allow memfd_create")
    return ok(name, "available") if held == wanted else stops(name, f"seals {held:#x} of {wanted:#x}")


def proc() -> Finding:
    """/proc, with our own processes in it."""
    try:
        procfs.status(os.getpid())
        procfs.memfds_mapped(os.getpid())
    except (OSError, ValueError) as error:
        return stops("/proc", f"cannot be read: {error}", "mount -t proc proc /proc")
    if not Path("/proc/self/task").is_dir() or not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        return without("/proc", "without lists of children (CONFIG_PROC_CHILDREN): "
                       "the report may come a moment after the last exit")
    return ok("/proc", "readable")


def _between_siblings(action: Callable[[int], None]) -> str:
    """Run `action(pid of the target)` in a sibling of the target: "" when it worked, else what the OSError says."""
    target = os.fork()
    if not target:
        _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(os.getppid()), 0, 0, 0)  # good for all that descend from it
        signal.pause()
        os._exit(0)
    readable, writable = os.pipe()
    actor = os.fork()
    if not actor:
        text = ""
        try:
            action(target)
        except OSError as error:
            text = errno.errorcode.get(error.errno or 0, str(error))
        except BaseException as error:
            text = repr(error)
        os.write(writable, text.encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as result:
        said = result.read()
    os.waitpid(actor, 0)
    with suppress(ProcessLookupError):
        os.kill(target, signal.SIGKILL)
    os.waitpid(target, 0)
    return said


def _ptrace(request: int, pid: int, address: object = None, data: object = None) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _trace(target: int) -> None:
    """What sdtrace/remote.py begins with, up to reading the setting that injection writes."""
    _ptrace(_PTRACE_SEIZE, target)
    _ptrace(_PTRACE_INTERRUPT, target)
    os.waitpid(target, _WALL)
    setting = (ctypes.c_uint64 * 4)()
    _ptrace(_PTRACE_GET_DISPATCH, target, ctypes.c_void_p(ctypes.sizeof(setting)), ctypes.byref(setting))
    _ptrace(_PTRACE_DETACH, target)


def _copy(target: int) -> None:
    pidfd = os.pidfd_open(target)
    os.close(procfs.get_fd(pidfd, 2))


def yama() -> str | None:
    """kernel.yama.ptrace_scope, None without Yama."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip()
    return None


def _mending_trace(said: str) -> str:
    if yama() not in (None, "0", "1"):
        return "sysctl kernel.yama.ptrace_scope=1   (or run sdrun with CAP_SYS_PTRACE)"
    return "in a container: --cap-add SYS_PTRACE" if said in ("EPERM", "EACCES") else ""


def tracing() -> Finding:
    """May a process that is no ancestor trace a program of ours, which has named it if need be?"""
    name, scope = "ptrace", yama()
    said = _between_siblings(_trace)
    state = "no Yama" if scope is None else f"Yama scope {scope}"
    if said:
        return stops(name, f"programs cannot be stopped and injected ({said}; {state})", _mending_trace(said))
    if scope not in (None, "0"):
        if scope == "1":
            return ok(name, f"works, as each program names who may trace it ({state}); --attach needs privilege")
        return without(name, f"works for this user only by privilege ({state}): other users cannot use sdrun",
                       "sysctl kernel.yama.ptrace_scope=1")
    return ok(name, f"works between processes that are not related ({state})")


def descriptors() -> Finding:
    """pidfd_getfd."""
    said = _between_siblings(_copy)
    if said:
        return stops("pidfd_getfd", f"the monitor cannot be shown sockets of programs ({said})", _mending_trace(said))
    return ok("pidfd_getfd", "works")


CHECKS: Final = (machine, release, notification, dispatch, tracing, descriptors, membarrier, seals, proc)
