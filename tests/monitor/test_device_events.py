# SPDX-License-Identifier: Apache-2.0
"""What a device says by itself ends links at once, for a reason that is counted; and they are there again when it can.

Two hubs with queue pairs over a libibverbs, or a pyverbs, that is memory of this process (queues.py), and a folder in
the place of /sys/class/infiniband.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from monitor.hosts import adapter, discover, loop, verbs
from monitor.hosts.config import Config
from monitor.hosts.events import Event
from sdlib.wire.messages import Bell
from tests.monitor import fakepyverbs
from tests.monitor.queues import Fake
from tests.monitor.test_again import Host, carries, make_hosts

ADDRESS = "127.0.0.1"
LIMIT_S = 20.0
pytestmark = pytest.mark.usefixtures("fake_libibverbs")


class World:
    """Two hosts, and the one folder that says which device they have."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.library: Any = Fake() if kind == "c" else fakepyverbs
        self.hosts: tuple[Host, ...] = ()

    def plug(self) -> None:
        port = self.folder / "fake/ports/1"
        for name, text in (("gids/0", f"::ffff:{ADDRESS}"), ("gid_attrs/types/0", "RoCE v2"), ("state", "4: ACTIVE")):
            (port / name).parent.mkdir(parents=True, exist_ok=True)
            (port / name).write_text(text)

    def unplug(self) -> None:
        shutil.rmtree(self.folder / "fake")

    def port_is(self, state: str) -> None:
        (self.folder / "fake/ports/1/state").write_text(state)

    def make(self) -> Any:
        found = discover.find(Config("x", (ADDRESS, 1), {}))
        if self.kind == "c":
            return loop.Device(found)
        with patch.multiple(verbs, pyverbs=fakepyverbs.modules, _event_fds=fakepyverbs.event_fds):
            return verbs.Device(found)

    def start(self, **more: Any) -> tuple[Host, Host]:
        a, b = self.hosts = make_hosts(device=self.make, **more)
        return a, b

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, [host.hub.status() for host in self.hosts]
            self.turn()

    def turn(self) -> None:
        for host in self.hosts:
            host.turn()
            link = host.contact.link
            while link is not None and link.port is not None and self.library.step(link.port.number) > 0:
                pass

    def linked(self) -> None:
        self.until(lambda: all(host.contact.there for host in self.hosts))

    def connected(self) -> None:
        self.linked()
        for host in self.hosts:
            host.offer()
        self.until(lambda: all(host.linked() for host in self.hosts))

    @staticmethod
    def device(host: Host) -> Any:
        assert host.hub._device is not None
        return host.hub._device.device

    def say(self, host: Host, event: Event, number: int = 1) -> None:
        """`number`: of a queue pair, or the port."""
        device = self.device(host)
        if self.kind == "python":
            device.context.say(int(event))
            return
        with socket.socket(fileno=os.dup(device.async_fileno())) as its, socket.socket(its.family, its.type) as ours:
            ours.sendto(struct.pack("2I", event, number), its.getsockname())

    def close(self) -> None:
        for host in self.hosts:
            device = self.device(host)
            host.close()
            if device is not None:
                device.close()


