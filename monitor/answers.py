# SPDX-License-Identifier: Apache-2.0
"""Answering sdctl (QUERY): who may ask what, and what is collected from the other clients first (desk.py)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from monitor.desk import OPEN_MAX, Desk
from monitor.outbox import Outbox
from monitor.session import Client
from sdlib.wire import messages, papers
from sdlib.wire.messages import Code, ProtocolError, Query
from sdlib.wire.states import State


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
        self.drop_client = self._desk.drop_client
        self.due = self._desk.due

    def on_query(self, client: Client, message: messages.Question) -> None:
        """Reading is for everybody, about its own; the rest for root and who has started us."""
        try:
            what = Query(message.what)
        except ValueError:
            raise ProtocolError(f"unknown question {message.what}") from None
        if what is Query.CONNECTIONS:
            self._collect(client)
        elif what in self._orders and client.uid not in (0, os.geteuid()):
            self._answer(client, Code.FORBIDDEN)
        else:
            self._answer(client)
            if what in self._orders:
                self._orders[what]()

    def _collect(self, client: Client) -> None:
        if len(self._desk) >= OPEN_MAX:
            self._answer(client, Code.QUOTA)
            return
        others = [
            other
            for other in self._clients.values()
            if other is not client and other.talk.state is State.READY and client.uid in (0, other.uid)
        ]
        number = self._desk.ask(client.number, {other.number for other in others}, time.monotonic())
        for other in others:
            self._outbox.say(other, messages.Ask(number))

    def on_tell(self, client: Client, message: messages.Tell, memfd: int) -> None:
        """Hand a client's paper on; `memfd` stays the caller's."""
        asker = self._clients.get(self._desk.told(client.number, message.ask_id) or 0)
        if asker is not None:
            self._outbox.say(asker, messages.Part(client.pid, client.uid), memfd)

    def finish(self, now: float) -> None:
        """Close what is complete or overdue."""
        for number, missing in self._desk.done(now):
            if asker := self._clients.get(number):
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
