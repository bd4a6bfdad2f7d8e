# SPDX-License-Identifier: Apache-2.0
"""Monitors are killed and links go down at random moments; every byte arrives once, and rings are used again."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest

from tests.guestbuild import Guests
from tests.hosts.talk import assert_whole
from tests.hosts.test_between import quick_only, shown_links
from tests.hosts.world import LIMIT_S, VERBS, Host, World

FAILURES = int(os.environ.get("SDRUN_HOSTS_FAILURES", "2" if VERBS else "6"))


@pytest.mark.parametrize("world", ["device", pytest.param("tcp", marks=quick_only)], indirect=True)
@pytest.mark.parametrize("what", ["monitors", "link"])
def test_every_byte_arrives_once(world: World, guests: Guests, what: str) -> None:
    world.start(dead_s=5 if VERBS else 1.5, back_s=600)  # rings, not TCP, carry it
    seed = os.environ.get("SDRUN_HOSTS_SEED", "") + what
    print(f"SDRUN_HOSTS_SEED={seed.removesuffix(what)}, {FAILURES} failures")
    dice = random.Random(seed)
    size = 1 << 20  # at least: they send until all failures are over
    stay = world.a.folder / "stay"
    server, client = world.exchange(guests("integrity"), 7010, size, STAY=str(stay))
    hit = 0
    for done in range(FAILURES):
        # In the guest it takes ten seconds to have a link: who kills faster for minutes shows that nothing moves.
        if dice.random() < 0.5:
            until_linked(world)
        time.sleep(dice.uniform(0, 0.4))
        host = dice.choice((world.a, world.b))
        hit += is_linked(world)
        tell(f"{what} {done} of {FAILURES}: {host.name}, {hit} of a link that was up")
        if what == "monitors":
            try:
                os.kill(host.monitor_pid(), signal.SIGKILL)
            except AssertionError as error:
                raise AssertionError(f"after {done} of {FAILURES}: {error}\n{world.known()}") from None
        else:
            world.cut(host, True)
            time.sleep(dice.choice((0.05, 2.4)) * (3 if VERBS else 1))
            world.cut(host, False)
        for program in (client, server):
            assert program.process.poll() is None, f"ended after {done} of {FAILURES}\n{world.known()}"
    print(f"{hit} of {FAILURES} failures were of a link that was up")
    assert hit >= FAILURES // 5
    stay.touch()
    world.finish(client, server)
    assert_whole(client, server, size)
    world.linked()
    if VERBS and what == "link" and FAILURES >= 20:
        assert sum(shown(host)["retries"] for host in (world.a, world.b)), "the device has sent some of it again"


def is_linked(world: World) -> bool:
    """As far as a knows, whose monitor may be gone."""
    peers = (world.a.status().get("hosts") or {"peers": []})["peers"]
    return any(peer["rdma" if world.a.rdma else "up"] for peer in peers)


def until_linked(world: World) -> None:
    """Or for so long that it makes no difference: a slow machine may need it longer than we have left."""
    deadline = time.monotonic() + LIMIT_S / 4
    while not is_linked(world) and time.monotonic() < deadline:
        time.sleep(0.05)


def tell(line: str) -> None:
    """For whoever waits for hours: $SDRUN_HOSTS_PROGRESS names a file."""
    if name := os.environ.get("SDRUN_HOSTS_PROGRESS"):
        with open(name, "a") as progress:
            print(time.strftime("%H:%M:%S"), line, file=progress, flush=True)


def shown(host: Host) -> dict[str, Any]:
    """What sdss --hosts says of its only link."""
    env = {**os.environ, "SOCKSDIRECT_MONITOR": host.socket}
    (link,) = shown_links(env)
    return link
