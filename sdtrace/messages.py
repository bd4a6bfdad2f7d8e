# SPDX-License-Identifier: Apache-2.0
"""What a program wants to send: struct msghdr and all that it points to, copied once and never looked at again.

Everything here is the word of a program that may be hostile; lengths are bounded before anything is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

from sdlib.records import NamedTuple
from sdtrace.calls import ADDRESS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

Reader = Callable[[int, int], bytes]
"""(address, length) -> bytes; OSError EFAULT."""

_MSGHDR: Final = struct.Struct("=QixxxxQQQQi4x")
_MMSGHDR_BYTES: Final = 64
_IOVEC: Final = struct.Struct("=QQ")
_CMSG: Final = struct.Struct("=Qii")
_IOV_MAX: Final = 1024
_CONTROL_MAX: Final = 65536
_SCM_FDS_MAX: Final = 253
_USER_END: Final = (1 << 47) - 4096
"""The kernel refuses buffers beyond the user half of the address space, also empty ones, which are not read here."""


class Message(NamedTuple):
    """One message; `address` None: to the peer."""

    address: bytes | None
    data: bytes
    control: bytes

    @contextlib.contextmanager
    def control_here(self, duplicate: Callable[[int], int]) -> Iterator[bytes]:
        """The control data with descriptors of ours in place of the program's."""
        ours: list[int] = []
        try:
            yield _translated(self.control, duplicate, ours)
        finally:
            for fd in ours:
                os.close(fd)


def _translated(control: bytes, duplicate: Callable[[int], int], ours: list[int]) -> bytes:
    """Descriptors that were made are appended to `ours` at once, so that none is lost on the way out."""
    result, at = bytearray(control), 0
    while at + _CMSG.size <= len(control):
        length, level, kind = _CMSG.unpack_from(control, at)
        if length < _CMSG.size or length > len(control) - at:
            break  # the kernel says EINVAL
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            count = (length - _CMSG.size) // 4
            if count > _SCM_FDS_MAX:
                raise OSError(errno.EINVAL, "too many descriptors")
            for place in range(at + _CMSG.size, at + _CMSG.size + 4 * count, 4):
                ours.append(duplicate(struct.unpack_from("=i", control, place)[0]))
                struct.pack_into("=i", result, place, ours[-1])
        at += (length + 7) & ~7
    return bytes(result)


def read_message(read: Reader, pointer: int, data_max: int) -> Message:
    """The message at `pointer`, with at most `data_max` bytes of data; OSError as the kernel has it."""
    name, namelen, iov, iovlen, control, controllen, _ = _MSGHDR.unpack(read(pointer, _MSGHDR.size))
    if iovlen > _IOV_MAX:
        raise OSError(errno.EMSGSIZE, "too many buffers")
    if name and namelen < 0:
        raise OSError(errno.EINVAL, "negative length")
    if controllen > _CONTROL_MAX:
        raise OSError(errno.ENOBUFS, "too much control data")
    address = read(name, min(namelen, ADDRESS_MAX)) if name and namelen else None
    parts, left = [], data_max
    for base, length in _IOVEC.iter_unpack(read(iov, iovlen * _IOVEC.size) if iovlen else b""):
        if base > _USER_END and not length:
            raise OSError(errno.EFAULT, "no address of a program")
        parts.append(read(base, min(length, left)) if min(length, left) else b"")
        left -= len(parts[-1])
    return Message(address, b"".join(parts), read(control, controllen) if controllen else b"")


def read_messages(read: Reader, pointer: int, count: int, data_max: int) -> Iterator[tuple[int, Message]]:
    """Those of sendmmsg, each with the address for its length; read one by one, as the kernel does."""
    left = data_max
    for index in range(min(count, _IOV_MAX)):
        at = pointer + index * _MMSGHDR_BYTES
        message = read_message(read, at, max(left, 65536))
        left -= len(message.data)
        yield at + _MSGHDR.size, message
        if left <= 0:
            return
