# SPDX-License-Identifier: Apache-2.0
"""What /proc and pidfds say about a process. Every function raises OSError when the process is gone."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import struct

from sdlib.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_GET_INFO: Final = 0xC048FF0B
"""PIDFD_GET_INFO for the 72 bytes of Linux 6.16; the kernel takes other sizes too."""
_INFO: Final = struct.Struct("=QQIII8IiII")
_INFO_EXIT: Final = 8
_INFO_COREDUMP: Final = 16
_COREDUMP_USER: Final = 4
_COREDUMP_SKIP: Final = 2
_COREDUMP_ROOT: Final = 8
_PIDFD_THREAD: Final = os.O_EXCL
_PIDFD_GETFD: Final = 438
_KCMP: Final = 312
_KCMP_FILE, _KCMP_VM = 0, 1
_AT_UID: Final = 11
_AT_EUID: Final = 12
_AT_SECURE: Final = 23
_AT_HWCAP2: Final = 26
_HWCAP2_FSGSBASE: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.getauxval.restype = ctypes.c_ulong
_libc.getauxval.argtypes = [ctypes.c_ulong]


def _syscall(number: int, *args: int) -> int:
    """A system call that Python has no function for; OSError on failure."""
    result: int = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


@dataclass(frozen=True, slots=True)
class Status:
    """The lines of /proc/PID/status that matter here."""

    state: str
    tgid: int
    ppid: int
    tracer: int
    ns_pid: int
    filters: int
    uid: int
    """Effective."""


def _read(path: str) -> bytes:
    """A whole /proc file; without Python's buffering, which costs more than the file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _field(text: bytes, name: bytes, missing: bytes = b"0") -> bytes:
    """Value of a line of /proc/PID/status; much cheaper than to take all sixty lines apart."""
    start = text.find(b"\n" + name + b":\t")
    if start < 0:
        return missing
    start += len(name) + 3
    return text[start:text.index(b"\n", start)]


def status(tid: int) -> Status:
    """/proc/TID/status; of a thread id too."""
    text = _read(f"/proc/{tid}/status")
    tgid = int(_field(text, b"Tgid"))
    if not tgid:
        raise ProcessLookupError(f"process {tid} is going")
    return Status(
        state=_field(text, b"State")[:1].decode(),
        tgid=tgid,
        ppid=int(_field(text, b"PPid")),
        tracer=int(_field(text, b"TracerPid")),
        ns_pid=int(_field(text, b"NSpid", b"%d" % tgid).split()[-1]),
        filters=int(_field(text, b"Seccomp_filters")),
        uid=int(_field(text, b"Uid", b"0 0").split()[1]),
    )


def uid(pid: int) -> int:
    """Effective."""
    return int(_field(_read(f"/proc/{pid}/status"), b"Uid", b"0 0").split()[1])


def signalled(tid: int) -> bool:
    """Does a signal wait for the thread that it has not blocked?"""
    text = _read(f"/proc/{tid}/status")
    pending, shared, blocked = (int(_field(text, name), 16) for name in (b"SigPnd", b"ShdPnd", b"SigBlk"))
    return bool((pending | shared) & ~blocked)


@dataclass(frozen=True, slots=True)
class Rights:
    """What a call of the task may do that depends on who it is."""

    capabilities: int
    """Effective."""
    user_namespace: str
    umask: int
    threads: int


def rights(tid: int) -> Rights:
    """Of a task that waits in a call."""
    text = _read(f"/proc/{tid}/status")
    return Rights(
        capabilities=int(_field(text, b"CapEff"), 16),
        user_namespace=os.readlink(f"/proc/{tid}/ns/user"),
        umask=int(_field(text, b"Umask", b"0022"), 8),
        threads=int(_field(text, b"Threads")),
    )


