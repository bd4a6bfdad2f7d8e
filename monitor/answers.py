# SPDX-License-Identifier: Apache-2.0
"""Answering sdctl (QUERY): who may ask what, and what is collected from the other clients first (desk.py)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from monitor.desk import OPEN_MAX, OURSELVES, Desk
from monitor.outbox import Outbox
from monitor.session import Client
from sdlib.records import NamedTuple
from sdlib.wire import messages, papers
from sdlib.wire.messages import Code, ProtocolError, Query
from sdlib.wire.states import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_PAPER_MAX: Final = 64 << 10
TREES_MAX: Final = 256
"""Whose counters are in the metrics: reading more would keep the others waiting."""


class Told(NamedTuple):
    """What a client has said about its tree; pid and uid are the kernel's word."""

    pid: int
    uid: int
    paper: dict[str, Any]


class Answers:
    """All questions of all clients."""

    def __init__(
        self,
        clients: Mapping[int, Client],
        outbox: Outbox,
        drop: Callable[[Client, str], None],
        status: Callable[[int | None], dict[str, Any]],
        orders: Mapping[Query, Callable[[], None]],
    ) -> None:
        """`status` of one user or all; `orders`: what RELOAD and DRAIN do."""
        self._clients = clients
        self._outbox = outbox
        self._drop = drop
        self._status = status
        self._orders = orders
        self._desk = Desk()
        self._gathered: list[Told] = []
        self._then: Callable[[list[Told], int], None] | None = None
        self.drop_client = self._desk.drop_client
        self.due = self._desk.due

    def on_query(self, client: Client, message: messages.Question) -> None:
        """Reading is for everybody, about its own; the rest for root and who has started us."""
        try:
            what = Query(message.what)
        except ValueError:
            raise ProtocolError(f"unknown question {message.what}") from None
        if what in (Query.CONNECTIONS, Query.COUNTERS):
            self._collect(client, what)
        elif what in self._orders and client.uid not in (0, os.geteuid()):
            self._answer(client, Code.FORBIDDEN)
        else:
            self._answer(client)
            if what in self._orders:
                self._orders[what]()

    def _collect(self, client: Client, what: Query) -> None:
        if len(self._desk) >= OPEN_MAX:
            self._answer(client, Code.QUOTA)
            return
        self._ask(client.number, what, [other for other in self._ready()
                                        if other is not client and client.uid in (0, other.uid)])  # fmt: skip

    def _ready(self) -> list[Client]:
        return [client for client in self._clients.values() if client.talk.state is State.READY]

    def _ask(self, asker: int, what: Query, others: list[Client]) -> None:
        number = self._desk.ask(asker, {other.number for other in others}, time.monotonic())
        for other in others:
            self._outbox.say(other, messages.Ask(number, what))

    def gather(self, then: Callable[[list[Told], int], None]) -> None:
        """Counters of all clients' trees, for ourselves; `then` gets them, and how many have not told in time.

        One at a time: until `then` is called nobody may ask again.
        """
        assert self._then is None, "gathering already"
        self._gathered, self._then = [], then
        self._ask(OURSELVES, Query.COUNTERS, self._ready()[:TREES_MAX])

    def on_tell(self, client: Client, message: messages.Tell, memfd: int) -> None:
        """Hand a client's paper on, or read it if it is for us; `memfd` stays the caller's."""
        number = self._desk.told(client.number, message.ask_id)
        if number is None:
            return
        if number == OURSELVES:
            self._gathered.append(Told(client.pid, client.uid, papers.read(os.dup(memfd), _PAPER_MAX)))
        elif (asker := self._clients.get(number)) is not None:
            self._outbox.say(asker, messages.Part(client.pid, client.uid), memfd)

    def finish(self, now: float) -> None:
        """Close what is complete or overdue."""
        for number, missing in self._desk.done(now):
            if number == OURSELVES and self._then is not None:
                then, self._then = self._then, None
                then(self._gathered, missing)
            elif asker := self._clients.get(number):
                self._answer(asker, 0, missing)

    def _answer(self, client: Client, code: int = 0, missing: int = 0) -> None:
        """The end of an answer: what we know ourselves."""
        try:
            memfd = papers.write(self._status(None if client.uid == 0 else client.uid))
        except OSError as error:
            self._drop(client, error.strerror or "no memory")
            return
        try:
            self._outbox.say(client, messages.Answer(code, missing), memfd)
        finally:
            os.close(memfd)
