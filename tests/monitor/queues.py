# SPDX-License-Identifier: Apache-2.0
"""Two monitors with queue pairs, without a device: pair.py with the loop in C (CPair) or the one in Python (PyPair).

Below each is a library that is memory of this process (tests/hosted/fakeverbs.c, fakepyverbs.py), whose requests the
test carries out one after the other.  Queues are short, so that they are full most of the time.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

from monitor.hosts import discover, loop, verbs
from monitor.hosts.link import Link
from sdlib import abi
from sdtrace.segments import cookie_of
from tests.monitor import fakepyverbs
from tests.monitor.pair import Pair, Side, sealers

FOUND = discover.Found("fake", 1, 0, bytes(16), 3, 64, 8, 14, 6)
"""Inline size and depth matter."""
GREETING = abi.ffi.sizeof("struct sd_mark")


class Contact:
    """What a queue pair knows of its conversation."""

    def __init__(self, side: QueueSide) -> None:
        self._side = side
        self.peer = SimpleNamespace(name="x")

    def guard(self, step: Callable[[Link], None]) -> None:
        if self._side.link is not None:
            step(self._side.link)


class QueueSide(Side):
    """A host whose monitor has a device."""

    def __init__(self, number: int, seed: int) -> None:
        self.device: Any = self.open()
        self.port: Any = None
        self.woken: list[int] = []
        super().__init__(number, seed)

    def open(self) -> Any:
        raise NotImplementedError

    def pump(self, idle: bool = True) -> bool:
        return not self.dozing and self.poll() | super().pump(idle)

    def poll(self) -> bool:
        """Its loop looks."""
        return bool(self.device.poll())

    def tell_place(self) -> None:
        """Its monitor hears where the program's socket is."""


class PySide(QueueSide):
    """Its loop is Python's."""

    def open(self) -> Any:
        with patch.multiple(verbs, pyverbs=fakepyverbs.modules, _event_fds=fakepyverbs.event_fds):
            return verbs.Device(FOUND)

    def close(self) -> None:
        super().close()
        self.device.close()


class CSide(QueueSide):
    """Its loop is C's, which rings by itself: what it has sent is at the other program's kernel."""

    def __init__(self, number: int, seed: int) -> None:
        self.peer: CSide
        self.own, self.kernel = socket.socketpair()
        self.kernel.setblocking(False)
        super().__init__(number, seed)

    def open(self) -> Any:
        return loop.Device(FOUND)

    def poll(self) -> bool:
        found = super().poll()
        with suppress(BlockingIOError):
            data = self.kernel.recv(4096)
            self.peer.arriving += len(data) if not data[0] else len(data) + 1 - GREETING
        return found

    def tell_place(self) -> None:
        self.mirror.place(os.getpid(), self.own.fileno(), cookie_of(self.own))

    def close(self) -> None:
        super().close()
        self.own.close()
        self.kernel.close()
        abi.lib.sd_device_close(self.device.handle)


class Fake:
    """The library below the loop in C; conftest.py loads it."""

    library: ClassVar[ctypes.CDLL]

    def waiting(self, number: int) -> int:
        return int(self.library.fake_waiting(number))

    def step(self, number: int) -> int:
        return int(self.library.fake_step(number))

    def again(self, number: int, count: int) -> int:
        return int(self.library.fake_again(number, count))

    def stray(self, number: int, immediate: int) -> int:
        return int(self.library.fake_stray(number, immediate))


class Wire:
    """One direction of a queue pair."""

    def __init__(self, near: QueueSide, far: QueueSide, library: Any) -> None:
        self._sides, self._library = (near, far), library
        self._number = near.port.number

    @property
    def operations(self) -> int:
        return int(self._library.waiting(self._number))

    def step(self) -> int:
        """The next request is carried out; nobody looks."""
        return int(self._library.step(self._number))

    def deliver(self) -> None:
        self.step()
        for side in self._sides:
            side.poll()

    def again(self, count: int) -> None:
        """The last requests arrive once more."""
        assert self._library.again(self._number, count) == 0

    def stray(self, slot: int, number: int) -> None:
        """A write without bytes arrives that nobody has posted."""
        assert self._library.stray(self._number, slot << 8 | number) == 0


class QueuePair(Pair):
    """Two of them."""

    kind: type[QueueSide]
    library: Any
    sides: tuple[Any, Any]
    pipes: list[Wire]

    def __init__(self, seed: int = 1) -> None:
        super().__init__(queue_pairs=True, seed=seed)

    def make_sides(self, seed: int) -> tuple[Any, Any]:
        return self.kind(0, seed), self.kind(1, seed + 1)

    def connect(self) -> None:
        a, b = self.sides
        for side, sealer in zip(self.sides, sealers(), strict=True):
            contact: Any = Contact(side)
            side.port = side.device.port(contact)
            side.link = Link("x", sealer, side.mirrors, side.by_id, side.port, lambda record: None, side.woken.append)
        self.pipes = [Wire(a, b, self.library), Wire(b, a, self.library)]
        a.peer, b.peer = b, a

    def ring(self, number: int, *, lost: bool = False) -> None:
        super().ring(number, lost=lost)
        self.sides[number].tell_place()


class CPair(QueuePair):
    """With the loop in C."""

    kind, library = CSide, Fake()
    sides: tuple[CSide, CSide]


class PyPair(QueuePair):
    """With the loop in Python."""

    kind, library = PySide, fakepyverbs


def ready(kind: type[QueuePair] = CPair) -> Any:
    """Both directions go by RDMA, and everything is said."""
    made = kind()
    made.settle()
    return made
