# SPDX-License-Identifier: Apache-2.0
"""Bytes go in front of what a TCP socket has to read, where its peer cannot send them again: TCP_REPAIR.

That needs CAP_NET_ADMIN over the socket's network. The socket leaves its connection without a word on the wire, and
takes it up again under the same names, at the same places of the sequence, with the bytes in its queue. It stays the
same file to all who have it, with its options and in all epoll sets. Meanwhile packets of its peer would find nobody
and be answered with a reset, so none may come: the peer has gone, or stands still with all it has sent arrived.

What appending alone (TCP_RECV_QUEUE) does not do: it leaves a connection whose peer lives acknowledging what was never
sent; behind a FIN, FIONREAD is one short; and no closed socket takes it.

A FIN that had come does not come again: shutdown(SHUT_RD) says the same to whoever reads. A reset is asked of the
kernel by a byte to the peer that has gone, and comes behind the bytes, as it did.

TCP_INFO counts anew from here on, and its peer's does not, so that no position of one means anything to the other: this
connection must not come to a ring any more, whoever has it, and whenever that one comes under sdrun. Its socket says so
by a filter that lets everything through: one that has a filter stays on TCP (sdlib/src/sock/option.c).
"""

from __future__ import annotations

import ctypes
import enum
import fcntl
import os
import socket
import struct
import time
from contextlib import suppress

from sdlib.records import dataclass
from sdtrace import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MAXSEG, _TCP_INFO, _REPAIR, _QUEUE, _QUEUE_SEQ, _OPTIONS, _TIMESTAMP, _WINDOW = 2, 11, 19, 20, 21, 22, 24, 29
_NO_QUEUE, _RECV_QUEUE, _SEND_QUEUE = 0, 1, 2
_ON, _OFF = 1, -1  # TCP_REPAIR_OFF_NO_WP: without a window probe
_HAS_TIMESTAMPS, _HAS_SACK, _HAS_SCALE = 1, 2, 4
_MSS, _SCALE, _SACK, _TIMESTAMPS = 2, 3, 4, 8  # TCPOPT_*
_ATTACH_FILTER: Final = 26
_ALL: Final = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF))  # return ~0
_RCVBUFFORCE: Final = 33
_CLOSE: Final = 7
_SIOCOUTQ: Final = 0x5411
_PIECE: Final = 32 * 1024
_RESET_S: Final = 0.1
_UNSPEC: Final = struct.pack("=H14x", socket.AF_UNSPEC)


class End(enum.Enum):
    """What stands behind the bytes."""

    OPEN = 0
    OVER = 1
    RESET = 2


class Impossible(OSError):
    """Nothing has changed."""


@dataclass
class _Saved:
    sequence: dict[int, int]
    unacknowledged: bytes
    window: tuple[int, ...]
    options: bytes
    timestamp: bytes


def check(sock: socket.socket) -> None:
    """Impossible, where the kernel does not let us."""
    reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    try:
        sock.setsockopt(socket.SOL_TCP, _REPAIR, _ON)
    except OSError as error:
        raise Impossible(error.errno, "the peer cannot send them again, and TCP_REPAIR is not allowed") from error
    sock.setsockopt(socket.SOL_TCP, _REPAIR, _OFF)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


def refill(sock: socket.socket, data: bytes, local: tuple[str, int], peer: tuple[str, int], end: End, *,
           shut: bool, lives: bool) -> None:
    """Have `data` read next, and nothing else but `end`. `shut`: the program has shut its side. `lives`: its peer.

    All that was in the queue has been read, `data` has it. An OSError leaves a connection that is reset.
    """
    reuse, room = (sock.getsockopt(socket.SOL_SOCKET, name) for name in (socket.SO_REUSEADDR, socket.SO_RCVBUF))
    names = [_address(sock, each) for each in (local, peer)]
    saved: _Saved | None = None
    sock.setsockopt(socket.SOL_TCP, _REPAIR, _ON)
    try:
        saved = _save(sock, lives=lives, fin=shut)
        _do(calls.connect(sock.fileno(), _UNSPEC))
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # ECONNABORTED, which we have caused
        _begin(sock, saved, len(data))
        _do(calls.bind(sock.fileno(), names[0]))
        _do(calls.connect(sock.fileno(), names[1]))
        _resume(sock, saved, data)
        _keep_from_rings(sock)
        sock.setsockopt(socket.SOL_TCP, _REPAIR, _OFF)
    except OSError:
        _reset(sock, saved if lives else None, names)
        raise
    finally:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) != room:
                sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, room // 2)
    _finish(sock, end, shut=shut)


