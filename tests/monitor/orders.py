# SPDX-License-Identifier: Apache-2.0
"""Every order of what can happen to one mirrored connection, for small exchanges: a search of all states (pair.py).

One program writes, the other one reads or sleeps; monitors look, and say small credits or not; requests arrive one by
one; a doorbell is sent; the link is cut, with or without a monitor; a device brings its last request twice.  A state
that was there before is not gone into again, so that what brings nothing new is finite.  Where nothing can bring
anything new all must be read and credited, and nobody asleep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sdlib import abi
from tests.monitor.pair import RING, Pair


@dataclass(frozen=True)
class Exchange:
    """What may happen, and how often."""

    make: Callable[[], Pair]
    writes: tuple[int, ...]
    sleeps: int = 0
    cuts: int = 0
    kills: int = 0
    repeats: int = 0


class World:
    """One pair, on its way."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.pair = exchange.make()
        self.pair.settle()
        self.written = self.slept = self.cut = self.killed = self.repeated = 0
        self.mirrors = [side.mirror for side in self.pair.sides]

    def moves(self) -> Iterator[str]:
        """What may be tried now."""
        how = self.exchange
        if self.written < len(how.writes):
            yield "write"
        yield from ("take", "look 0", "look 1", "credit 1", "request 0", "request 1", "ring")
        if any(side.link is not None and side.link.stream.out for side in self.pair.sides):
            yield from ("tcp 0", "tcp 1")
        if self.slept < how.sleeps:
            yield "sleep"
        if self.cut < how.cuts:
            yield "cut"
        if self.killed < how.kills:
            yield from ("kill 0", "kill 1")
        if self.repeated < how.repeats:
            yield from ("again 0", "again 1")

    def do(self, move: str) -> None:
        """One of them."""
        what, _, number = move.partition(" ")
        getattr(self, f"_{what}")(int(number or 0))
        self.pair.check()

    def _write(self, _: int) -> None:
        size, before = self.exchange.writes[self.written], len(self.pair.sides[0].wrote)
        self.pair.sides[0].write(size)
        self.written += len(self.pair.sides[0].wrote) - before == size

    def _take(self, _: int) -> None:
        self.pair.sides[1].take(RING)

    def _sleep(self, _: int) -> None:
        self.pair.sides[1].sleep()
        self.slept += self.pair.sides[1].sleeps

    def _look(self, n: int) -> None:
        self.pair.sides[n].pump(idle=False)

    def _credit(self, n: int) -> None:
        self.pair.sides[n].pump(idle=True)

    def _request(self, n: int) -> None:
        if self.pair.pipes:
            self.pair.carry(n)

    def _tcp(self, n: int) -> None:
        self.pair.deliver(n, 1 << 20)

    def _ring(self, _: int) -> None:
        self.pair.ring(0)

    def _cut(self, _: int) -> None:
        self.cut += 1
        self.pair.cut_and_connect(None)

    def _kill(self, n: int) -> None:
        self.killed += 1
        self.pair.cut_and_connect(self.pair.sides[n])

    def _again(self, n: int) -> None:
        with suppress(AssertionError):  # none was carried out yet
            self.pair.pipes[n].again(1)
            self.repeated += 1
        for side in self.pair.sides:
            side.pump(idle=False)

    def key(self) -> int:
        """What the future depends on."""
        parts: list[Any] = [self.written, self.slept, self.cut, self.killed, self.repeated]
        for side in self.pair.sides:
            m = side.mirror
            parts += [
                bytes(side.copy.memory), m.sent, m.landed, m.asked, m.wanted, m.rung, m.ringing, m.linked, m.dead,
                m.behind, m.theirs, m._told, m._answer, m._question, int(m.state.head_said), int(m.state.rest_said),
                int(m.state.asked_said), int(m.state.worded), side.arriving, side.sleeps, side.on_ring, side.dozing,
                len(side.read), len(side.wrote),
            ]
            if side.link is not None:
                link = side.link
                parts += [link.switched_in, link.switched_out, link._connected, tuple(link._aside),
                          len(link.stream.out)]
        for pipe in self.pair.pipes:
            operations = pipe.operations
            parts.append(operations if isinstance(operations, int) else
                         tuple(one if isinstance(one, bytes) else one[1:] for one in operations))
        return hash(tuple(parts))

    def over(self) -> None:
        """Nothing can bring anything new."""
        a, b = self.pair.sides
        assert self.written == len(self.exchange.writes), "there is no room, for ever"
        assert b.read == a.wrote, "bytes stay behind"
        assert not b.sleeps or not abi.lib.sd_py_readable(b.program), "sleeps on bytes"
        assert a.copy.credited() == len(a.wrote), "credit stays behind"


def search(exchange: Exchange, most: int = 1_000_000) -> tuple[int, int]:
    """How many states, and ends. AssertionError, with the way there."""
    seen: set[int] = set()
    ends = 0
    todo: list[tuple[str, ...]] = [()]
    while todo:
        path = todo.pop()
        world = World(exchange)
        try:
            for move in path:
                world.do(move)
            if world.key() not in seen:
                seen.add(world.key())
                ends += _go_on(world, path, seen, todo)
            assert len(seen) < most, "too many states"
        except Exception as error:
            raise AssertionError(f"{error!r} after {', '.join(path)}") from error
        finally:
            world.pair.close()
    return len(seen), ends


def _go_on(world: World, path: tuple[str, ...], seen: set[int], todo: list[tuple[str, ...]]) -> bool:
    """In place, by the first move that brings something new, and so on; the others are for later. True: to an end."""
    while True:
        moves, key = list(world.moves()), world.key()
        for number, move in enumerate(moves):
            world.do(move)
            if world.key() != key:
                todo += [(*path, other) for other in moves[number + 1:]]
                path = (*path, move)
                break
        else:
            world.over()
            return True
        if world.key() in seen:
            return False
        seen.add(world.key())
