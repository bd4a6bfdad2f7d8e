# SPDX-License-Identifier: Apache-2.0
"""What another host's monitor, or somebody who can reach the port, may do to the rest: nothing.

Two real hubs; one of them says over a real link what no honest one does.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from monitor.hosts import frames, hub, link
from monitor.hosts.auth import Handshake, Refused
from monitor.hosts.frames import Record
from monitor.match import Address
from sdlib.wire.messages import Bell
from tests.monitor.pair import KEY
from tests.monitor.test_again import RING, Host, carries, make_hosts, mapped, until

FAR, NEAR = (Address(mapped(f"10.0.0.{number}"), 0, 1000) for number in (2, 1))


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    made = make_hosts()
    until(made, lambda: all(host.contact.usable for host in made))
    yield made
    for host in made:
        host.close()


def says(host: Host, *records: Record) -> None:
    """Over its link, as if its monitor had meant to."""
    assert host.contact.link is not None
    for record in records:
        host.contact.link.say(record)


def pairs_still(hosts: tuple[Host, Host]) -> None:
    """Both hubs run, and carry the next connection."""
    for host in hosts:
        host.offer()
    until(hosts, lambda: bool(hosts[0].linked()) and hosts[0].linked() == hosts[1].linked())
    carries(hosts)


@pytest.mark.parametrize("ring_bytes", [0, 1, RING - 1, RING // 2, RING + 1])
def test_no_ring_is_made_of_a_size_that_rings_cannot_have(hosts: tuple[Host, Host], ring_bytes: int) -> None:
    """A mask of such a size leads out of the copy."""
    a, b = hosts
    a.offer()
    says(b, frames.Seek(FAR, NEAR, ring_bytes, 7, 9, 9))
    until(hosts, lambda: not a.contact.link or len(a.hub._conns) > 0)
    assert all(conn.mirror.copy.ring_bytes == RING for conn in a.hub._conns)


def test_connections_of_other_hosts_are_not_spoken_of(hosts: tuple[Host, Host]) -> None:
    """Names, slots and addresses that are another host's, or nobody's."""
    a, b = hosts
    a.offer()
    stranger = Address(mapped("10.9.9.9"), 0, 1000)
    says(b, frames.Gone(bytes(16)), frames.Gone(bytes(16), 255), frames.Bell(1, 5))
    says(b, frames.Resume(bytes(16), 1, RING, 1, 0, 0, 0), frames.Seek(stranger, NEAR, RING, 7, 9, 9))
    says(b, *(frames.Accept(bytes(16), end, NEAR, RING) for end in (stranger, FAR)))
    for _ in range(20):
        for host in hosts:
            host.turn()
    assert not len(a.hub._conns) and a.contact.usable
    a.hub.closed(1, a.offers)
    pairs_still(hosts)


def test_who_asks_and_reads_no_answer_is_hung_up_on(hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ACCEPT of nothing is answered; a program's memory is not for keeping the answers."""
    monkeypatch.setattr(link, "ANSWERS_MAX", 1 << 16)
    a, b = hosts
    monkeypatch.setattr(b.contact._wire, "read", lambda: b"")
    monkeypatch.setattr(a.contact._wire, "write", lambda out: False)  # the socket is full
    first, most = a.contact.link, 0
    until(hosts, lambda: b.contact.link is not None)
    for number in range(4000):
        if a.contact.link is not first or b.contact.link is None:
            break
        says(b, frames.Accept(number.to_bytes(16, "little"), FAR, NEAR, RING))
        for host in hosts:
            host.turn()
        most = max(most, len(first.stream.out) if first else 0)
    assert a.contact.link is not first and most < (1 << 16) + 4096
    monkeypatch.undo()
    until(hosts, lambda: all(host.contact.usable for host in hosts))
    pairs_still(hosts)


def connected(host: Host) -> socket.socket:
    assert host.hub._listener is not None
    return socket.create_connection(host.hub._listener.getsockname()[:2])


def test_callers_who_say_nothing_keep_nobody_out(hosts: tuple[Host, Host]) -> None:
    """As many as there is room for, from one address: the other host's comes from its own."""
    a, b = hosts
    crowd = [connected(b) for _ in range(hub._CALLERS_MAX)]
    until((b, b), lambda: len(b.hub._callers) == hub._CALLERS_MAX)
    b.contact.fail("cut")
    a.contact.fail("cut")
    at = time.monotonic()
    try:
        until(hosts, lambda: a.contact.usable and b.contact.usable)
        assert time.monotonic() - at < 4, "before the silent ones are given up"
        assert len(b.hub._callers) <= hub._CALLERS_MAX
    finally:
        for sock in crowd:
            sock.close()
    pairs_still(hosts)