def _do(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _address(sock: socket.socket, address: tuple[str, int]) -> bytes:
    """As the kernel has it, with its scope, if it tells; as it was when the connection was offered, if not."""
    packed = socket.inet_pton(sock.family, address[0].partition("%")[0])
    if sock.family == socket.AF_INET:
        return struct.pack("=H", sock.family) + struct.pack(">H", address[1]) + packed + bytes(8)
    scope = sock.getsockname()[3]
    return struct.pack("=H", sock.family) + struct.pack(">HI", address[1], 0) + packed + struct.pack("=I", scope)


def _save(sock: socket.socket, *, lives: bool, fin: bool) -> _Saved:
    sequence, unacknowledged = {}, b""
    for queue in (_RECV_QUEUE, _SEND_QUEUE):
        sock.setsockopt(socket.SOL_TCP, _QUEUE, queue)
        sequence[queue] = struct.unpack("=I", sock.getsockopt(socket.SOL_TCP, _QUEUE_SEQ, 4))[0]
    sequence[_SEND_QUEUE] -= fin
    if lives:
        length = struct.unpack("=i", fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4)))[0]
        unacknowledged = sock.recv(length, socket.MSG_PEEK | socket.MSG_DONTWAIT) if length else b""
        if len(unacknowledged) != length:
            raise Impossible(0, "what it has sent and is not acknowledged cannot be told")
    window = struct.unpack("=5I", sock.getsockopt(socket.SOL_TCP, _WINDOW, 20))
    info = sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 8)
    options = [(_MSS, sock.getsockopt(socket.SOL_TCP, _MAXSEG))]
    if info[5] & _HAS_SCALE:
        options.append((_SCALE, (info[6] & 15) | (info[6] >> 4) << 16))
    options += [(option, 0) for has, option in ((_HAS_SACK, _SACK), (_HAS_TIMESTAMPS, _TIMESTAMPS)) if info[5] & has]
    return _Saved(sequence, unacknowledged, window, b"".join(struct.pack("=II", *each) for each in options),
                  sock.getsockopt(socket.SOL_TCP, _TIMESTAMP, 4))


def _reset(sock: socket.socket, saved: _Saved | None, names: list[bytes]) -> None:
    """`saved`: of a peer that lives. It waits for ever if nobody has left the connection but in silence."""
    with suppress(OSError):
        if saved is not None and sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 8)[0] == _CLOSE:
            _begin(sock, saved, 0)
            calls.bind(sock.fileno(), names[0])  # it may be
            calls.connect(sock.fileno(), names[1])
    with suppress(OSError):
        sock.setsockopt(socket.SOL_TCP, _REPAIR, _OFF)
    calls.connect(sock.fileno(), _UNSPEC)


def _begin(sock: socket.socket, saved: _Saved, length: int) -> None:
    """The places from which the queues are filled up to where they were."""
    for queue, behind in ((_SEND_QUEUE, len(saved.unacknowledged)), (_RECV_QUEUE, length)):
        sock.setsockopt(socket.SOL_TCP, _QUEUE, queue)
        place = struct.pack("=I", (saved.sequence[queue] - behind) % (1 << 32))
        sock.setsockopt(socket.SOL_TCP, _QUEUE_SEQ, place)


def _resume(sock: socket.socket, saved: _Saved, data: bytes) -> None:
    sock.setsockopt(socket.SOL_TCP, _OPTIONS, saved.options)
    sock.setsockopt(socket.SOL_TCP, _TIMESTAMP, saved.timestamp)
    for queue, all_of_it in ((_SEND_QUEUE, saved.unacknowledged), (_RECV_QUEUE, data)):
        sock.setsockopt(socket.SOL_TCP, _QUEUE, queue)
        _fill(sock, all_of_it)
    sock.setsockopt(socket.SOL_TCP, _QUEUE, _NO_QUEUE)
    _, window, most, ours, _ = saved.window
    here = saved.sequence[_RECV_QUEUE]
    sock.setsockopt(socket.SOL_TCP, _WINDOW, struct.pack("=5I", here, window, max(most, window), ours, here))


def _keep_from_rings(sock: socket.socket) -> None:
    with suppress(PermissionError):  # the program has locked one of its own
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(_ALL)))


def _fill(sock: socket.socket, data: bytes) -> None:
    """More than SO_RCVBUF lets in may have been unread: the ring and the kernel's own queue."""
    left = memoryview(data)
    forced = False
    while left:
        try:
            left = left[sock.send(left[:_PIECE], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
        except OSError:
            if forced:
                raise
            forced = True
            sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 2 * len(data) + _PIECE)


def _finish(sock: socket.socket, end: End, *, shut: bool) -> None:
    with suppress(OSError):
        if shut:
            sock.shutdown(socket.SHUT_WR)  # sent again
        elif end is End.RESET:
            sock.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if end is End.RESET:
        _await_reset(sock)
    elif end is End.OVER:
        if sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 8)[0] == _CLOSE:
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # a peer that has gone in an orderly way is no error
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RD)


def _await_reset(sock: socket.socket) -> None:
    deadline = time.monotonic() + _RESET_S
    while sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 8)[0] != _CLOSE and time.monotonic() < deadline:
        time.sleep(0.001)
