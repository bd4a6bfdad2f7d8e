# SPDX-License-Identifier: Apache-2.0
"""A connection between hosts that parent and child use in turn, on both ends."""

from __future__ import annotations

import sys
import time

from tests.hosts.test_again import come_back, lose, went_back
from tests.hosts.test_back import BACK_S
from tests.hosts.world import Host, Program, World, assert_rdma, wait_for

SIZE = 700
TURNS = """
import os, socket, sys, time
who, address, port, carried, alone, stop = sys.argv[1:7]
if who == "server":
    l = socket.create_server((address, int(port)))
    print("listening", flush=True)
    s, _ = l.accept()
else:
    s = socket.create_connection((address, int(port)))
def whole():
    got = b""
    while len(got) < SIZE:
        part = s.recv(SIZE - len(got))
        if not part: break
        got += part
    return got
def serve():
    if got := whole(): s.sendall(got)
    return len(got) == SIZE
def ask():
    m = os.urandom(SIZE)
    s.sendall(m)
    assert whole() == m
    time.sleep(0.002)
    return not os.path.exists(stop)
turn = serve if who == "server" else ask
while not os.path.exists(carried): turn()  # what is shared before it has gone over stays on TCP
(ours, theirs), (own, other) = os.pipe(), os.pipe()
child = os.fork()
mine, yours = (ours, other) if child else (own, theirs)
if not child: os.write(yours, b"t")
n = 0
while not os.path.exists(alone):          # parent and child in turn
    assert os.read(mine, 1) == b"t"
    assert turn()
    n += 1
    os.write(yours, b"t")
if not child:
    print("child", n, flush=True)
    os._exit(0)
os.waitpid(child, 0)
while turn(): n += 1
print("parent", n, flush=True)
""".replace("SIZE", str(SIZE))


def start(host: Host, *words: object) -> Program:
    return host.runner().start(sys.executable, "-c", TURNS, *map(str, words))


def ring_bytes(host: Host, program: Program) -> int:
    told = wait_for(lambda: host.tells(program), f"its supervisor answers on {host.name}")
    return int(told["counters"]["bytes_rdma_tx"])


def moving(world: World, program: Program) -> None:
    """Its end carries more and more by rings."""
    before = ring_bytes(world.a, program)
    wait_for(lambda: ring_bytes(world.a, program) > before + 20 * SIZE, lambda: f"rings\n{world.known()}")


def test_shared_connections_go_by_rings_back_and_up_again(world: World) -> None:
    """Back when the link is lost; up again once each end is one process's alone, not before."""
    world.start(back_s=BACK_S, lost_s=300)
    carried, alone, stop = (world.a.folder / word for word in ("carried", "alone", "stop"))
    server = start(world.b, "server", world.b.address, 7040, carried, alone, stop)
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = start(world.a, "client", world.b.address, 7040, carried, alone, stop)
    world.carried(1, 10_000)
    carried.touch()
    moving(world, client)
    known = lose(world)
    went_back(world, {client: "a", server: "b"}, 1)
    shared = ring_bytes(world.a, client)
    come_back(world, known)
    time.sleep(2)
    assert ring_bytes(world.a, client) == shared, "who shares a connection stays on TCP"
    alone.touch()
    world.a.carried(1, 10_000)
    moving(world, client)
    stop.touch()
    world.finish(client, server)
    asked, served = (dict(line.split() for line in one.stdout.decode().splitlines() if " " in line)
                     for one in (client, server))
    assert all(int(count) > 0 for count in (*asked.values(), *served.values())) and len(asked) == len(served) == 2
    assert_rdma(client.report(), 1, shared)


def test_who_shares_one_before_it_has_gone_over_is_told_so_and_keeps_no_rings(world: World) -> None:
    """It moves once each end is one process's alone."""
    world.start(unused_s=1.0)
    carried, alone, stop = (world.a.folder / word for word in ("carried", "alone", "stop"))
    carried.touch()
    server = start(world.b, "server", world.b.address, 7041, carried, alone, stop)
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = start(world.a, "client", world.b.address, 7041, carried, alone, stop)
    wait_for(lambda: world.a.peer("b")["left"] and world.b.peer("a")["left"], lambda: f"given up\n{world.known()}")
    wait_for(lambda: not world.a.far()["connections"] and not world.b.far()["connections"], "both have forgotten it")
    for host, program in ((world.a, client), (world.b, server)):
        (line,) = [one for one in host.tells(program)["connections"] if one["role"]]
        assert line["reason"] == "shared-before-switch" and line["ring"] is None, line
    assert ring_bytes(world.a, client) == 0
    alone.touch()
    world.carried(1, 10_000)
    moving(world, client)
    stop.touch()
    world.finish(client, server)
    assert_rdma(client.report(), 1)
