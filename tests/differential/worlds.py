# SPDX-License-Identifier: Apache-2.0
"""Where and when a behaviour is run: which end is under sdrun, and how far the connection has moved when it begins.

The native world is the oracle: a transcript from any other must be equal to its.  A world is two root agents that
stay; each behaviour gets a fresh fork of both, so that it starts with its own descriptors, signals and counters, and
the report at the end says of each process by its pid what carried its connections.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tests.differential.remote import PATIENCE_S, AgentGone, Server
from tests.differential.side import Side
from tests.harness import Mode, Program, Runner

_ROUNDS: Final = 48
"""Messages before a behaviour begins where it shall find its connection moved already."""


_EAGER: Final = ("upgrade=eager",)
_URING: Final = ("upgrade=eager", "io_uring=allow")
_LATE: Final = ("upgrade=after_ops:1000000",)
_TIGHT: Final = ("upgrade=eager", "spin_us=0", "ring=64KiB")


def _segments(pid: int) -> set[str]:
    """Segments of connections that a process has mapped, by inode."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split()[4] for line in lines if "socksdirect-segment" in line}


@dataclass(frozen=True)
class World:
    """`a` and `b`: options of sdrun for the accepting and the connecting end, None without it."""

    name: str
    a: tuple[str, ...] | None
    b: tuple[str, ...] | None
    warm: bool

    @property
    def moves(self) -> bool:
        """Will a connection move while its ends talk?"""
        return self.warm and self.a is not None and self.b is not None and _URING not in (self.a, self.b)


NATIVE: Final = World("native", None, None, warm=True)
BEFORE: Final = World("before", _EAGER, _EAGER, warm=True)
WORLDS: Final = (
    BEFORE,
    World("tight", _TIGHT, _TIGHT, warm=True),
    World("cold", _EAGER, _EAGER, warm=False),
    World("during", ("upgrade=after_ops:3",), ("upgrade=after_ops:2",), warm=False),
    World("after", _LATE, _LATE, warm=False),
    World("uring", _URING, _URING, warm=True),
    World("accepting", _EAGER, None, warm=True),
    World("connecting", None, _EAGER, warm=True),
)


@dataclass
class Stage:
    """What a behaviour gets: two sides, and ways to make connections between them."""

    a: Side
    b: Side
    warm: bool
    moves: bool
    """Both ends are under sdrun: talk until the connection has moved."""
    segments: set[str] = field(default_factory=set)

    def connection(self, *, nodelay: bool = True) -> tuple[int, int]:
        """A new connection: the descriptors of a (accepted) and b (connected).

        Nagle's algorithm would hold bytes until older ones are acknowledged, 40 ms later.
        """
        listener, port = self.listener()
        theirs = self.b.socket()
        self.b.connect(theirs, port)
        ours = self.a.accept(listener).value
        if nodelay:
            self.a.setsockopt(ours, 6, 1, 1)
            self.b.setsockopt(theirs, 6, 1, 1)
        self.a.close(listener)
        self.talk(ours, theirs)
        return ours, theirs

    def with_a(self, side: Side) -> Stage:
        """The same with another process in a's place."""
        return replace(self, a=side)

    def listener(self, backlog: int = 16) -> tuple[int, int]:
        """A listening socket of a, and its port."""
        fd = self.a.socket()
        self.a.bind(fd)
        self.a.listen(fd, backlog)
        return fd, self.a.port(fd)

    def talk(self, ours: int, theirs: int) -> None:
        """Small messages in both directions, if in this world the connection shall have moved by now.

        Until it has: both processes have mapped the same segment, and it is a new one.
        """
        if not self.warm:
            return
        self._rounds(ours, theirs)
        deadline = time.monotonic() + PATIENCE_S
        while self.moves:
            new = (_segments(self.a.link.pid) & _segments(self.b.link.pid)) - self.segments
            self.segments |= new
            self._rounds(ours, theirs)
            if new:
                return
            assert time.monotonic() < deadline, "the connection does not move"

    def _rounds(self, ours: int, theirs: int) -> None:
        pending = self.a.link.talk(ours, False, _ROUNDS), self.b.link.talk(theirs, True, _ROUNDS)
        assert [each.end()[0] for each in pending] == [0, 0]


