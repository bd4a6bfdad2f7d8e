# SPDX-License-Identifier: Apache-2.0
"""The channel to the keeper: datagrams of launch/sdrun.h, struct message."""

from __future__ import annotations

import enum
import os
import socket
import struct
from collections.abc import Iterable

from sdlib import compact
from sdlib.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_HEADER: Final = struct.Struct("=IIII")
TEXT_BYTES: Final = 2048
MESSAGE_BYTES: Final = _HEADER.size + TEXT_BYTES


class Kind(enum.IntEnum):
    """enum message_kind."""

    LISTENER = 1
    VERDICT = 2
    READY = 3
    NOTIF = 4
    GO = 5
    KEEP = 6
    DROP = 7
    CLEAR = 8
    ALONE = 9


VERDICT_URING_ALLOWED: Final = 1
VERDICT_DENY: Final = {"tcp": 2, "udp": 4}
NOTIF_ANSWERED: Final = 1


class KeeperGone(Exception):
    """The other end of the channel is closed: no listener will come."""


@dataclass(frozen=True)
class Record:
    """What a supervisor has put into keeping (vault.py); `fd` -1: none."""

    number: int
    what: dict[str, Any]
    fd: int

    def close(self) -> None:
        """It is of no use."""
        if self.fd >= 0:
            os.close(self.fd)


@dataclass(frozen=True)
class Message:
    """One datagram; `fd` is the caller's to close."""

    kind: int
    status: int
    flags: int
    payload: bytes
    fd: int | None

    def record(self) -> Record:
        """Of KEEP."""
        return Record(self.status, compact.loads(self.payload.rstrip(b"\0")), -1 if self.fd is None else self.fd)


class Control:
    """Our end of the channel."""

    def __init__(self, fd: int) -> None:
        """Take over descriptor `fd`."""
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)

    def fileno(self) -> int:
        """Readable when the keeper has received something for us, and when it is no more."""
        return self._socket.fileno()

    def hear(self) -> bool:
        """Both have been heard of by that; False: it is no more."""
        try:
            while self._socket.recv(1, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _send(self, kind: Kind, status: int = 0, flags: int = 0, payload: bytes = b"") -> None:
        body = payload[:TEXT_BYTES - 1].ljust(TEXT_BYTES, b"\0")
        self._socket.send(_HEADER.pack(kind, status, flags, 0) + body)

    def verdict(self, status: int, text: str = "", *, uring_allowed: bool = False, denied: Iterable[str] = ()) -> None:
        """Tell the launcher to start (status 0), or what to print and exit with.

        `denied`: protocols ("tcp", "udp") of which some program may be denied something.
        """
        flags = VERDICT_URING_ALLOWED if uring_allowed else 0
        for proto in denied:
            flags |= VERDICT_DENY[proto]
        self._send(Kind.VERDICT, status, flags, text.encode(errors="replace"))

    def give(self, listener: int) -> None:
        """The keeper holds it as well, from now on."""
        body = _HEADER.pack(Kind.LISTENER, 0, 0, 0) + bytes(TEXT_BYTES)
        socket.send_fds(self._socket, [body], [listener])

    def alone(self) -> None:
        """We leave, and nobody is to come after us: the keeper answers from now on."""
        self._send(Kind.ALONE)

    def ready(self) -> None:
        """From now on the keeper may hand over."""
        self._send(Kind.READY)

    def keep(self, number: int, text: bytes, fd: int, pid: int) -> None:
        """Have the keeper keep this; a duplicate of `fd` (-1: none). `pid`: see vault.c. OSError: it does not read."""
        header = _HEADER.pack(Kind.KEEP, number, pid, 0)
        data, fds = header + text.ljust(TEXT_BYTES, b"\0"), [fd] if fd >= 0 else []
        socket.send_fds(self._socket, [data], fds, socket.MSG_DONTWAIT)

    def drop(self, number: int) -> None:
        """It need not keep that any more. OSError: it does not read."""
        self._send_now(Kind.DROP, number)

    def clear(self) -> None:
        """Nor anything else. OSError: it does not read."""
        self._send_now(Kind.CLEAR, 0)

    def _send_now(self, kind: Kind, number: int) -> None:
        self._socket.send(_HEADER.pack(kind, number, 0, 0), socket.MSG_DONTWAIT)

    def receive(self) -> Message:
        """Wait for the next datagram; KeeperGone at the end of the channel."""
        data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
        if len(data) < _HEADER.size:
            raise KeeperGone
        kind, status, flags, _ = _HEADER.unpack_from(data)
        return Message(kind, status, flags, data[_HEADER.size:], fds[0] if fds else None)
