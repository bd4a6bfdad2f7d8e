# SPDX-License-Identifier: Apache-2.0
"""A link that breaks again and again: connections leave it, and are on it again once it holds."""

from __future__ import annotations

import os

from tests.guestbuild import Guests
from tests.hosts.talk import assert_whole
from tests.hosts.test_between import quick_only, shown_links, tool
from tests.hosts.world import Host, World, wait_for

REASON = "host-link-unsteady"
HOLD_S = 8
SIZE = 1 << 20


def link(host: Host) -> dict[str, object]:
    (found,) = shown_links({**os.environ, "SOCKSDIRECT_MONITOR": host.socket})
    return found


def breaks(world: World) -> None:
    """The wire is cut until both monitors have noticed, and then there is another link."""
    links = [host.peer(other)["links"] for host, other in ((world.a, "b"), (world.b, "a"))]
    world.cut(world.b, True)
    wait_for(lambda: not world.a.peer("b")["up"] and not world.b.peer("a")["up"], "both have noticed")
    world.cut(world.b, False)
    world.linked()
    assert [host.peer(other)["links"] for host, other in ((world.a, "b"), (world.b, "a"))] > links


@quick_only
def test_connections_leave_it_and_come_back(world: World, guests: Guests) -> None:
    world.start(dead_s=1, back_s=5, hold_s=HOLD_S, hold_most_s=HOLD_S, lost_s=300)
    stay = world.a.folder / "stay"
    server, client = world.exchange(guests("integrity"), 7050, SIZE, STAY=str(stay))
    world.carried(1, 100_000)
    breaks(world)
    world.carried(1)  # a machine that takes its time has it go back and come up again
    breaks(world)
    assert link(world.a)["breaks"] == 2
    ends = {client: world.a, server: world.b}

    def back() -> bool:
        return all(host.tells(program).get("moved_back", {}).get(REASON) for program, host in ends.items())

    wait_for(back, world.known)
    assert link(world.a)["link"] == "rdma"
    wait_for(lambda: not link(world.a)["held_s"], "it has held for long enough")
    world.carried(1, 100_000)
    said = tool("sdstat", "--hosts", env={**os.environ, "SOCKSDIRECT_MONITOR": world.a.socket})
    assert ", breaks 2, held 0 s, " in said, said
    stay.touch()
    world.finish(client, server)
    assert_whole(client, server, SIZE)
    for program in ends:
        found = program.report().raw["connections"]
        assert found["rdma"] == 1 and found["moved_back"].get(REASON), found
