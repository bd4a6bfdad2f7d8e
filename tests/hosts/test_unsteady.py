# SPDX-License-Identifier: Apache-2.0
"""A link that breaks again and again: connections leave it, and are on it again once it holds."""

from __future__ import annotations

import os
import sys

from tests.guestbuild import Guests
from tests.hosts.talk import ECHO, assert_whole, echo, ping
from tests.hosts.test_between import quick_only, shown_links, tool
from tests.hosts.world import Host, Mode, Program, World, wait_for

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
    assert int(str(link(world.a)["breaks"])) >= 2, "a busy machine says nothing for a second by itself"
    ends = {client: world.a, server: world.b}

    def back() -> bool:
        return all(host.tells(program).get("moved_back", {}).get(REASON) for program, host in ends.items())

    wait_for(back, world.known)
    assert link(world.a)["link"] == "rdma"
    wait_for(lambda: not link(world.a)["held_s"], "it has held for long enough")
    world.carried(1, 100_000)
    said = tool("sdstat", "--hosts", env={**os.environ, "SOCKSDIRECT_MONITOR": world.a.socket})
    assert ", breaks " in said and ", held 0 s, " in said, said
    stay.touch()
    world.finish(client, server)
    assert_whole(client, server, SIZE)
    for program in ends:
        found = program.report().raw["connections"]
        assert found["rdma"] == 1 and found["moved_back"].get(REASON), found


@quick_only
def test_new_connections_say_why_they_are_not_on_it(world: World, guests: Guests) -> None:
    """And, once it holds, that it is the other program."""
    world.start(dead_s=1, hold_s=3600, hold_most_s=3600)
    for _ in range(2):
        breaks(world)
    go = world.a.folder / "go"
    server = echo(world.b, 7051, go)
    client = ping(world.a, world.b, 7051, go)
    ends = {client: world.a, server: world.b}
    wait_for(lambda: all(shown(host, program) == REASON for program, host in ends.items()), world.known)
    go.touch()
    world.finish(client, server)
    for program in ends:
        assert program.report().raw["connections"]["tcp_reasons"] == {REASON: 1}, program.report()


@quick_only
def test_it_is_no_reason_any_more_once_it_holds(world: World) -> None:
    world.start(dead_s=1, hold_s=HOLD_S, hold_most_s=HOLD_S)
    for _ in range(2):
        breaks(world)
    go = world.a.folder / "go"
    server = world.b.runner(Mode.NATIVE).start(sys.executable, "-c", ECHO, world.b.address, "7052", "1", go, "")
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = ping(world.a, world.b, 7052, go)
    wait_for(lambda: shown(world.a, client) == REASON, world.known)
    wait_for(lambda: shown(world.a, client) == "", world.known)
    go.touch()
    world.finish(client, server)
    assert client.report().raw["connections"]["tcp_reasons"] == {"peer-not-under-sdrun": 1}, client.report()


def shown(host: Host, program: Program) -> str | None:
    """Why its only connection is where it is; None: there is none yet."""
    connections = [one for one in host.tells(program).get("connections", []) if one["state"] == "offered"]
    return str(connections[0]["reason"]) if connections else None
