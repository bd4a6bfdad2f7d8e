# SPDX-License-Identifier: Apache-2.0
"""The channel to the keeper: datagrams of launch/sdrun.h, struct message."""

from __future__ import annotations

import enum
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sdtrace.keepsake import NOTIF_BYTES

_HEADER: Final = struct.Struct("=IIII")
TEXT_BYTES: Final = 1024
MESSAGE_BYTES: Final = _HEADER.size + TEXT_BYTES


class Kind(enum.IntEnum):
    """enum message_kind."""

    LISTENER = 1
    VERDICT = 2
    READY = 3
    NOTIF = 4
    GO = 5


VERDICT_URING_ALLOWED: Final = 1
VERDICT_DENY: Final = {"tcp": 2, "udp": 4}
NOTIF_ANSWERED: Final = 1


class KeeperGone(Exception):
    """The other end of the channel is closed: no listener will come."""


@dataclass(frozen=True)
class Message:
    """One datagram; `fd` is the caller's to close."""

    kind: int
    flags: int
    payload: bytes
    fd: int | None


class Control:
    """Our end of the channel."""

    def __init__(self, fd: int) -> None:
        """Take over descriptor `fd`."""
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)

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

    def ready(self) -> None:
        """From now on the keeper may hand over."""
        self._send(Kind.READY)

    def receive(self) -> Message:
        """Wait for the next datagram; KeeperGone at the end of the channel."""
        data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
        if len(data) < _HEADER.size:
            raise KeeperGone
        kind, _, flags, _ = _HEADER.unpack_from(data)
        return Message(kind, flags, data[_HEADER.size:_HEADER.size + NOTIF_BYTES], fds[0] if fds else None)