def exe(pid: int) -> str:
    """Path of the program; "?" when it cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return "?"


def thread_states(pid: int) -> dict[int, str]:
    """State letter of every thread ("Z", "D", "T", ...)."""
    states = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            stat = _read(f"/proc/{pid}/task/{name}/stat")
            states[int(name)] = chr(stat[stat.rindex(b")") + 2])
    return states


def start_time(pid: int) -> int:
    """When it was started, in clock ticks since boot: tells a process from an earlier one with its pid; OSError."""
    stat = _read(f"/proc/{pid}/stat")
    return int(stat[stat.rindex(b")") + 2:].split()[19])


def blocked_in(tid: int, number: int) -> bool:
    """Does the thread wait in this system call?"""
    return _read(f"/proc/{tid}/syscall").startswith(b"%d " % number)


def running(pid: int) -> bool:
    """Is there such a process, and not just its unreaped remains? True, too, if /proc cannot be looked at (EMFILE)."""
    try:
        return status(pid).state not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True


def thread_group(tid: int) -> int:
    """The process of a thread; 0 when it is gone."""
    try:
        return status(tid).tgid
    except OSError:
        return 0


def children(pid: int) -> list[int]:
    """Living and unreaped children of all threads of the process; empty where the kernel does not tell."""
    found: list[int] = []
    for name in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            found += map(int, _read(f"/proc/{pid}/task/{name}/children").split())
    return found


def memfds_mapped(pid: int) -> set[int]:
    """Inode numbers of all memfds that the process has mapped."""
    return {int(line.split(None, 5)[4]) for line in _read(f"/proc/{pid}/maps").splitlines() if b"/memfd:" in line}


def is_mapped(pid: int, address: int, memfd: str) -> bool:
    """Does a mapping begin there, of a memfd of this name?"""
    start = b"%x-" % address
    lines = _read(f"/proc/{pid}/maps").splitlines()
    return any(line.startswith(start) and b"/memfd:" + memfd.encode() in line for line in lines)


def code(pid: int) -> list[tuple[int, int, str]]:
    """Executable mappings that are not writable: start, end, name; those of files first."""
    found = []
    for line in _read(f"/proc/{pid}/maps").decode(errors="replace").splitlines():
        span, rights_, *rest = line.split(None, 5)
        if rights_.startswith("r-xp"):
            start, end = (int(part, 16) for part in span.split("-"))
            found.append((start, end, rest[3] if len(rest) > 3 else "["))
    return sorted(found, key=lambda mapping: mapping[2].startswith("["))


EPOLL: Final = "anon_inode:[eventpoll]"


def files(pid: int) -> dict[int, str]:
    """Open descriptors, and what they are: "socket:[inode]", "anon_inode:[eventpoll]", a path."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def same_file(pid: int, fd: int, other: int, other_fd: int) -> bool:
    """Two descriptors, of one or two processes, for one open file."""
    try:
        return _syscall(_KCMP, pid, other, _KCMP_FILE, fd, other_fd) == 0
    except OSError:
        return False


def pidfd_open_thread(tid: int) -> int:
    """A pidfd of one thread (Linux 6.9), else of its process: whose descriptor table is the same but for unshare()."""
    try:
        return os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError:
        return os.pidfd_open(status(tid).tgid)


def get_fd(pidfd: int, fd: int) -> int:
    """Duplicate descriptor `fd` of another process; close-on-exec."""
    return _syscall(_PIDFD_GETFD, pidfd, fd, 0)


def shares_memory(pid: int, other: int) -> bool:
    """Two processes with one address space, as after vfork."""
    try:
        return _syscall(_KCMP, pid, other, _KCMP_VM, 0, 0) == 0
    except OSError:
        return False


def _info(pidfd: int, mask: int) -> tuple[int, ...] | None:
    buffer = bytearray(_INFO.size)
    struct.pack_into("=Q", buffer, 0, mask)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, buffer, True)
    except OSError:
        return None
    info: tuple[int, ...] = _INFO.unpack(buffer)
    return info if info[0] & mask else None


def exit_status(pidfd: int, pid: int) -> int | None:
    """Status of an ended process as a shell shows it (128 + signal). None: it was reaped and Linux is older than 6.15.

    While its parent has not reaped it, /proc tells; afterwards the pidfd does. A pid is not used again while unreaped.
    """
    code = _reaped_code(pidfd)
    if code is None:
        code = _zombie_code(pid)
    if code is None:
        code = _reaped_code(pidfd)  # reaped between the two questions
    if code is None:
        return None
    return 128 + (code & 0x7F) if code & 0x7F else code >> 8 & 0xFF


def _reaped_code(pidfd: int) -> int | None:
    info = _info(pidfd, _INFO_EXIT)
    return None if info is None else info[13]


def _zombie_code(pid: int) -> int | None:
    try:
        stat = _read(f"/proc/{pid}/stat")
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2:].split()
    return int(fields[-1]) if fields[0] == b"Z" else None


def not_dumpable(pidfd: int) -> bool:
    """Did the process take itself out of reach (prctl PR_SET_DUMPABLE, setuid)? False where the kernel does not tell.

    Without privilege ptrace would find out; root is not held back by it, but should respect it all the same
    (but see out_of_reach).
    """
    info = _info(pidfd, _INFO_COREDUMP)
    return info is not None and bool(info[14] & (_COREDUMP_SKIP | _COREDUMP_ROOT)) and not info[14] & _COREDUMP_USER


def out_of_reach(pid: int, pidfd: int, uid: int) -> bool:
    """Did the process take itself out of reach, other than by giving root's privileges up? `uid`: its effective user.

    A daemon that root has started and that goes on as another user (setuid) is not dumpable any more by that alone. It
    was root's to look into when it was executed, and nothing that it has read since was hidden from root. Set-uid
    programs are what they were executed as, so they are not meant.
    """
    return not_dumpable(pidfd) and not (uid != 0 == os.geteuid() and _executed_by_root(pid))


def _executed_by_root(pid: int) -> bool:
    try:
        entries = struct.iter_unpack("=QQ", _read(f"/proc/{pid}/auxv"))
    except (OSError, struct.error):
        return False
    known = dict(entries)
    return (known.get(_AT_UID), known.get(_AT_EUID), known.get(_AT_SECURE)) == (0, 0, 0)


def alive(pidfd: int) -> bool:
    """Is the process of this pidfd still there (not reaped)?"""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def has_fsgsbase() -> bool:
    """May programs of this machine use rdgsbase? The library keeps its thread state behind gs."""
    return bool(_libc.getauxval(_AT_HWCAP2) & _HWCAP2_FSGSBASE)
