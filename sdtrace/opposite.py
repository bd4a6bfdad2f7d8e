# SPDX-License-Identifier: Apache-2.0
"""The other end of a TCP connection of this host: what the kernel says of it (sock_diag), and who has it."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

from sdlib.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST, _ERROR = 1, 2
_HEADER: Final = struct.Struct("=IHHII")
_ANY: Final = 0xFFFFFFFF
_INODE_AT: Final = 68  # offsetof(struct inet_diag_msg, idiag_inode); idiag_wqueue stands 8 before
_TIME_WAIT: Final = 6
_PATIENCE_S: Final = 1.0


@dataclass(frozen=True)
class Opposite:
    """`inode` 0: no program has it any more. `unsent`: bytes that its kernel has not got over yet."""

    inode: int
    unsent: int


def opposite(sock: socket.socket, local: tuple[str, int], peer: tuple[str, int], pid: int) -> Opposite | None:
    """Of a connection of `pid`; None: the kernel does not tell."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as diag:
        if os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
            return None  # we would ask about other connections
        diag.settimeout(_PATIENCE_S)
        ask = struct.pack("=BBBBI", sock.family, socket.IPPROTO_TCP, 0, 0, _ANY)
        ask += struct.pack(">HH", peer[1], local[1]) + _packed(sock, peer) + _packed(sock, local)
        ask += struct.pack("=III", 0, _ANY, _ANY)
        diag.send(_HEADER.pack(_HEADER.size + len(ask), _BY_FAMILY, _REQUEST, 0, 0) + ask)
        return _told(diag.recv(4096))
    return None


def _packed(sock: socket.socket, address: tuple[str, int]) -> bytes:
    return socket.inet_pton(sock.family, address[0].partition("%")[0]).ljust(16, b"\0")


def _told(answer: bytes) -> Opposite | None:
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _ERROR:
        return Opposite(0, 0) if struct.unpack_from("=i", answer, _HEADER.size)[0] == -2 else None  # -ENOENT: gone
    if kind != _BY_FAMILY or len(answer) < _HEADER.size + _INODE_AT + 4:
        return None
    unsent, _, inode = struct.unpack_from("=III", answer, _HEADER.size + _INODE_AT - 8)
    gone = answer[_HEADER.size + 1] == _TIME_WAIT
    return Opposite(0 if gone else int(inode), 0 if gone else int(unsent))
