# SPDX-License-Identifier: Apache-2.0
"""Calls that ask what is ready, or wait until something is."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from tests.differential.caller import MINUS_ONE, Call, Caller

_POLLFD: Final = struct.Struct("=ihh")
_EPOLL: Final = struct.Struct("=IQ")
_TIMESPEC: Final = struct.Struct("=qq")


def _revents(entries: bytes) -> str:
    return str([f"{fd}:{revents & 0xFFFF:#x}" for fd, _, revents in _POLLFD.iter_unpack(entries)])


def _bits(fds: Sequence[int]) -> bytes:
    return sum(1 << fd for fd in fds).to_bytes(128, "little")


def _members(bits: bytes) -> list[int]:
    whole = int.from_bytes(bits, "little")
    return [fd for fd in range(1024) if whole >> fd & 1]


class Waiting(Caller):
    """select, poll, epoll."""

    def poll(self, entries: Sequence[tuple[int, int]], timeout: int = 0) -> Call:
        """Entries are (descriptor, events); revents show."""
        memory = self.link.memory()
        where = memory.both(b"".join(_POLLFD.pack(fd, events, 0x7777) for fd, events in entries))
        return self.sys("poll", where, len(entries), timeout, memory=memory, text=f"{list(entries)}, {timeout}",
                        shown=lambda _, data: _revents(data[0]))

    def ppoll(self, entries: Sequence[tuple[int, int]], seconds: float | None = 0, mask: int | None = None) -> Call:
        """The time left does not show."""
        memory = self.link.memory()
        where = memory.both(b"".join(_POLLFD.pack(fd, events, 0x7777) for fd, events in entries))
        until = 0 if seconds is None else memory.put(_TIMESPEC.pack(int(seconds), int(seconds % 1 * 1e9)))
        masked = 0 if mask is None else memory.put(struct.pack("=Q", mask))
        return self.sys("ppoll", where, len(entries), until, masked, 8, memory=memory,
                        text=f"{list(entries)}, {seconds}, {mask}", shown=lambda _, data: _revents(data[0]))

    def select(self, read: Sequence[int] = (), write: Sequence[int] = (), other: Sequence[int] = (),
               seconds: float | None = 0) -> Call:
        """The sets afterwards show."""
        memory = self.link.memory()
        sets = [_bits(fds) for fds in (read, write, other)]
        where = [memory.both(bits) for bits in sets]
        until = 0 if seconds is None else memory.put(_TIMESPEC.pack(int(seconds), int(seconds % 1 * 1e6)))
        highest = max((*read, *write, *other), default=-1) + 1
        return self.sys("select", highest, *where, until, memory=memory,
                        text=f"{list(read)}, {list(write)}, {list(other)}, {seconds}",
                        shown=lambda value, data: str([_members(bits) for bits in data[:3]]) if value >= 0 else "")

    def pselect(self, read: Sequence[int] = (), write: Sequence[int] = (), seconds: float | None = 0,
                mask: int | None = None) -> Call:
        """pselect6."""
        memory = self.link.memory()
        where = [memory.both(_bits(fds)) for fds in (read, write)]
        until = 0 if seconds is None else memory.put(_TIMESPEC.pack(int(seconds), int(seconds % 1 * 1e9)))
        masked = 0 if mask is None else memory.put(struct.pack("=Q", mask))
        pair = memory.put(struct.pack("=QQ", masked, 8))
        return self.sys("pselect6", max((*read, *write), default=-1) + 1, *where, 0, until, pair, memory=memory,
                        text=f"{list(read)}, {list(write)}, {seconds}, {mask}",
                        shown=lambda value, data: str([_members(bits) for bits in data[:2]]) if value >= 0 else "")

    def epoll(self, flags: int = 0) -> int:
        """epoll_create1."""
        return self.sys("epoll_create1", flags).value

    def ctl(self, ep: int, op: str, fd: int, events: int = 0, data: int | None = None) -> Call:
        """epoll_ctl: add, del or mod."""
        memory = self.link.memory()
        where = memory.put(_EPOLL.pack(events, (fd if data is None else data) & MINUS_ONE))
        number = {"add": 1, "del": 2, "mod": 3}[op]
        return self.sys("epoll_ctl", ep, number, fd, where, memory=memory, text=f"{ep}, {op}, {fd}, {events:#x}")

    def wait(self, ep: int, most: int = 16, timeout: int = 0, *, as_reported: bool = False) -> Call:
        """epoll_wait; events show in the order of their data, or as they came."""
        memory = self.link.memory()
        where = memory.room(most * _EPOLL.size)

        def shown(value: int, data: list[bytes]) -> str:
            found = [_EPOLL.unpack_from(data[0], i * _EPOLL.size)[::-1] for i in range(max(value, 0))]
            return str([f"{what}:{events:#x}" for what, events in (found if as_reported else sorted(found))])

        return self.sys("epoll_wait", ep, where, most, timeout, memory=memory, text=f"{ep}, {most}, {timeout}",
                        shown=shown)
