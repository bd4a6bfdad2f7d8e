# SPDX-License-Identifier: Apache-2.0
"""Unread bytes of a ring go by TCP: [S5] of sdlib/src/ring/switch.h, for a producer that is not awake to do it itself.

The other end has passed its socket to a program that cannot see the ring, has stopped reading, and asks.  Our program
sleeps, or computes; so all threads of all processes that use the connection are stopped for a moment, and if none is
inside of the library (rouse.py), what it would have done is done here: a duplicate of its socket sends the bytes, and
the words say where they stand.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import struct
import termios
import time

from sdlib import abi
from sdtrace.held import Held, Key
from sdtrace.image import Image
from sdtrace.ptrace import RemoteError
from sdtrace.rouse import rouse, standing_still
from sdtrace.segments import find_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_TRIES: Final = 20
_TRY_S: Final = 0.01
_SEND_S: Final = 2.0
_TCP_INFO, _ACKED_AT = 11, 120
_ESTABLISHED, _CLOSE_WAIT = 1, 8
_CONNECTED: Final = 1
NODELAY, CORK = 1, 2


class Recaller:
    """For one supervisor."""

    def __init__(self, image: Image | str) -> None:
        """Without an image there are no connections."""
        self._image = image

    def __call__(self, key: Key, held: Held) -> int:
        """0 or an errno: the other end waits no longer then, and its bytes stay where they are."""
        try:
            fd = find_socket(key, held.origin)
        except OSError:
            return errno.ENOTCONN
        with socket.socket(fileno=fd) as sock:
            for _ in range(_TRIES):
                result = self._try(key, held, sock)
                if result != errno.EAGAIN:
                    return result
                time.sleep(_TRY_S)
        return errno.EAGAIN

    def _try(self, key: Key, held: Held, sock: socket.socket) -> int:
        block = key.area.view.block[key.block]
        if isinstance(self._image, str) or held.segment < 0 or not key.current:
            return errno.EBUSY
        try:
            with standing_still(self._image, (key.area, os.fstat(sock.fileno()).st_ino)) as stopped:
                if int(block.tx_mode) != abi.const.SD_MODE_RING:
                    return errno.EALREADY  # it has done so itself, or never was there
                if resend(held.segment, held.side, sock, connected=block.role == _CONNECTED):
                    sock.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, int(block.opt_saved) & NODELAY)
                    sock.setsockopt(socket.SOL_TCP, socket.TCP_CORK, int(bool(int(block.opt_saved) & CORK)))
                    block.tx_mode = abi.const.SD_MODE_BACK
                    _count(key, int(block.owner_pid))
                    for halted in stopped:
                        rouse(self._image, key.area, halted)
        except OSError as error:
            return error.errno or errno.EIO
        except RemoteError:
            return errno.EAGAIN
        return 0


def _count(key: Key, pid: int) -> None:
    for process in key.area.slots():
        if process.pid == pid:
            process.moved_back[abi.REASONS.index("descriptor-passed")] += 1


def resend(segment: int, side: int, sock: socket.socket, *, connected: bool) -> bool:
    """Send what is unread; False: it is not asked for (any more)."""
    size = os.fstat(segment).st_size
    recalled: Any = abi.ffi.new("struct sd_recalled *")
    recalled.ring_bytes = ring = (size - abi.const.SD_SEG_HDR_BYTES) // 2
    with mmap.mmap(segment, size) as memory, abi.ffi.from_buffer(memory) as words:
        position = stream_position(sock, connected=connected)
        recalled.tcp_pos = max(position, 0)
        if position < 0 or not abi.lib.sd_recall_begin(words, side, recalled):
            return False
        try:
            if recalled.broken:
                raise ConnectionAbortedError(errno.ECONNABORTED, "a doorbell stands where the program's bytes should")
            if recalled.ring:
                sock.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                position = stream_position(sock, connected=connected)
            start = abi.const.SD_SEG_HDR_BYTES + side * ring
            first = min(recalled.bytes, ring - recalled.at)
            send_all(sock, memory[start + recalled.at : start + recalled.at + first])
            send_all(sock, memory[start : start + recalled.bytes - first])
        except OSError:
            sock.shutdown(socket.SHUT_RDWR)  # nobody can tell what has arrived
            raise
        abi.lib.sd_recall_end(words, side, position)
    return True


def send_all(sock: socket.socket, data: bytes) -> None:
    """Behind what is queued; BlockingIOError when the peer reads nothing for seconds."""
    deadline = time.monotonic() + _SEND_S
    while data:
        try:
            data = data[sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def stream_position(sock: socket.socket, *, connected: bool) -> int:
    """Bytes that this end has written to the stream; -1: the connection is in no state to tell. As in sock/life.c."""
    for _ in range(100):
        before = sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 256)
        queued = struct.unpack("=i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        after = sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 256)
        if before[0] not in (_ESTABLISHED, _CLOSE_WAIT):
            return -1
        acked = [struct.unpack_from("=Q", info, _ACKED_AT)[0] for info in (before, after)]
        if acked[0] == acked[1]:
            return int(acked[0]) - connected + int(queued)
    return -1
