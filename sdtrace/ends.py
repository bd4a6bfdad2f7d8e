# SPDX-License-Identifier: Apache-2.0
"""One end of a connection on shared memory, while all who use it stand still: its socket, its rings, and its block."""

from __future__ import annotations

import fcntl
import mmap
import socket
import struct
import termios

from sdlib import abi
from sdlib.records import dataclass
from sdtrace.held import Held, Key
from sdtrace.ptrace import RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_TCP_INFO, _RECEIVED_AT, _SND_WND = 11, 128, 228
_BUF_LOCK, _LOCKED_SND = 72, 1
_ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE = 1, 4, 5, 7
_HEARING: Final = frozenset({_ESTABLISHED, FIN_WAIT1, FIN_WAIT2})


class NotNow(RemoteError):
    """This connection cannot be moved at this moment."""

    def __init__(self, key: Key, why: str) -> None:
        super().__init__(f"connection {key.block}: {why}", transient=True)


@dataclass
class End:
    """One of ours, whose program stands still."""

    key: Key
    held: Held
    sock: socket.socket
    memory: mmap.mmap
    words: Any

    @property
    def block(self) -> Any:
        return self.key.area.view.block[self.key.block]

    @property
    def segment(self) -> Any:
        return abi.ffi.cast("struct sd_seg *", self.words)

    @property
    def tx(self) -> Any:
        return self.segment.dir[self.held.side]

    @property
    def rx(self) -> Any:
        return self.segment.dir[1 - self.held.side]

    @property
    def ring_bytes(self) -> int:
        return (len(self.memory) - abi.const.SD_SEG_HDR_BYTES) // 2

    @property
    def connected(self) -> bool:
        return bool(self.block.role == 1)

    def close(self) -> None:
        abi.ffi.release(self.words)
        self.memory.close()
        self.sock.close()


def state(sock: socket.socket) -> int:
    """TCP_ESTABLISHED, ..."""
    return sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 8)[0]


def is_over(sock: socket.socket) -> bool:
    """The peer sends nothing any more."""
    return state(sock) not in _HEARING


def read_so_far(sock: socket.socket) -> int:
    """Bytes of the stream that were read; of a closed connection that is not known (sock/switch.c)."""
    info = sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 256)
    received = struct.unpack_from("=Q", info, _RECEIVED_AT)[0] - (info[0] not in _HEARING)
    inline = sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # else FIONREAD counts up to urgent data
    unread = queued(sock, termios.FIONREAD)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    return int(received) - unread


def room(sock: socket.socket) -> int:
    """Bytes that its kernel takes now though its peer reads nothing. As in sdlib/src/sock/life.c, `sd_tx_limit`."""
    buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    try:
        chosen = sock.getsockopt(socket.SOL_SOCKET, _BUF_LOCK) & _LOCKED_SND
    except OSError:  # before Linux 5.14 nobody is told
        chosen = 1
    info = sock.getsockopt(socket.SOL_TCP, _TCP_INFO, _SND_WND + 4)
    window = struct.unpack_from("=I", info, _SND_WND)[0] if len(info) == _SND_WND + 4 else 0
    return int(window) + (buffer // 2 if chosen else buffer - buffer // 16) - queued(sock, termios.TIOCOUTQ)


def queued(sock: socket.socket, what: int) -> int:
    """FIONREAD, TIOCOUTQ."""
    value: int = struct.unpack("=i", fcntl.ioctl(sock.fileno(), what, bytes(4)))[0]
    return value
