# SPDX-License-Identifier: Apache-2.0
"""Why connections go back to TCP, as two monitors tell each other and their supervisors (sdlib/wire/left.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from monitor.hosts import frames
from monitor.hosts.frames import BadPeer
from sdlib import abi
from sdlib.wire.left import Left, left_for, reason_of
from sdlib.wire.messages import Bell
from tests.monitor.test_again import Host, make_hosts, until
from tests.monitor.test_lying_host import NoMemory
from tools.sdctl import WHY

Hosts = tuple[Host, Host]


def reason(name: str) -> int:
    return abi.REASONS.index(name)


def test_each_is_a_reason_of_reports() -> None:
    assert [abi.REASONS[reason_of(left)] for left in Left] == [
        "host-link-lost", "host-link-unsteady", "descriptor-passed", "unsupported-call", "mapping-failed",
        "closed-before-switch",
    ]  # fmt: skip
    assert [left_for(reason_of(left)) for left in Left] == list(Left)
    assert left_for(reason("socket-option")) is Left.CALL, "which it was its own end says"
    assert left_for(reason("monitor-unreachable")) is Left.LINK, "as it is seen from the other host"
    assert left_for(12345) is Left.CALL, "a program's own nonsense"


@pytest.mark.parametrize("left", [len(Left) + 1, 255])
def test_a_reason_that_there_is_not_is_no_honest_peers(left: int) -> None:
    with pytest.raises(BadPeer, match="reason"):
        frames.decode(frames.encode(frames.Gone(bytes(16), left)), 0)


def pair(hosts: Hosts) -> None:
    for host in hosts:
        host.offer()
    until(hosts, lambda: bool(hosts[0].linked()) and hosts[0].linked() == hosts[1].linked())


def words(host: Host) -> Any:
    """Of its program's copy."""
    return host.copies[-1]._seg


def taken(host: Host, why: str) -> None:
    """By its supervisor, for that reason (sd_pump_leave)."""
    words(host).lost, words(host).pumped = reason(why), abi.const.SD_PUMPED_BYTES
    host.hub._conns.stir_named(1, host.offers)


def leaves_by_itself(hosts: Hosts) -> None:
    """As back_tx() of the library on a; the program on b reads its mark."""
    a, b = hosts
    words(a).dir[a.copies[-1].side].prod_hint = abi.const.SD_HINT_LEAVING
    words(b).frozen = 1
    for host in hosts:
        host.hub._conns.stir_named(1, host.offers)


def is_marked(hosts: Hosts) -> None:
    """The supervisor on a has sent a mark, which is read on b before any monitor has heard of it."""
    a, b = hosts
    words(b).frozen = 1
    b.hub._conns.stir_named(1, b.offers)
    for _ in range(20):
        for host in hosts:
            host.turn()
    assert not b.told, "its monitor is about to be told why"
    taken(a, "descriptor-passed")


def breaks(hosts: Hosts, times: int) -> None:
    for _ in range(times):
        hosts[0].contact.fail("cut")
        until(hosts, lambda: all(host.contact.there for host in hosts))


def breaks_and_stays_away(hosts: Hosts) -> None:
    """It has broken often, but not since connections could be on it."""
    for host in hosts:
        host.contact.steady.breaks = 1
    for host in hosts:
        host.contact._dial_at = time.monotonic() + 3600
    hosts[0].contact.fail("cut")
    assert hosts[0].contact.steady.hold_s
    until((hosts[0], hosts[0]), lambda: bool(hosts[0].told))
    until((hosts[1], hosts[1]), lambda: bool(hosts[1].told))


def cannot_register(hosts: Hosts) -> None:
    hosts[1].contact._make_port = lambda _contact: NoMemory(0)  # type: ignore[assignment,return-value]
    hosts[1].contact.fail("cut")


CAUSES: dict[str, tuple[Callable[[Hosts], object], Left, Left]] = {
    "given away": (lambda hosts: taken(hosts[0], "descriptor-passed"), Left.PASSED, Left.PASSED),
    "given away on b": (lambda hosts: taken(hosts[1], "descriptor-passed"), Left.PASSED, Left.PASSED),
    "given away, and the mark is faster": (is_marked, Left.PASSED, Left.PASSED),
    "an option": (lambda hosts: taken(hosts[0], "socket-option"), Left.CALL, Left.CALL),
    "without a monitor": (lambda hosts: taken(hosts[0], "monitor-unreachable"), Left.LINK, Left.LINK),
    "by itself": (leaves_by_itself, Left.CALL, Left.CALL),
    "breaks too often": (lambda hosts: breaks(hosts, 2), Left.UNSTEADY, Left.UNSTEADY),
    "breaks and stays away": (breaks_and_stays_away, Left.LINK, Left.LINK),
    "no memory": (cannot_register, Left.MEMORY, Left.MEMORY),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_both_ends_are_told_what_is_true(cause: str) -> None:
    happens, *wanted = CAUSES[cause]
    hosts = make_hosts(back_s=0.3, hold_s=5.0)
    try:
        pair(hosts)
        happens(hosts)
        until(hosts, lambda: all(host.told for host in hosts))
        assert [host.said for host in hosts] == [[(Bell.BACK, left)] for left in wanted]
    finally:
        for host in hosts:
            host.close()


def test_who_waits_for_the_other_end_hears_that_it_has_no_memory() -> None:
    """The rings of a new connection cannot be registered over there: its offer is open, and says why."""
    a, b = hosts = make_hosts()
    try:
        until(hosts, lambda: all(host.contact.usable for host in hosts))
        b.contact._make_port = lambda _contact: NoMemory(0)  # type: ignore[assignment,return-value]
        b.contact.fail("cut")
        until(hosts, lambda: all(host.contact.usable for host in hosts))
        for host in hosts:
            host.offer()
        until(hosts, lambda: bool(a.told and b.told))
        assert a.said == [(Bell.WHY, Left.MEMORY)] and b.said == [(Bell.BACK, Left.MEMORY)]
    finally:
        for host in hosts:
            host.close()


def test_a_program_that_does_not_come_is_no_fault_of_the_link() -> None:
    a, b = hosts = make_hosts(unused_s=0.2)
    try:
        pair(hosts)
        until(hosts, lambda: all(host.told for host in hosts))
        assert a.said == b.said == [(Bell.BACK, Left.UNUSED)]
    finally:
        for host in hosts:
            host.close()


def test_sdctl_explains_every_reason() -> None:
    assert set(abi.REASONS[1:]) <= set(WHY)
