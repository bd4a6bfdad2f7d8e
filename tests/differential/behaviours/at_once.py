# SPDX-License-Identifier: Apache-2.0
"""Calls that follow each other without a pause: both ends are in one process, so what one does is true of the other.

Each is tried several times, since a busy kernel hands a packet over later; what most of them have said stands in the
transcript.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from tests.differential.caller import Call
from tests.differential.linux import DONTWAIT, IN, OUT, RDHUP, SHUT_RDWR, SHUT_WR
from tests.differential.side import Side
from tests.differential.worlds import Stage, behaviour

TRIES: Final = 3
Ask = Callable[[Side, int, int], Call]
"""Begins a call that asks; of the end, and of a set that it is in."""
Happens = Callable[[Side, int, int], Sequence[Call]]
"""Begins what is done to the two ends."""

ASKS: Final[dict[str, Ask]] = {
    "poll": lambda side, x, _: side.poll([(x, IN | RDHUP)]),
    "poll for room": lambda side, x, _: side.poll([(x, OUT)]),
    "poll for nothing": lambda side, x, _: side.poll([(x, 0)]),
    "select": lambda side, x, _: side.select([x]),
    "epoll_wait": lambda side, _, ep: side.wait(ep),
    "recv": lambda side, x, _: side.recv(x, 10, DONTWAIT),
}


def both_ends(stage: Stage) -> Stage:
    """The same with two threads of one process."""
    return Stage(stage.a, stage.a.thread("thread"), stage.warm, stage.moves)


def tried(stage: Stage, before: Sequence[Ask], happens: Happens, ask: Ask) -> str:
    """One try, on a connection of its own: what the last call has said, and what it has written."""
    lines = len(stage.a.log)
    x, y = stage.connection()
    ep = stage.a.epoll()
    stage.a.ctl(ep, "add", x, IN | RDHUP, 7)
    stage.a.wait(ep)
    begun = stage.a.start
    with stage.a.link.together():
        calls = [each(begun, x, ep) for each in before] + list(happens(begun, x, y)) + [ask(begun, x, ep)]
    for call in calls:
        call.end()
    said = stage.a.log[-1].replace(f"'{x}:", "'x:").replace(f"[{x}]", "[x]").rpartition(" = ")[2]
    for fd in (x, y, ep):
        stage.a.close(fd)
    del stage.a.log[lines:]
    return said


def most(stage: Stage, what: str, before: Sequence[Ask], happens: Happens, ask: Ask) -> None:
    """What most tries have said."""
    said = Counter(tried(stage, before, happens, ask) for _ in range(TRIES))
    stage.a.say(f"{what}: {said.most_common(1)[0][0]}")


@behaviour("poll of an end that has just come", "select of an end that has just come",
           "epoll_wait of an end that has just come", "poll with no events, of an end that has just come")
def end_at_once(stage: Stage) -> None:
    inside = both_ends(stage)
    for name, ask in ASKS.items():
        most(inside, f"shut, {name}", [ASKS["poll"]], lambda side, _, y: [side.shutdown(y, SHUT_WR)], ask)
        most(inside, f"closed, {name}", [ASKS["poll"]], lambda side, _, y: [side.close(y)], ask)


def sends_and_shuts(side: Side, _: int, y: int) -> Sequence[Call]:
    """Bytes before the end."""
    return side.send(y, b"abc"), side.shutdown(y, SHUT_WR)


def both_shut(side: Side, x: int, y: int) -> Sequence[Call]:
    """One after the other."""
    return side.shutdown(x, SHUT_WR), side.shutdown(y, SHUT_RDWR)


def shuts_and_looks(side: Side, x: int, y: int) -> Sequence[Call]:
    """The kernel is asked for nothing, when there is an end already."""
    return side.shutdown(y, SHUT_WR), side.poll([(x, 0)])


@behaviour("poll of an end behind bytes that have just come", "poll with no events, of POLLHUP that has just come")
def end_behind_bytes_at_once(stage: Stage) -> None:
    inside = both_ends(stage)
    for name, ask in ASKS.items():
        most(inside, f"bytes and an end, {name}", [ASKS["poll"]], sends_and_shuts, ask)
        most(inside, f"both ends, {name}", [ASKS["poll"]], both_shut, ask)
        most(inside, f"looked for nothing behind an end, {name}", [], shuts_and_looks, ask)


def killed(side: Side, child: Side) -> Sequence[Call]:
    """Its parent has waited for its end."""
    return (side.sys("kill", child.link.pid, signal.SIGKILL, text="child"),
            side.sys("wait4", child.link.pid, 0, 0, 0, text="child"))


@behaviour("poll of a peer whose end was waited for (wait4)", "select of a peer whose end was waited for (wait4)",
           "epoll_wait of a peer whose end was waited for (wait4)", "recv of a peer whose end was waited for (wait4)")
def killed_at_once(stage: Stage) -> None:
    for name, ask in ASKS.items():
        said = Counter(killed_once(stage, ask) for _ in range(TRIES))
        stage.a.say(f"{name}: {said.most_common(1)[0][0]}")


def killed_once(stage: Stage, ask: Ask) -> str:
    """One try."""
    child = stage.a.fork("c")
    both = Stage(stage.a, child, stage.warm, stage.moves)
    return tried(both, [ask], lambda side, _x, _y: killed(side, child), ask)