@dataclass(frozen=True)
class Behaviour:
    """One behaviour. `rows` are what it proves: (call, flag or option, note)."""

    name: str
    run: Callable[[Stage], None]
    rows: tuple[tuple[str, str], ...]
    carried: bool
    """Shared memory must carry it in the world BEFORE, with nothing moved back; else the report decides."""
    broken: dict[str, str]
    """World (or "all") -> why its transcript is known to differ: a strict expectation."""
    only: tuple[str, ...]


BEHAVIOURS: Final[dict[str, Behaviour]] = {}


def behaviour(*rows: str, carried: bool = True, broken: dict[str, str] | None = None,
              only: tuple[str, ...] = ()) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Register a behaviour; each row is "call flag"."""

    def register(function: Callable[[Stage], None]) -> Callable[[Stage], None]:
        name = function.__name__
        assert name not in BEHAVIOURS, name
        split = tuple((call, flag) for call, _, flag in (row.partition(" ") for row in rows))
        BEHAVIOURS[name] = Behaviour(name, function, split, carried, broken or {}, only)
        return function

    return register


@dataclass
class Outcome:
    """What a run has shown."""

    transcript: list[str]
    pids: tuple[list[int], list[int]]
    sent: int


@dataclass
class Ends:
    """The processes of one run, from the report: one sum for all of both ends."""

    shm: int = 0
    shm_bytes: int = 0
    moved_back: dict[str, int] = field(default_factory=dict)
    tcp_reasons: dict[str, int] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """One process."""
        self.shm += line["connections"]["shm"]
        self.shm_bytes += line["bytes"]["shm"]
        for mine, theirs in ((self.moved_back, "moved_back"), (self.tcp_reasons, "tcp_reasons")):
            for reason, number in line["connections"][theirs].items():
                mine[reason] = mine.get(reason, 0) + number


class Place:
    """A world that has been started."""

    def __init__(self, world: World, agent: Path, folder: Path, env: dict[str, str]) -> None:
        self.world = world
        folder.mkdir(parents=True)
        self._sockets = tempfile.TemporaryDirectory(prefix="sdagent-")
        self._server = Server(Path(self._sockets.name) / "control")
        self._runners: list[Runner] = []
        self._programs: list[Program] = []
        for number, options in enumerate((world.a, world.b)):
            runner = self._runner(number, options, folder / "ab"[number], env)
            self._runners.append(runner)
            self._programs.append(runner.start(agent, self._server.path, str(number)))
        self._roots = [self._server.accept(number) for number in range(2)]
        self._reports: list[dict[str, Any]] | None = None

    def _runner(self, _number: int, options: tuple[str, ...] | None, own: Path, env: dict[str, str]) -> Runner:
        """Where the agent of that end is started."""
        own.mkdir()
        words = [word for option in options or () for word in ("--set", option)]
        return Runner(Mode.NATIVE if options is None else Mode.SHM, own, env, words)

    def _stage(self, a: Side, b: Side) -> Stage:
        return Stage(a, b, self.world.warm, self.world.moves)

    def run(self, behaviour: Behaviour) -> Outcome:
        """The transcript of a behaviour; what goes wrong in it is its last line."""
        log: list[str] = []
        a, b = (Side(name, root.spawn(0), log) for name, root in zip("ab", self._roots, strict=True))
        try:
            behaviour.run(self._stage(a, b))
        except AgentGone:
            log.append("an agent has ended")
        except AssertionError as error:
            log.append(f"failed: {error}")
        sides = a.tree(), b.tree()
        pids = tuple([side.link.pid for side in tree] for tree in sides)
        for side in (*sides[0], *sides[1]):
            side.link.close()
        if log and log[-1].startswith("failed"):
            for pid in {*pids[0], *pids[1]}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # an agent that we have made and that does not answer
        return Outcome(log, (pids[0], pids[1]), sum(side.sent for tree in sides for side in tree))

    @property
    def ended(self) -> bool:
        """Its reports have been read."""
        return self._reports is not None

    def ends(self, outcome: Outcome) -> Ends:
        """What carried a run, from the reports; ends the world."""
        if self._reports is None:
            for root in self._roots:
                root.close()
            self._reports = [program.ok().report().raw if runner.mode is Mode.SHM else {"processes": []}
                             for program, runner in zip(self._programs, self._runners, strict=True)]
        ends = Ends()
        for report, pids in zip(self._reports, outcome.pids, strict=True):
            for line in report["processes"]:
                if line["pid"] in pids:
                    ends.add(line)
        return ends

    def close(self) -> None:
        """End what is left."""
        for runner in self._runners:
            runner.close()
        self._server.close()
        self._sockets.cleanup()
