# SPDX-License-Identifier: Apache-2.0
"""Datagrams that carry descriptors (SCM_RIGHTS), received so that no descriptor can be lost on the way.

Kernel facts this relies on (unix(7), and net/core/scm.c): descriptors that find no room in the control buffer are
dropped and MSG_CTRUNC is set, and so it is when the receiver runs out of descriptors (EMFILE); those that were
installed before stay installed and are ours to close. MSG_CMSG_CLOEXEC makes them close-on-exec atomically.
"""

from __future__ import annotations

import os
import socket
from struct import Struct

from sdlib.records import NamedTuple
from sdlib.wire.messages import MAX_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MAX_FDS: Final = 4  # more than any message has, so that "too many" can be seen; the kernel drops the rest
_INT: Final = Struct("i")
# Plain numbers: `&` of an enum's members is a call of Python.
_TRUNC, _CTRUNC, _CLOEXEC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC), int(socket.MSG_CMSG_CLOEXEC)
_NOSIGNAL: Final = int(socket.MSG_NOSIGNAL)
_CONTROL_BYTES: Final = socket.CMSG_SPACE(MAX_FDS * _INT.size)


class Datagram(NamedTuple):
    """One received datagram. `data` is b"" at end of file. `fds` are the receiver's to close.

    `oversized`: the datagram was longer than any message. `fds_lost`: descriptors were dropped by the kernel.
    """

    data: bytes
    fds: tuple[int, ...]
    oversized: bool
    fds_lost: bool


def receive(sock: socket.socket) -> Datagram:
    """The next datagram; OSError as from recvmsg(2) (BlockingIOError when there is none)."""
    data, control, got, _ = sock.recvmsg(MAX_BYTES + 1, _CONTROL_BYTES, _CLOEXEC)
    fds: tuple[int, ...] = ()
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % _INT.size
            fds += tuple(fd for (fd,) in _INT.iter_unpack(payload[:whole]))
    return Datagram(data, fds, bool(got & _TRUNC), bool(got & _CTRUNC))


def send(sock: socket.socket, data: bytes, fd: int = -1) -> None:
    """Send one datagram, with `fd` if that is not negative; OSError as from sendmsg(2). Never raises SIGPIPE."""
    control = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(fd))]
    sock.sendmsg([data], control, _NOSIGNAL)


def close_all(fds: tuple[int, ...]) -> None:
    """Close descriptors that nobody will use."""
    for fd in fds:
        os.close(fd)
