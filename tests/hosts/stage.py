# SPDX-License-Identifier: Apache-2.0
"""Behaviours of tests/differential between two hosts: natively, and with their connections on mirrored rings."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.differential.side import Side, Where
from tests.differential.worlds import NATIVE, Behaviour, Outcome, Place, Stage, World
from tests.harness import Mode, Runner
from tests.hosts.world import LIMIT_S
from tests.hosts.world import World as Hosts

Moved: TypeAlias = tuple[set[tuple[int, int]], set[tuple[int, int]]]
FAR = World("far", (), (), warm=True)
"""The runner of a host says upgrade=eager by itself."""


@dataclass
class FarStage(Stage):
    """On two hosts."""

    hosts: Hosts | None = None
    again: Callable[[], None] | None = None
    """Has the connection that has moved go back to TCP; it moves once more then."""

    def talk(self, ours: int, theirs: int) -> None:
        before = self._moved()
        self._rounds(ours, theirs)
        if not self.moves:
            return
        self._until_moved(ours, theirs, before)
        if self.again is not None:
            self.again()
            self._until_moved(ours, theirs, (set(), set()))

    def _until_moved(self, ours: int, theirs: int, before: Moved) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not all(now - then for now, then in zip(self._moved(), before, strict=True)):
            assert time.monotonic() < deadline, "the connection does not move"
            time.sleep(0.01)
            self._rounds(ours, theirs)

    def _moved(self) -> Moved:
        """On each host."""
        assert self.hosts is not None
        return self.hosts.a.moved(), self.hosts.b.moved()


class FarPlace(Place):
    """Agents on two hosts."""

    def __init__(self, hosts: Hosts, agent: Path, *, native: bool = False,
                 again: Callable[[], None] | None = None) -> None:
        self._hosts, self._again = hosts, again
        world = World(NATIVE.name, None, None, warm=True) if native else FAR
        folder = hosts.a.folder.parent / f"place-{world.name}"
        super().__init__(world, agent, folder, {})

    def _runner(self, number: int, options: tuple[str, ...] | None, own: Path, env: dict[str, str]) -> Runner:
        return (self._hosts.a, self._hosts.b)[number].runner(Mode.NATIVE if options is None else Mode.SHM)

    def _stage(self, a: Side, b: Side) -> Stage:
        return FarStage(a, b, self.world.warm, self.world.moves, hosts=self._hosts, again=self._again)

    def run(self, behaviour: Behaviour) -> Outcome:
        before, Where.server = Where.server, socket.inet_aton(self._hosts.a.address)
        try:
            return super().run(behaviour)
        finally:
            Where.server = before

    def rdma(self, outcome: Outcome) -> int:
        """How many ends of connections mirrored rings have carried; ends it."""
        self.ends(outcome)
        return sum(int(program.report().raw["connections"]["rdma"]) for program in self._programs)
