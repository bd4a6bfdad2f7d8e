# SPDX-License-Identifier: Apache-2.0
"""A link that breaks again and again is used less and less (monitor/hosts/steady.py)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from monitor.hosts.steady import Steadiness
from sdlib.wire.messages import Bell
from tests.monitor.test_again import Host, carries, make_hosts, until


def holds_of(steady: Steadiness, breaks: int, every_s: float = 1.0) -> list[float]:
    """After each of so many breaks, of a link that was there for `every_s` before each."""
    found = []
    for number in range(breaks):
        steady.left_s(number * every_s)
        steady.broke((number + 1) * every_s)
        found.append(steady.hold_s)
    return found


def test_each_break_doubles_it_up_to_a_limit() -> None:
    assert holds_of(Steadiness(2.0, 20.0, 60.0), 7) == [0, 2, 4, 8, 16, 20, 20]
    assert holds_of(Steadiness(2.0, 20.0, 60.0), 2000)[-1] == 20
    assert holds_of(Steadiness(0.0, 20.0, 60.0), 7) == [0] * 7, "0: never"


def test_it_has_to_hold_from_when_it_is_there() -> None:
    steady = Steadiness(4.0, 20.0, 60.0)
    assert holds_of(steady, 2) == [0, 4]
    assert steady.left_s(100.0) == 4 and steady.left_s(103.0) == 1 and steady.left_s(104.0) == 0
    steady.broke(105.0)
    assert steady.left_s(200.0) == 8, "what came before the break does not count"


def test_breaks_are_forgotten_once_it_has_held_for_long() -> None:
    steady = Steadiness(4.0, 20.0, 60.0)
    holds_of(steady, 3)
    steady.left_s(100.0)
    steady.broke(100.0 + 8 + 59)
    assert steady.breaks == 4
    steady.left_s(200.0)
    steady.broke(200.0 + 16 + 60)
    assert steady.breaks == 1 and steady.hold_s == 0
    assert holds_of(Steadiness(4.0, 20.0, 60.0), 9, every_s=65.0) == [0] * 9, "one that breaks seldom"


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    made = make_hosts(back_s=0.3, hold_s=1.0)
    yield made
    for host in made:
        host.close()


def is_linked(hosts: tuple[Host, Host], first: bytes = b"") -> bool:
    a, b = hosts
    return bool(a.linked(first)) and a.linked(first) == b.linked(first)


def breaks(hosts: tuple[Host, Host]) -> None:
    """Once, and it is there again, for both."""
    hosts[0].contact.fail("cut")
    until(hosts, lambda: all(host.contact.there for host in hosts))


def test_connections_leave_a_link_that_does_not_hold(hosts: tuple[Host, Host]) -> None:
    """With its second break within a minute, though it is there again at once; and are on it again when it has held."""
    a, b = hosts
    for host in hosts:
        host.offer()
    until(hosts, lambda: is_linked(hosts))
    first = a.linked()
    breaks(hosts)
    until(hosts, lambda: is_linked(hosts))
    assert a.linked() == first and not a.told, "the first one costs nothing"
    breaks(hosts)
    at = time.monotonic()
    until(hosts, lambda: Bell.BACK in a.told and Bell.BACK in b.told)
    assert a.unsteady == b.unsteady == 1 and Bell.BREAK not in a.told + b.told
    shown = a.hub.status()["peers"][0]
    assert shown["breaks"] == 2 and 0 < shown["held_s"] <= 1 and shown["up"]
    for host in hosts:
        host.offer()
    until(hosts, lambda: is_linked(hosts, first))
    assert time.monotonic() - at >= 1.0
    assert a.hub.status()["peers"][0]["held_s"] == 0
    carries(hosts)


def test_who_waits_for_it_hears_why(hosts: tuple[Host, Host]) -> None:
    """A new connection: that the link is to hold first, and once it has, that this is the reason no longer."""
    a, b = hosts
    until(hosts, lambda: all(host.contact.usable for host in hosts))
    breaks(hosts)
    a.offer()
    assert Bell.WHY not in a.told, "the first one costs nothing"
    until(hosts, lambda: all(host.contact.usable for host in hosts))
    breaks(hosts)
    a.offer()
    assert a.told == [Bell.WHY] and a.unsteady == 1
    until(hosts, lambda: a.contact.usable and len(a.told) > 1)
    assert a.told == [Bell.WHY] * 2 and a.unsteady == 1
    a.offer()
    b.offer()
    until(hosts, lambda: is_linked(hosts))
    assert a.told.count(Bell.WHY) == 2 and Bell.WHY not in b.told


def test_who_holds_a_link_for_unsteady_has_the_last_word(hosts: tuple[Host, Host]) -> None:
    """One host has seen its breaks, and the other one has just been started: nothing is paired until both trust it."""
    for doubtful in hosts:
        breaks(hosts)
        breaks(hosts)
        other = hosts[1 - doubtful.number]
        other.contact.steady.breaks = 0
        for host in hosts:
            host.offer()
        while doubtful.contact.held_s:
            for host in hosts:
                host.turn()
                assert not len(host.hub._conns)
        until(hosts, lambda: is_linked(hosts))
        carries(hosts)
        for host in hosts:
            host.hub.closed(1, host.offers)
            host.contact.steady.breaks = 0
        until(hosts, lambda: not len(hosts[0].hub._conns) and not len(hosts[1].hub._conns))
