# SPDX-License-Identifier: Apache-2.0
"""Every order of small exchanges of one mirrored connection (orders.py); that it sees mistakes is shown with some."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from monitor.hosts import verbs
from monitor.hosts.copy import Copy
from monitor.hosts.mirror import Mirror
from tests.monitor.orders import Exchange, search
from tests.monitor.pair import RING, Pair
from tests.monitor.queues import PyPair

TCP, RDMA = partial(Pair, queue_pairs=False), partial(Pair, queue_pairs=True)
EXCHANGES = {
    "full ring": Exchange(RDMA, (3000, 2000)),
    "sleeper": Exchange(RDMA, (10, 10), sleeps=2),
    "cut": Exchange(RDMA, (1500,), cuts=1),
    "cut by tcp": Exchange(TCP, (3000,), cuts=1, sleeps=1),
    "killed": Exchange(TCP, (RING,), kills=1),
    "twice": Exchange(PyPair, (1500, 1500), repeats=1),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_every_order(exchange: Exchange) -> None:
    states, ends = search(exchange)
    assert states > 50 and ends, (states, ends)


def goes_on_where_it_was(self: Mirror, said: Any, real: Any = Mirror.on_resume) -> None:
    sent = self.sent
    real(self, said)
    self.sent = sent


def says_nothing_again(self: Mirror, said: Any, real: Any = Mirror.on_resume) -> None:
    told, worded = self._told, self.state.worded
    real(self, said)
    self._told, self.state.worded = told, worded


MUTANTS = {
    "a link goes on where the last one was": ("cut", Mirror, "on_resume", goes_on_where_it_was),
    "nobody says again what was lost": ("cut", Mirror, "on_resume", says_nothing_again),
    "no doorbell is asked for": ("sleeper", Mirror, "ring", lambda self: None),
    "a new monitor does not know what has landed": ("killed", Copy, "landed", lambda self: 0),
    "requests have no numbers": ("twice", verbs, "_NUMBERS", 1),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name, where, what, instead", MUTANTS.values(), ids=MUTANTS)
def test_a_mistake_is_found(monkeypatch: pytest.MonkeyPatch, name: str, where: Any, what: str, instead: Any) -> None:
    monkeypatch.setattr(where, what, instead)
    with pytest.raises(AssertionError, match=" after "):
        search(EXCHANGES[name])
