# SPDX-License-Identifier: Apache-2.0
"""Socket calls on descriptors of our own, with addresses as bytes: exactly what a program had passed, and errno as a
number.

Python's socket methods parse addresses, retry after signals and turn errors into exceptions; what a program is to
see must come from the kernel as it is.  Every function returns the kernel's value, or -errno.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from sdlib.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ADDRESS_MAX: Final = 128
"""sizeof(struct sockaddr_storage); the kernel takes no longer ones."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_VOID, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
_NR_CONNECT, _NR_BIND, _NR_LISTEN, _NR_ACCEPT4, _NR_SENDTO, _NR_SENDMSG = 42, 49, 50, 288, 44, 46
_NR_GETPEERNAME: Final = 52
_libc.syscall.restype = _LONG


def _call(number: int, *args: object) -> int:
    """One system call, without the cancellation points and retries of any library."""
    result: int = _libc.syscall(_LONG(number), *args)
    return result if result >= 0 else -ctypes.get_errno()


def connect(fd: int, address: bytes) -> int:
    """connect(2)."""
    return _call(_NR_CONNECT, _INT(fd), address, _INT(len(address)))


def bind(fd: int, address: bytes) -> int:
    """bind(2)."""
    return _call(_NR_BIND, _INT(fd), address, _INT(len(address)))


def listen(fd: int, backlog: int) -> int:
    """listen(2)."""
    return _call(_NR_LISTEN, _INT(fd), _INT(backlog))


def accept(fd: int, flags: int) -> tuple[int, bytes]:
    """accept4(2); always close-on-exec here. The peer's address, whole."""
    buffer = ctypes.create_string_buffer(ADDRESS_MAX)
    length = ctypes.c_int(ADDRESS_MAX)
    got = _call(_NR_ACCEPT4, _INT(fd), buffer, ctypes.byref(length), _INT(flags | socket.SOCK_CLOEXEC))
    return got, buffer.raw[: max(length.value, 0)] if got >= 0 else b""


def getpeername(fd: int) -> bytes | int:
    """getpeername(2): the peer's address, whole, or -errno."""
    buffer = ctypes.create_string_buffer(ADDRESS_MAX)
    length = ctypes.c_int(ADDRESS_MAX)
    got = _call(_NR_GETPEERNAME, _INT(fd), buffer, ctypes.byref(length))
    return buffer.raw[: max(length.value, 0)] if got == 0 else got


def sendto(fd: int, data: bytes, flags: int, address: bytes | None) -> int:
    """sendto(2); never raises SIGPIPE here."""
    flags |= socket.MSG_NOSIGNAL
    target = _VOID(None) if address is None else address
    length = 0 if address is None else len(address)
    return _call(_NR_SENDTO, _INT(fd), data, ctypes.c_size_t(len(data)), _INT(flags), target, _INT(length))


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]


class _Msghdr(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("namelen", ctypes.c_int), ("iov", ctypes.POINTER(_Iovec)), ("iovlen",
        ctypes.c_size_t), ("control", ctypes.c_char_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int),
    ]  # fmt: skip


def sendmsg(fd: int, data: bytes, flags: int, address: bytes | None, control: bytes) -> int:
    """sendmsg(2); never raises SIGPIPE here."""
    iov = _Iovec(data, len(data))
    message = _Msghdr(address, len(address or b""), ctypes.pointer(iov), 1, control or None, len(control), 0)
    return _call(_NR_SENDMSG, _INT(fd), ctypes.byref(message), _INT(flags | socket.MSG_NOSIGNAL))


class Target(NamedTuple):
    """Where a call with an address leads."""

    packed: bytes
    port: int


def target(address: bytes, *, unspec_is_inet: bool) -> Target | None:
    """The internet address that the kernel will see in these bytes; None: another family, or too short for it.

    A connection to "any" address is one to this host itself. `unspec_is_inet`: for bind and datagrams the kernel takes
    AF_UNSPEC in front of an IPv4 address for AF_INET.
    """
    if len(address) < 2:
        return None
    (family,) = struct.unpack_from("=H", address)
    if (family == socket.AF_INET or (unspec_is_inet and family == socket.AF_UNSPEC)) and len(address) >= 16:
        packed = address[4:8]
        return Target(packed if any(packed) else b"\x7f\0\0\1", int.from_bytes(address[2:4], "big"))
    if family == socket.AF_INET6 and len(address) >= 24:
        packed = address[8:24]
        if not any(packed):
            packed = bytes(15) + b"\1"
        elif packed[:12] == bytes(10) + b"\xff\xff" and not any(packed[12:]):
            packed = packed[:12] + b"\x7f\0\0\1"
        return Target(packed, int.from_bytes(address[2:4], "big"))
    return None


BAD_ADDRESS: Final = -errno.EFAULT
