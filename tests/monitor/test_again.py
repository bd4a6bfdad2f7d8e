# SPDX-License-Identifier: Apache-2.0
"""A connection between hosts is offered a second time, after its rings were given up, in every order of events.

Two real hubs, whose TCP connection carries the rings; supervisors and programs are the test's.  Whatever the order in
which both ends give up, offer anew and the link breaks: both come to have copies of one new name, which
carries bytes, and nothing is left of the first.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from monitor.endpoint import Shape
from monitor.hosts.config import FOR_TESTS, VERBS, Config, Peer
from monitor.hosts.contact import Contact
from monitor.hosts.copy import Copy
from monitor.hosts.hub import Hub
from monitor.hosts.link import Port
from monitor.match import Address, Key, Offer
from sdlib import abi
from sdlib.wire.left import Left
from sdlib.wire.messages import Bell, Nudge
from sdlib.wire.segment import segment_bytes
from tests.monitor.queues import FOUND

RING = 4096
BYTES = 700
LIMIT_S = 60.0
BACK_S = 0.5
KEY = b"sixteen bytes and more"
SHAPE = Shape(7, 9, 9)


def mapped(text: str) -> bytes:
    return ipaddress.IPv6Address(f"::ffff:{text}").packed


class Host:
    """A hub, and the supervisor of one program with one connection."""

    def __init__(self, name: str, listen: socket.socket, far: tuple[str, tuple[str, int]], number: int,
                 device: Any = None, **seconds: float) -> None:
        self.number = number
        self.selector = selectors.DefaultSelector()
        address = listen.getsockname()
        listen.close()
        other, there = far
        peer = Peer(other, there, (ipaddress.ip_network(f"10.0.0.{2 - number}/32"),), KEY)
        usual: dict[str, Any] = {"dead_s": 60.0, "back_s": BACK_S, "hold_s": 0.0}
        transport = VERBS if device else FOR_TESTS
        config = Config(name, address, {other: peer}, transport=transport, **usual | seconds)
        self.open: set[tuple[int, int]] = set()
        self.copies: list[Copy] = []
        self.told: list[Bell] = []
        self.said: list[tuple[Bell, int]] = []
        self.unsteady = 0
        self.offers = 0
        self.due = False
        self.hub = Hub(config, self.selector, self, device)
        self.contact = self.hub.contacts[other]

    # ----------------------------------------------------- what the hub asks the rest of the monitor

    def is_open(self, offer: Offer) -> bool:
        return (offer.client, offer.offer_id) in self.open

    def paired(self, offer: Offer, side: int, ring_bytes: int, memfd: int) -> bool:
        self.open.discard((offer.client, offer.offer_id))
        self.copies.append(Copy(memfd, ring_bytes, side))
        return True

    def ring(self, client: int, offer_id: int, what: Bell, number: int = 0) -> bool:
        self.told.append(what)
        self.said.append((what, number))
        self.unsteady += (what, number) in ((Bell.BACK, Left.UNSTEADY), (Bell.WHY, Left.UNSTEADY))
        if what == Bell.BACK and offer_id > 1:
            self.due = True  # given up before the other end had it: the library offers once more
        return True

    # ------------------------------------------------------------------------------------- events

    def offer(self) -> None:
        """As the supervisor does when the library has let go of the old rings (Broker.offer)."""
        if self.offers:
            self.hub.closed(1, self.offers)
        self.offer_another(1000)

    def offer_another(self, port: int) -> None:
        """One connection more; `port` at both ends."""
        self.offers += 1
        own, other = (Address(mapped(f"10.0.0.{number + 1}"), 0, port) for number in (self.number, 1 - self.number))
        self.open.add((1, self.offers))
        self.hub.offered(Offer(1, self.offers, 0, 5, Key(3, own, other), RING), SHAPE)

    def leave(self) -> None:
        """No RDMA for too long."""
        for conn in self.hub._conns.of(self.contact):
            self.hub._conns.leave(conn, Left.LINK)

    def turn(self) -> None:
        for key, mask in self.selector.select(0):
            key.data(mask)
        self.hub.turn()
        if self.due:
            self.due = False
            self.offer()

    def linked(self, first: bytes = b"") -> bytes:
        """The name of its only connection, if that is not `first` and linked."""
        conns = list(self.hub._conns)
        if len(conns) != 1 or not conns[0].mirror.linked or conns[0].left or conns[0].waiting:
            return b""
        name = self.copies[-1].far_id()
        return name if name == conns[0].mirror.far_id != first else b""

    def close(self) -> None:
        self.hub.close()
        self.selector.close()
        for copy in self.copies:
            copy.close()


class NoDevice:
    """It is there, and gives no queue pairs."""

    threads = False
    found = FOUND

    def __init__(self) -> None:
        self._event, self._async = os.eventfd(0), os.eventfd(0)

    def async_fileno(self) -> int:
        return self._async

    def fileno(self) -> int:
        return self._event

    def port(self, contact: Contact) -> Port:
        raise OSError("none left")

    def poll(self) -> bool:
        return False

    spin = poll

    def arm(self) -> None:
        pass

    def stop(self) -> None:
        os.close(self._event)

    def close(self) -> None:
        pass


def make_hosts(**times: Any) -> tuple[Host, Host]:
    ends = [socket.create_server(("127.0.0.1", 0)) for _ in "ab"]
    addresses = [end.getsockname() for end in ends]
    return Host("a", ends[0], ("b", addresses[1]), 0, **times), Host("b", ends[1], ("a", addresses[0]), 1, **times)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    made = make_hosts()
    yield made
    for host in made:
        host.close()


def until(hosts: tuple[Host, Host], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, [host.hub.status() for host in hosts]
        for host in hosts:
            host.turn()


def carries(hosts: tuple[Host, Host]) -> None:
    """What one program writes into its newest ring, the other one reads."""
    for here, there in (hosts, hosts[::-1]):
        programs: list[Any] = [abi.lib.sd_py_open(host.copies[-1]._at, segment_bytes(RING), host.copies[-1].side)
                               for host in (here, there)]
        text = os.urandom(BYTES)
        assert abi.lib.sd_py_put(programs[0], text, BYTES) == BYTES
        here.hub.heard(1, Nudge(here.offers))
        until(hosts, partial(lambda reader: abi.lib.sd_py_readable(reader) == BYTES, programs[1]))
        buffer = abi.ffi.new("uint8_t[]", BYTES)
        abi.lib.sd_py_take(programs[1], buffer, BYTES)
        assert bytes(abi.ffi.buffer(buffer)) == text
        for program in programs:
            abi.lib.sd_py_close(program)


EVENTS = ("a leaves", "b leaves", "a offers", "b offers", "the link breaks")
ORDERS = [order for order in itertools.permutations(EVENTS)
          if all(order.index(f"{name} leaves") < order.index(f"{name} offers") for name in "ab")]


@pytest.mark.parametrize("between", [0, 1, 3])
@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_a_second_time(hosts: tuple[Host, Host], order: tuple[str, ...], between: int) -> None:
    """`between`: how much both get done from one event to the next."""
    a, b = hosts
    for host in hosts:
        host.offer()
    until(hosts, lambda: bool(a.linked()) and a.linked() == b.linked())
    carries(hosts)
    first = a.linked()
    what: dict[str, Callable[[], object]] = {
        "a leaves": a.leave, "b leaves": b.leave, "a offers": a.offer, "b offers": b.offer,
        "the link breaks": partial(a.contact.fail, "cut"),
    }  # fmt: skip
    for event in order:
        what[event]()
        for _ in range(between):
            a.turn()
            b.turn()
    until(hosts, lambda: bool(a.linked(first)) and a.linked(first) == b.linked(first))
    assert {a.copies[-1].side, b.copies[-1].side} == {0, 1}
    assert a.told.count(Bell.BREAK) == b.told.count(Bell.BREAK) == 0
    assert Bell.BACK in a.told and Bell.BACK in b.told
    carries(hosts)


ENDS = [order for order in itertools.permutations(("a ends", "b ends", "the link breaks", "the link breaks again"))
        if order.index("the link breaks") < order.index("the link breaks again")]


@pytest.mark.parametrize("order", ENDS, ids=", ".join)
def test_the_end_is_heard_of_whatever_the_link_does(hosts: tuple[Host, Host], order: tuple[str, ...]) -> None:
    """Who has said that nothing more comes, and been answered or not, says it again by the next link."""
    a, b = hosts
    for between in itertools.product((1, 3), repeat=2):
        for host in hosts:
            host.offer()
        until(hosts, lambda: bool(a.linked()) and a.linked() == b.linked())
        what: dict[str, Callable[[], object]] = {
            "a ends": partial(a.hub.closed, 1, a.offers), "b ends": partial(b.hub.closed, 1, b.offers),
            "the link breaks": partial(a.contact.fail, "cut"), "the link breaks again": partial(b.contact.fail, "cut"),
        }  # fmt: skip
        for event, turns in zip(order, (*between, 1, 0), strict=True):
            what[event]()
            for _ in range(turns):
                a.turn()
                b.turn()
        until(hosts, lambda: not len(a.hub._conns) and not len(b.hub._conns))


def test_who_can_go_on_by_tcp_is_not_reset() -> None:
    """However patient the other times are: when a host is given up for lost, that is the last moment to go back."""
    a, b = made = make_hosts(back_s=600, lost_s=0.5)
    try:
        for host in made:
            host.offer()
        until(made, lambda: bool(a.linked()) and a.linked() == b.linked())
        b.hub.close()
        a.contact.fail("the other host is gone")
        until((a, a), lambda: bool(a.told))
        assert a.told == [Bell.BACK] and not len(a.hub._conns)
    finally:
        a.close()
        b.selector.close()
        for copy in b.copies:
            copy.close()


def test_how_long_there_has_been_no_rdma_is_not_counted_anew_by_each_call() -> None:
    """Else a connection would wait for it for ever, where `back_s` is longer than from one try to the next."""
    made = make_hosts(device=NoDevice)
    try:
        for _ in range(3):
            before = [host.contact.without_s for host in made]
            made[0].contact.fail("once more")
            until(made, lambda: all(host.contact.link is not None for host in made))
            assert all(host.contact.without_s > since for host, since in zip(made, before, strict=True))
    finally:
        for host in made:
            host.close()
