# SPDX-License-Identifier: Apache-2.0
"""What the server keeps for each client, what clients may use, and what they are told."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from struct import Struct

from sdlib import abi
from sdlib.records import NamedTuple
from sdlib.wire.messages import Code
from sdlib.wire.states import Conversation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_UCRED: Final = Struct("3i")  # struct ucred: pid, uid, gid

TEXTS: Final[dict[Code, str]] = {
    Code.TOO_MANY_CLIENTS: "too many clients of this user",
    Code.TOO_SLOW: "you do not read your answers",
    Code.CLOSING: "the monitor is leaving; come again",
    Code.DESCRIPTOR: "not exactly one descriptor of a TCP connection",
    Code.NOT_ESTABLISHED: "the TCP connection is not established",
    Code.SELF_CONNECTED: "the socket is connected to itself",
    Code.BOUND_DEVICE: "the socket is bound to a device",
    Code.RING_SIZE: "ring size is no power of two in the allowed range",
    Code.OTHER_USER: "the other end belongs to another user",
    Code.QUOTA: "too many open offers",
    Code.REPLACED: "a newer offer for this end took its place",
    Code.MEMORY: "ring memory is used up",
    Code.RESOURCES: "the monitor is out of memory or descriptors",
}

OUT_OF: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""Why nobody can be accepted, though somebody waits."""


class Limits(NamedTuple):
    """What clients may use. Counts, and bytes for the ring."""

    clients: int = 4096
    clients_per_uid: int = 1024
    offers_per_client: int = 16384
    offers_per_uid: int = 65536
    ring_bytes: int = abi.const.SD_RING_MAX
    memory: int = 64 << 30
    memory_per_uid: int = 16 << 30


class Name(NamedTuple):
    """The name of our socket, its inode, and how often (seconds) to look whether it is still ours."""

    path: str
    inode: int
    check_s: float

    def is_ours(self) -> bool:
        """Whether clients still find us by it (temporary directories get cleaned)."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False


class Client:
    """One connected client."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.pid, self.uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.tree = int.from_bytes(os.urandom(4), "little") | 1 << 31  # what its partners know it by
        self.talk = Conversation()
        self.since = time.monotonic()
        self.queued: deque[tuple[bytes, int]] = deque()  # datagram, descriptor (ours) or -1
        self.gone = False
