# SPDX-License-Identifier: Apache-2.0
"""How many bytes the kernel's TCP has carried, for each socket of our own network namespace: what `ss -i` asks for.

The library counts what goes through it, so it knows nothing of connections that it leaves alone; the kernel does
(inet_diag(7): INET_DIAG_INFO has a struct tcp_info). Anybody may ask.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER: Final = struct.Struct("=IHHII")
_ASK: Final = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states; no socket id
_MESSAGE_BYTES: Final = 72  # struct inet_diag_msg; the inode is its last word
_ATTRIBUTE: Final = struct.Struct("=HH")
_INFO: Final = 2  # INET_DIAG_INFO
_BYTES_AT: Final = 120  # struct tcp_info: tcpi_bytes_acked, tcpi_bytes_received, of Linux 4.1 and newer
_CONNECTED: Final = 0xFFF & ~(1 << 10 | 1 << 7)
_ANSWER_MAX: Final = 1 << 16
_PATIENCE_S: Final = 2.0


class Carried(NamedTuple):
    """Bytes that the peer has acknowledged, and that have come from it, since the connection was made."""

    sent: int
    received: int


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size:length]
        data = data[(length + 3) & ~3:]


def _carried(message: bytes) -> Iterator[tuple[int, Carried]]:
    """By inode; nothing for a socket without counts."""
    if len(message) < _MESSAGE_BYTES:
        return
    (inode,) = struct.unpack_from("=I", message, _MESSAGE_BYTES - 4)
    for kind, value in _attributes(message[_MESSAGE_BYTES:]):
        if kind == _INFO and len(value) >= _BYTES_AT + 16 and inode:
            yield inode, Carried(*struct.unpack_from("=QQ", value, _BYTES_AT))


def _messages(diag: socket.socket) -> Iterator[bytes]:
    """Up to the end of the dump."""
    while data := diag.recv(_ANSWER_MAX):
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
                return
            yield data[_HEADER.size:length]
            data = data[(length + 3) & ~3:]


def carried() -> dict[int, Carried]:
    """By the socket's inode; {} where the kernel does not tell (no sock_diag, or a filter)."""
    found: dict[int, Carried] = {}
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diag:  # NETLINK_SOCK_DIAG
        diag.settimeout(_PATIENCE_S)
        for family in (socket.AF_INET, socket.AF_INET6):
            ask = _ASK.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _CONNECTED)
            diag.send(_HEADER.pack(_HEADER.size + len(ask), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + ask)
            for message in _messages(diag):
                found.update(_carried(message))
    return found