@pytest.fixture(params=["c", "python"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(discover, "_SYS", tmp_path / "infiniband")
    monkeypatch.setattr(discover, "INLINE", 64)
    monkeypatch.setattr(discover, "DEPTH", 8)
    monkeypatch.setattr(adapter, "LOOK_S", 0.2)
    made = World(request.param, tmp_path / "infiniband")
    made.plug()
    yield made
    made.close()


def rdma(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = host.hub.status()["rdma"]
    return found


def test_a_port_that_is_down(world: World) -> None:
    """Its link is over with the event, by TCP while it is down, and by RDMA once it is active again."""
    a, b = world.start(back_s=60.0)
    world.connected()
    world.port_is("1: DOWN")
    world.say(a, Event.PORT_ERR)
    a.turn()
    assert not a.contact.there
    assert rdma(a) == {"waits": "port 1 of fake is down", "said": {"port_err": 1}, "lost": {"port_err": 1}}
    world.until(lambda: a.linked() and b.linked())
    assert a.contact.link is not None and a.contact.link.port is None, "by TCP"
    assert not a.told.count(Bell.BACK), "back_s has not passed"
    links = a.contact.links
    for _ in range(20):
        world.turn()
    carries((a, b))
    assert a.contact.links == links
    world.port_is("4: ACTIVE")
    world.say(a, Event.PORT_ACTIVE)
    world.linked()
    assert rdma(a)["waits"] == ""
    assert a.contact.links == links + 1 and a.contact.steady.breaks == 1, "waiting for the port was no break"


def test_a_port_of_which_nobody_says_that_it_is_active_again(world: World) -> None:
    a, _ = world.start()
    world.linked()
    world.port_is("1: DOWN")
    world.say(a, Event.PORT_ERR)
    world.until(lambda: rdma(a)["waits"])
    world.port_is("4: ACTIVE")
    world.linked()


def test_a_port_that_is_down_from_the_beginning(world: World) -> None:
    world.port_is("1: DOWN")
    a, b = world.start()
    world.until(lambda: a.contact.link and b.contact.link)
    assert rdma(a)["waits"] == rdma(b)["waits"] == "port 1 of fake is down"
    world.port_is("4: ACTIVE")
    world.linked()


def test_what_is_of_another_port_or_says_nothing_of_links(world: World) -> None:
    a, _ = world.start()
    world.linked()
    for event in (Event.PORT_ERR, Event.PORT_ACTIVE, Event.GID_CHANGE, Event.SM_CHANGE):
        world.say(a, event, 2)
    world.until(lambda: len(rdma(a)["said"]) == 4)
    assert a.contact.there and not rdma(a)["lost"]


@pytest.mark.parametrize("event", [Event.QP_FATAL, Event.QP_REQ_ERR, Event.QP_ACCESS_ERR])
def test_a_queue_pair_that_the_device_has_ended(world: World, event: Event) -> None:
    a, _ = world.start()
    world.linked()
    link = a.contact.link
    assert link is not None and link.port is not None
    world.say(a, event, link.port.number)
    a.turn()
    assert a.contact.link is not link and rdma(a)["lost"] == {event.name.lower(): 1} and not rdma(a)["waits"]
    world.linked()


@pytest.mark.parametrize("event", [Event.DEVICE_FATAL, Event.CQ_ERR])
def test_a_device_that_has_failed_is_opened_anew(world: World, event: Event) -> None:
    """Its connections do not wait `back_s` for that."""
    a, b = world.start(back_s=60.0)
    world.connected()
    old = world.device(a)
    world.unplug()
    world.say(a, event, 0)
    a.turn()
    name = event.name.lower()
    assert world.device(a) is None and rdma(a)["lost"] == {name: 1}
    assert rdma(a)["waits"] == f"fake has failed ({name})"
    world.until(lambda: Bell.BACK in a.told and Bell.BACK in b.told)
    world.plug()
    world.linked()
    assert world.device(a) not in (None, old)


def test_a_device_that_is_taken_away_and_says_nothing(world: World) -> None:
    a, b = world.start(back_s=60.0)
    world.connected()
    world.unplug()
    world.until(lambda: Bell.BACK in a.told and Bell.BACK in b.told)
    assert sum(rdma(host)["lost"].get("device-gone", 0) for host in (a, b)), "of whom sees it first"
    assert "no RDMA device" in rdma(a)["waits"] or "gone" in rdma(a)["waits"]
    world.plug()
    world.linked()


def test_a_device_that_comes_when_the_monitor_runs(world: World) -> None:
    world.unplug()
    a, b = world.start()
    world.until(lambda: a.contact.link and b.contact.link)
    assert rdma(a)["waits"] == f"no RDMA device has {ADDRESS}, as a GID of RoCE v2, or by IPoIB"
    world.plug()
    world.connected()
    assert not rdma(a)["waits"]


def test_an_address_that_is_another(world: World) -> None:
    """The same index has another GID: links by the old one are over. One that stays the same is no news."""
    a, _ = world.start()
    world.linked()
    links = a.contact.links
    world.say(a, Event.GID_CHANGE)
    world.until(lambda: rdma(a)["said"])
    assert a.contact.there and a.contact.links == links
    (world.folder / "fake/ports/1/gids/0").write_text("::ffff:127.0.0.9")
    world.say(a, Event.GID_CHANGE)
    world.until(lambda: rdma(a)["lost"])
    assert rdma(a)["lost"] == {"gid_change": 1}
    world.plug()
    world.linked()


def test_an_address_to_listen_at_that_comes_when_the_monitor_runs(world: World) -> None:
    """As that of the device's own interface may."""
    with patch.object(socket, "create_server", side_effect=OSError(99, "")) as tried:
        ends = [socket.socket() for _ in "ab"]
        for end in ends:
            end.bind((ADDRESS, 0))
        names = [end.getsockname() for end in ends]
        a = Host("a", ends[0], ("b", names[1]), 0, world.make)
        world.hosts = (a, Host("b", ends[1], ("a", names[0]), 1, world.make))
        assert world.hosts[1].hub.status()["deaf"] == f"{ADDRESS}:{names[1][1]}: Cannot assign requested address"
        world.until(lambda: tried.call_count > 4)
    world.linked()
    assert not world.hosts[1].hub.status()["deaf"]


def test_the_mtu_of_a_port_of_infiniband_is_what_the_port_has(world: World) -> None:
    """Both libraries say 2048 here; what the configuration says instead is in test_discover.py."""
    port = world.folder / "fake/ports/1"
    (port / "link_layer").write_text("InfiniBand")
    (port / "lid").write_text("0x7")
    (world.folder / "fake/device/net/lo").mkdir(parents=True)
    (world.folder / "fake/device/net/lo/dev_port").write_text("0")
    device = world.make()
    assert device.found.lid == 7 and device.found.mtu == 4
    device.close()
