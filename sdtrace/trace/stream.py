# SPDX-License-Identifier: Apache-2.0
"""What a trace file is: a magic, then chunks, each a header and a payload. Native byte order; nothing is compressed.

    RECORDS  of one channel (`source`): struct sd_trace_record, bytes of connections behind those that say so
    LOST     u64: so many records of that channel found no room
    CLOCK    u64 TSC, u64 nanoseconds since 1970, read together before a round of the drain
    PROGRAM  u64 pid, path of what it runs
    END      the tree has ended, and all of it is here
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from sdlib import abi

MAGIC: Final = b"sdtrace\1"
_HEADER: Final = struct.Struct("=IIQ")
_WORD: Final = struct.Struct("=Q")
_CLOCK: Final = struct.Struct("=QQ")
RECORD: Final = struct.Struct("=QQqQQQQHBBI")
_CHUNK_MAX: Final = 1 << 26
_NS_MAX: Final = 1 << 62
_OTHER_WORLD: Final = abi.const.SD_TRACE_OWNER
_PAYLOAD: Final = (abi.const.SD_TRACE_OPEN, abi.const.SD_TRACE_DATA)

assert RECORD.size == abi.sizeof("struct sd_trace_record")


class Kind(IntEnum):
    """Of a chunk."""

    RECORDS = 1
    LOST = 2
    CLOCK = 3
    PROGRAM = 4
    END = 5


class NotATrace(Exception):
    """The file is something else, or is broken; the text says where."""


def chunk(kind: Kind, source: int, payload: bytes = b"") -> bytes:
    """One chunk."""
    return _HEADER.pack(kind, len(payload), source) + payload


def lost(source: int, count: int) -> bytes:
    """`count` records of a channel are missing."""
    return chunk(Kind.LOST, source, _WORD.pack(count))


def clock(tsc: int, ns: int) -> bytes:
    """Two clocks at one moment."""
    return chunk(Kind.CLOCK, 0, _CLOCK.pack(tsc, ns))


def program(pid: int, exe: str) -> bytes:
    """What a process runs from now on."""
    return chunk(Kind.PROGRAM, pid, exe.encode(errors="surrogateescape"))


class Record(NamedTuple):
    """struct sd_trace_record, and who wrote it. A tuple, since there are millions."""

    tsc: int
    ticks: int
    result: int
    args: tuple[int, int, int, int]
    nr: int
    path: int
    bits: int
    sock: int
    pid: int
    tid: int
    payload: bytes = b""


@dataclass(frozen=True)
class Lost:
    """Records that are missing, at about this place."""

    count: int


@dataclass(frozen=True)
class Program:
    """A process runs something else from here on."""

    pid: int
    exe: str


@dataclass(frozen=True)
class End:
    """Nothing is missing behind."""


Event = Record | Lost | Program | End


def _completed(record: Record) -> int:
    return record.tsc + record.ticks


class Clock:
    """TSC to seconds since 1970, by the pairs read so far."""

    def __init__(self) -> None:
        """Knows nothing yet: one tick is one nanosecond."""
        self._first: tuple[int, int] | None = None
        self._last: tuple[int, int] = (0, 0)
        self.ns_per_tick = 1.0

    def add(self, tsc: int, ns: int) -> None:
        """A pair; the longer they are apart, the better the rate."""
        if self._first is None:
            self._first = (tsc, ns)
        elif tsc > self._first[0]:
            self.ns_per_tick = (ns - self._first[1]) / (tsc - self._first[0])
        self._last = (tsc, ns)

    def ns(self, tsc: int) -> int:
        """Nanoseconds since 1970."""
        return min(max(self._last[1] + round((tsc - self._last[0]) * self.ns_per_tick), 0), _NS_MAX)

    def seconds(self, ticks: int) -> float:
        """A duration."""
        return ticks * self.ns_per_tick / 1e9


class Readable(Protocol):
    """Where a stream is read from."""

    def read(self, size: int, /) -> bytes:
        """`size` bytes, fewer at the end only."""


class Reader:
    """Events of a stream. Records come in the order in which they were completed, as far as anybody can tell.

    Each round of the drain begins with a CLOCK, so what is older than the round before has been seen of every thread; a
    thread that was stopped in the middle of writing comes late.
    """

    def __init__(self, file: Readable) -> None:
        """NotATrace at once if it is none."""
        self._file = file
        self.clock = Clock()
        self._owners: dict[int, tuple[int, int]] = {}
        self._rest: dict[int, bytes] = {}
        self._pending: list[Record] = []
        self._round = 0
        if file.read(len(MAGIC)) != MAGIC:
            raise NotATrace("does not begin as a trace of sdrun does")

    def __iter__(self) -> Iterator[Event]:
        for kind, source, payload in self._chunks():
            if kind == Kind.RECORDS:
                self._pending += self._records(source, payload)
            elif kind == Kind.LOST:
                yield Lost(_WORD.unpack(payload)[0])
            elif kind == Kind.CLOCK:
                tsc, ns = _CLOCK.unpack(payload)
                self.clock.add(tsc, ns)
                yield from self._before(self._round)
                self._round = tsc
            elif kind == Kind.PROGRAM:
                yield Program(source, payload.decode(errors="replace"))
            elif kind == Kind.END:
                yield from self._before(None)
                yield End()
            else:
                raise NotATrace(f"chunk of unknown kind {kind}")
        yield from self._before(None)

    def _before(self, tsc: int | None) -> list[Record]:
        self._pending.sort(key=_completed)
        cut = len(self._pending) if tsc is None else bisect_left(self._pending, tsc, key=_completed)
        ready, self._pending = self._pending[:cut], self._pending[cut:]
        return ready

    def _chunks(self) -> Iterator[tuple[int, int, bytes]]:
        while True:
            head = self._file.read(_HEADER.size)
            if len(head) < _HEADER.size:
                return
            kind, size, source = _HEADER.unpack(head)
            if size > _CHUNK_MAX:
                raise NotATrace(f"chunk of {size} bytes")
            payload = self._file.read(size)
            if len(payload) < size:
                return  # it is still being written
            yield kind, source, payload

    def _records(self, source: int, data: bytes) -> Iterator[Record]:
        """Whole records with their bytes; what a hostile program has written in between is read as it stands."""
        data = self._rest.pop(source, b"") + data
        at = 0
        pid, tid = self._owners.get(source, (0, 0))
        while at + RECORD.size <= len(data):
            tsc, ticks, result, a, b, c, d, nr, path, bits, sock = RECORD.unpack_from(data, at)
            behind = result if nr in _PAYLOAD and 0 < result <= _CHUNK_MAX else 0
            end = at + RECORD.size + -(-behind // RECORD.size) * RECORD.size
            if end > len(data):
                break
            if nr == _OTHER_WORLD:
                pid, tid = self._owners[source] = (a & 0xFFFFFFFF, b & 0xFFFFFFFF)
            else:
                payload = data[at + RECORD.size:at + RECORD.size + behind]
                yield Record(tsc, ticks, result, (a, b, c, d), nr, path, bits, sock, pid, tid, payload)
            at = end
        if at < len(data):
            self._rest[source] = data[at:]
