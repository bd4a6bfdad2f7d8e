# SPDX-License-Identifier: Apache-2.0
"""RDMA devices that come late, go away, or say that their port is down, while monitors and programs run."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from typing import Any

import pytest

from monitor.hosts.events import Event
from tests.guestbuild import Guests
from tests.hosts.talk import assert_whole
from tests.hosts.world import VERBS, Host, World, wait_for

device_only = pytest.mark.parametrize("world", ["device"], indirect=True)


def rdma(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = host.far().get("rdma") or {"waits": "", "said": {}, "lost": {}}
    return found


def plug(world: World, host: Host) -> None:
    if VERBS:
        name = host.name
        subprocess.run(["rdma", "link", "add", f"rx{name}", "type", "rxe", "netdev", f"v{name}"], check=True)
    else:
        (host.folder / "soft").rename(host.folder / "infiniband" / "soft")


def unplug(world: World, host: Host) -> None:
    """A soft device that somebody has open goes only when that closes it."""
    if VERBS:
        subprocess.run(["rdma", "link", "delete", f"rx{host.name}"], check=True, timeout=120)
    else:
        (host.folder / "infiniband" / "soft").rename(host.folder / "soft")


def port_is(world: World, host: Host, up: bool) -> None:
    if VERBS:
        world.cut(host, not up)
        return
    (host.folder / "infiniband/soft/ports/1/state").write_text("4: ACTIVE" if up else "1: DOWN")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as said:
        event = Event.PORT_ACTIVE if up else Event.PORT_ERR
        said.sendto(struct.pack("2I", event, 1), f"{host.env['SOFTVERBS']}/said.{host.monitor_pid()}")


@device_only
def test_a_port_that_goes_down_is_not_waited_for(world: World, guests: Guests) -> None:
    """dead_s is a minute, and requests are sent again for ever (`retries: 7`): only the device says so."""
    world.start(dead_s=60, back_s=600, device={"retries": 7})
    server, client = world.exchange(guests("integrity"), 7020, 1 << 20)
    at = time.monotonic()
    port_is(world, world.a, False)
    # (Soft RoCE also flushes what is under way, and that may be seen first: then it is not counted as the event's.)
    wait_for(lambda: rdma(world.a)["said"].get("port_err"), lambda: f"it hears so\n{world.known()}")
    took = time.monotonic() - at
    assert not world.a.peer("b").get("rdma") and "is down" in rdma(world.a)["waits"]
    port_is(world, world.a, True)
    world.linked()
    world.finish(client, server)
    assert_whole(client, server, 1 << 20)
    assert not rdma(world.a)["waits"] and took < 50
    print(f"{took:.2f} s until a had no link; {rdma(world.a)}")


@device_only
def test_a_device_that_comes_late_and_goes_away(world: World, guests: Guests) -> None:
    """With connections on rings: they go back to TCP, and the next ones are by RDMA when it is there again."""
    unplug(world, world.b)
    try:
        late(world)
    finally:
        plug(world, world.b)
    world.linked()
    stay = world.a.folder / "stay"
    server, client = world.exchange(guests("integrity"), 7021, 1 << 20, STAY=str(stay))
    unplug(world, world.b)
    try:
        wait_for(lambda: rdma(world.b)["lost"].get("device-gone"), lambda: f"it sees so\n{world.known()}")
        wait_for(lambda: not world.b.far()["connections"], lambda: f"it goes by TCP\n{world.known()}")
        stay.touch()
        world.finish(client, server)
        assert_whole(client, server, 1 << 20)
    finally:
        plug(world, world.b)
    world.linked()
    (world.a.folder / "go").unlink()
    server, client = world.exchange(guests("integrity"), 7022, 1 << 16)
    world.finish(client, server)
    assert_whole(client, server, 1 << 16)


def late(world: World) -> None:
    """Monitors start; b has no device yet, and says so."""
    linked, world.linked = world.linked, lambda: None  # type: ignore[method-assign]
    try:
        world.start(back_s=600)
    finally:
        world.linked = linked  # type: ignore[method-assign]
    wait_for(lambda: world.a.peer("b").get("up"), lambda: f"by TCP\n{world.a.log}\n{world.b.log}")
    assert "no RDMA device has 10.1.0.2" in rdma(world.b)["waits"] and not rdma(world.a)["waits"]