def test_who_has_most_callers_makes_room(hosts: tuple[Host, Host]) -> None:
    b = hosts[1]
    port = b.hub._listener.getsockname()[1] if b.hub._listener else 0
    first = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0))
    crowd = []
    try:
        until((b, b), lambda: len(b.hub._callers) == 1)
        for _ in range(2 * hub._CALLERS_MAX):
            crowd.append(connected(b))
            b.turn()
        until((b, b), lambda: len(b.hub._callers) == hub._CALLERS_MAX)
        assert "127.0.0.2" in {caller.address for caller in b.hub._callers}
    finally:
        for sock in [first, *crowd]:
            sock.close()


def test_without_descriptors_it_looks_away(hosts: tuple[Host, Host]) -> None:
    """Else who waits to be accepted has the monitor turn for nothing."""
    b = hosts[1]
    assert b.hub._listener is not None
    caller = connected(b)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        b.turn()
        ready = [key.fileobj for key, _ in b.selector.select(0)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert b.hub._listener not in ready
    until((b, b), lambda: bool(b.hub._callers))
    caller.close()
    pairs_still(hosts)


def test_a_conversation_cannot_be_played_back() -> None:
    """Neither what the dialler has said, nor what the listener has."""
    dialler, listener = Handshake("a", lambda _: KEY, "b"), Handshake("b", lambda _: KEY, None)
    call = dialler.begin()
    answer = listener.feed(call)
    proof = dialler.feed(answer)
    assert listener.feed(proof) == b"" and listener.sealer and dialler.sealer
    with pytest.raises(Refused, match="another key"):
        Handshake("b", lambda _: KEY, None).feed(call + proof)
    again = Handshake("a", lambda _: KEY, "b")
    again.begin()
    with pytest.raises(Refused, match="another key"):
        again.feed(answer)


class NoMemory:
    """A queue pair that registers so many rings and no more (RLIMIT_MEMLOCK)."""

    def __init__(self, left: int) -> None:
        self.left = left

    def region(self, mirror: Any) -> tuple[int, int]:
        self.left -= 1
        if self.left < 0:
            raise OSError(12, "Cannot allocate memory")
        return 0, 0

    def describe(self) -> frames.Port:
        return frames.Port(1, 2, 3, 8, bytes(16))

    def connect(self, far: frames.Port) -> None: ...
    def flush(self) -> bool:
        return False

    def queued(self) -> int:
        return 0

    def forget(self, mirror: Any) -> None: ...
    def close(self) -> None: ...
    def status(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("short", [0, 1], ids=["a", "b"])
def test_a_ring_that_cannot_be_registered_is_one_connections_affair(hosts: tuple[Host, Host], short: int) -> None:
    """When a link begins, and when a connection comes: that one goes back to TCP, link and others go on."""
    for port in (1000, 1001):
        for host in hosts:
            host.offer_another(port)
    until(hosts, lambda: all(len([conn for conn in host.hub._conns if conn.mirror.linked]) == 2 for host in hosts))
    host = hosts[short]
    host.contact._make_port = lambda _contact: NoMemory(1)  # type: ignore[assignment,return-value]
    host.contact.fail("cut")
    until(hosts, lambda: all(one.contact.link is not None and len(one.hub._conns) == 1 for one in hosts))
    until(hosts, lambda: all([conn.mirror.linked for conn in one.hub._conns] == [True] for one in hosts))
    assert all(Bell.BACK in one.told and Bell.BREAK not in one.told for one in hosts)
    links = host.contact.links
    for one in hosts:
        one.due = False
        one.offer_another(1002)
    for _ in range(50):
        for one in hosts:
            one.due = False
            one.turn()
    assert host.contact.links == links and all(len(one.hub._conns) == 1 for one in hosts)


def test_a_copy_that_cannot_be_mapped_is_the_supervisors_affair(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """65,530 mappings are the most that a process has."""

    def full(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(hub, "Copy", full)
    assert not hosts[0].hub.hold(1, 5, 0, RING, 0)


def test_a_name_is_held_once(hosts: tuple[Host, Host]) -> None:
    """A client that holds one copy after the other under one name has the memory of one."""
    from monitor import segment
    from monitor.hosts.copy import Copy

    a = hosts[0]
    for number in range(3):
        memfd = segment.make(RING)
        copy = Copy(memfd, RING, 0)
        copy.found(a.hub._seeking.tag(a.contact) + number.to_bytes(8, "little"))
        assert a.hub.hold(1, 5, memfd, RING, 0) == (number == 0)
        copy.close()
    assert len(a.hub._conns) == 1
