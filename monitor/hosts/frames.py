# SPDX-License-Identifier: Apache-2.0
"""What two monitors say to each other once each knows who the other is: fixed records, little-endian, strictly read.

A record is one byte of type and a body of a fixed size; only DATA has bytes behind it.  The same records travel in
the TCP stream between the monitors and, when there are queue pairs, in RDMA SENDs; there DATA is an RDMA WRITE
instead.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Any, Final, NamedTuple, TypeAlias

from monitor.match import Address
from sdlib.wire.left import REASONS

VERSION: Final = 8
DATA_MAX: Final = 65536
"""Bytes of a ring in one DATA record."""
_ADDRESS: Final = "16sH"


class BadPeer(Exception):
    """The other monitor said what no honest one can; str() is one line."""


class Type(IntEnum):
    """First byte of a record."""

    SEEK = 1
    ACCEPT = 2
    GONE = 3
    RESUME = 4
    WORDS = 5
    DATA = 6
    PORT = 7
    SWITCH = 8
    PING = 9
    READY = 10
    CREDIT = 11
    BELL = 12


class Seek(NamedTuple):
    """A program of mine has offered this end; have you the other one? Addresses as seen from the sender.

    `options`, `send_scale`, `receive_scale`: what TCP_INFO says, which the two ends of one connection agree in.
    """

    local: Address
    peer: Address
    ring_bytes: int
    options: int
    send_scale: int
    receive_scale: int


class Accept(NamedTuple):
    """I have the other end: let it be the connection `far_id`."""

    far_id: bytes
    local: Address
    peer: Address
    ring_bytes: int


class Gone(NamedTuple):
    """My end is over, or never came about, or goes on by its own TCP; I send nothing more for it.

    `left`: of those that go on, why (`Left`).
    """

    far_id: bytes
    left: int = 0


class Resume(NamedTuple):
    """I hold this connection, call it `slot`, and have all of your bytes before `landed`: go on from there.

    `address`, `rkey`: where an RDMA WRITE finds my copy of your ring. `reply` 1: say RESUME, too.
    """

    far_id: bytes
    slot: int
    ring_bytes: int
    reply: int
    landed: int
    address: int
    rkey: int


class Words(NamedTuple):
    """My program's words as they are after all bytes that I have sent before this record. `slot` is the receiver's.

    `heard` 1: I have told my program that yours has switched.
    """

    slot: int
    hint: int
    go_back: int
    attached: int
    settle_ask: int
    settle_answer: int
    bells_asked: int
    head: int
    sw_ring: int
    heard: int


class Credit(NamedTuple):
    """My program has read so far. The loop in C says so by itself, and heeds it (sdlib/src/verbs/say.c)."""

    slot: int
    head: int


class Bell(NamedTuple):
    """My program sleeps, and has asked for so many doorbells by now. The loop in C says so by itself, and rings."""

    slot: int
    asked: int


class Data(NamedTuple):
    """The `size` bytes of my program's ring from counter `at` on; they follow."""

    slot: int
    size: int
    at: int


class Port(NamedTuple):
    """My queue pair. `lid`: of its port, in a fabric of InfiniBand; 0: Ethernet."""

    number: int
    sequence: int
    mtu: int
    depth: int
    gid: bytes
    lid: int = 0


class Ready(NamedTuple):
    """My queue pair knows yours: you may use it."""


class Switch(NamedTuple):
    """The last record in the TCP stream: what follows comes by the queue pair."""


class Ping(NamedTuple):
    """I am there."""


Record: TypeAlias = Seek | Accept | Gone | Resume | Words | Credit | Bell | Data | Port | Ready | Switch | Ping
_LAYOUTS: Final[dict[Type, tuple[type[Record], Struct]]] = {
    Type.SEEK: (Seek, Struct(f"<{_ADDRESS}{_ADDRESS}IBBB")),
    Type.ACCEPT: (Accept, Struct(f"<16s{_ADDRESS}{_ADDRESS}I")),
    Type.GONE: (Gone, Struct("<16sB")),
    Type.RESUME: (Resume, Struct("<16sIIIQQI")),
    Type.WORDS: (Words, Struct("<IIIIIIIQQB")),
    Type.DATA: (Data, Struct("<IIQ")),
    Type.PORT: (Port, Struct("<IIII16sH")),
    Type.SWITCH: (Switch, Struct("<")),
    Type.PING: (Ping, Struct("<")),
    Type.READY: (Ready, Struct("<")),
    Type.CREDIT: (Credit, Struct("<IQ")),
    Type.BELL: (Bell, Struct("<II")),
}
_TYPES: Final = {cls: (kind, body) for kind, (cls, body) in _LAYOUTS.items()}


def encode(record: Record) -> bytes:
    """Its bytes; those of the ring go behind a DATA."""
    kind, body = _TYPES[type(record)]
    fields: list[Any] = []
    for value in record:
        if isinstance(value, Address):
            fields += [value.ip, value.port]
        else:
            fields.append(value)
    return bytes((kind,)) + body.pack(*fields)


def decode(data: bytes | bytearray | memoryview, start: int) -> tuple[Record, int] | None:
    """The record that begins at `start`, and where it ends; None if it is not all there. Raises BadPeer."""
    if start >= len(data):
        return None
    try:
        cls, body = _LAYOUTS[Type(data[start])]
    except ValueError:
        raise BadPeer(f"unknown record {data[start]}") from None
    end = start + 1 + body.size
    if end > len(data):
        return None
    values = list(body.unpack_from(data, start + 1))
    if cls is Seek or cls is Accept:
        first = 0 if cls is Seek else 1
        local, peer = values[first:first + 2], values[first + 2:first + 4]
        values[first:first + 4] = [Address(local[0], 0, local[1]), Address(peer[0], 0, peer[1])]
    record = cls(*values)
    if isinstance(record, Data) and not 0 < record.size <= DATA_MAX:
        raise BadPeer(f"DATA of {record.size} bytes")
    if isinstance(record, Gone) and record.left and record.left not in REASONS:
        raise BadPeer(f"goes back for a reason {record.left}")
    return record, end
