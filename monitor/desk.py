# SPDX-License-Identifier: Apache-2.0
"""Questions of sdctl and for our own metrics, and what is collected from the other clients to answer them.

What sdctl asks the monitor does not read: it hands clients' papers on to who asked. A user hears of its own
clients, root of all. A client that does not tell within `_LIMIT_S` is left out, and counted.
"""

from __future__ import annotations

import itertools

from sdlib.records import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_LIMIT_S: Final = 1.0
OPEN_MAX: Final = 64
OURSELVES: Final = 0
"""As an asker; clients' numbers begin with 1."""


@dataclass
class Question:
    """A QUERY that waits for clients to tell."""

    asker: int
    deadline: float
    waiting: set[int] = field(default_factory=set)


class Desk:
    """All open questions. Pure: no I/O, no clock."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._open: dict[int, Question] = {}

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, asker: int, others: set[int], now: float) -> int:
        """A question to all of `others`; its id."""
        number = next(self._ids)
        self._open[number] = Question(asker, now + _LIMIT_S, set(others))
        return number

    def told(self, client: int, number: int) -> int | None:
        """A client has told; the one who asked, None if nobody does (any more)."""
        question = self._open.get(number)
        if question is None or client not in question.waiting:
            return None
        question.waiting.discard(client)
        return question.asker

    def drop_client(self, client: int) -> None:
        """It has gone: nobody waits for it, and its own questions are void."""
        for number, question in list(self._open.items()):
            question.waiting.discard(client)
            if question.asker == client:
                del self._open[number]

    def done(self, now: float) -> list[tuple[int, int]]:
        """Questions that are over, once: (asker, clients that did not tell)."""
        over = [number for number, question in self._open.items() if not question.waiting or question.deadline <= now]
        return [(question.asker, len(question.waiting)) for question in map(self._open.pop, over)]

    def due(self) -> float | None:
        """When the next one will be over at the latest."""
        return min((question.deadline for question in self._open.values()), default=None)
