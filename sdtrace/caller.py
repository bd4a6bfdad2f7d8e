# SPDX-License-Identifier: Apache-2.0
"""A notified call of a restricted program, seen from here: its memory, its socket, and who it is.

Whatever is read of a task by its number is about that task only while its notification is valid: that is asked again
after everything has been read, and before anything is done (`Call.still_there`).
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from policies.model import Dir, Proto
from sdlib.records import NamedTuple
from sdtrace import calls, procfs
from sdtrace.lineage import Subject
from sdtrace.memory import read_memory, write_memory
from sdtrace.notify import Listener, Notification

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_DATAGRAM: Final = (socket.IPPROTO_UDP, 136)  # UDP-Lite
_STREAM: Final = (socket.IPPROTO_TCP, 262)  # MPTCP
KNOWN: Final = (*_DATAGRAM, *_STREAM, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)


class Continue(Exception):
    """The call acts on what we have seen: the program may make it itself."""


class Later(Exception):
    """A thread answers."""


class Socket(NamedTuple):
    """A duplicate of the program's descriptor."""

    sock: socket.socket
    domain: int
    protos: tuple[Proto, ...]
    blocking: bool

    @property
    def fd(self) -> int:
        """Its number here."""
        return self.sock.fileno()

    @property
    def internet(self) -> bool:
        """Rules are about it."""
        return self.domain in INTERNET


class Call(NamedTuple):
    """One notified call of a restricted program."""

    listener: Listener
    notif: Notification
    subject: Subject

    def memory(self, address: int, length: int) -> bytes:
        """Bytes of the program; OSError EFAULT, or EACCES when they are out of our reach."""
        try:
            return read_memory(self.subject.tid, address, length) if length else b""
        except PermissionError:
            raise OSError(errno.EACCES, "unreadable") from None

    def still_there(self) -> None:
        """OSError unless what was read so far is about the task that waits for us."""
        if not self.listener.valid(self.notif):
            raise OSError(errno.EINTR, "the program has gone away")

    def store(self, address: int, data: bytes) -> None:
        """Write to the program; OSError EFAULT."""
        try:
            write_memory(self.subject.tid, address, data)
        except PermissionError:
            raise OSError(errno.EFAULT, "unwritable") from None


class closing:
    """Close the duplicate unless a thread has it now."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock.sock

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not Later:
            self._sock.close()


def duplicate(tid: int, fd: int) -> int:
    """A duplicate of the task's descriptor; OSError EBADF."""
    if fd < 0:
        raise OSError(errno.EBADF, "negative descriptor")
    pidfd = procfs.pidfd_open_thread(tid)
    try:
        return procfs.get_fd(pidfd, fd)
    except PermissionError:
        raise OSError(errno.EACCES, "out of reach") from None
    finally:
        os.close(pidfd)


def sleeps(sock: Socket, flags: int) -> bool:
    """May a send sleep?"""
    return sock.blocking and not flags & socket.MSG_DONTWAIT


def cookie_of(sock: socket.socket) -> int:
    """SO_COOKIE: which socket it is."""
    value: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0]  # SO_COOKIE
    return value


def time_limit(sock: socket.socket, option: int) -> float | None:
    """SO_RCVTIMEO or SO_SNDTIMEO in seconds; None: for ever."""
    seconds, micros = struct.unpack("=qq", sock.getsockopt(socket.SOL_SOCKET, option, 16))
    return seconds + micros / 1e6 if seconds or micros else None


def store_address(call: Call, address: bytes) -> None:
    """The peer's address where accept wants it; as the kernel does, cut to the room there, with its true length."""
    pointer, length_at = call.notif.args[1], call.notif.args[2]
    if not pointer:
        return
    (room,) = struct.unpack("=i", call.memory(length_at, 4))
    if room < 0:
        raise OSError(errno.EINVAL, "negative length")
    if room and address:
        call.store(pointer, address[:room])
    call.store(length_at, struct.pack("=i", len(address)))


def shown(where: calls.Target) -> str:
    """For people."""
    if len(where.packed) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, where.packed)}:{where.port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, where.packed)}]:{where.port}"


def take(call: Call, dir_: Dir) -> Socket:
    """The socket of the first argument, if the call is to be performed; else Continue. OSError: EBADF, ENOTSOCK."""
    # Who may not receive from somebody may get a port by sending.
    if not (call.subject.restricts(dir_) or call.subject.restricts("in", "udp")):
        raise Continue
    fd = duplicate(call.subject.tid, call.notif.int_arg(0))
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise
    domain = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
    proto = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    protos: tuple[Proto, ...] = ("tcp", "udp")
    if proto in _DATAGRAM:
        protos = ("udp",)
    elif proto in _STREAM:
        protos = ("tcp",)
    taken = Socket(sock, domain, protos, os.get_blocking(fd))
    try:
        alone = procfs.rights(call.subject.tid).threads == 1
        call.still_there()
    except OSError:
        sock.close()
        raise
    if not taken.internet and alone:
        sock.close()
        raise Continue
    return taken
