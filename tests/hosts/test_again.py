# SPDX-License-Identifier: Apache-2.0
"""A link that was lost for good is there again: who has gone back to TCP moves up once more, byte for byte."""

from __future__ import annotations

import os
import signal
import sys

from tests.guestbuild import Guests
from tests.hosts.talk import assert_whole, ping
from tests.hosts.test_back import BACK_S, SIZE
from tests.hosts.test_between import quick_only
from tests.hosts.world import VERBS, Program, World, assert_rdma, wait_for

ROUNDS = 1 if VERBS else 3
THREADS = """
import os, socket, sys, threading
def serve(s):
    n = 0
    while data := s.recv(65536):
        s.sendall(data); n += len(data)
    print(n, flush=True)
    s.close()
l = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    s, _ = l.accept()
    threading.Thread(target=serve, args=(s,)).start()
"""
"""One thread waits for connections all the time."""


def lose(world: World) -> str:
    """The monitor of b is killed, and its successor knows no other host. Returns what it should know."""
    known = world.b.config.read_text()
    world.b.config.write_text("{}")
    os.kill(world.b.monitor_pid(), signal.SIGKILL)
    return known


def come_back(world: World, known: str) -> None:
    world.b.config.write_text(known)
    os.kill(world.b.monitor_pid(), signal.SIGKILL)
    world.linked()


def went_back(world: World, programs: dict[Program, str], times: int) -> None:
    """Both ends of each have done so, so often."""
    def moved() -> bool:
        return all(world.hosts[host].tells(program).get("moved_back", {}).get("host-link-lost", 0) >= times
                   for program, host in programs.items())
    wait_for(moved, lambda: f"they go back\n{world.a.log}\n{world.b.log}"
             f"{[world.hosts[host].tells(program) for program, host in programs.items()]}")


def there_and_back(world: World, programs: dict[Program, str], connections: int = 1) -> None:
    """ROUNDS times, while the programs talk."""
    for number in range(1, ROUNDS + 1):
        known = lose(world)
        went_back(world, programs, number)
        world.forgotten()
        come_back(world, known)
        world.carried(connections, 10_000)


def test_the_same_connection_moves_up_again(world: World, guests: Guests) -> None:
    world.start(back_s=BACK_S, lost_s=300)
    stay = world.a.folder / "stay"
    server, client = world.exchange(guests("integrity"), 7030, SIZE, STAY=str(stay))
    world.carried(1, 100_000)
    there_and_back(world, {client: "a", server: "b"})
    stay.touch()
    world.finish(client, server)
    assert_whole(client, server, 1)
    for program in (client, server):
        found = program.report().raw["connections"]
        assert found["rdma"] == 1 and found["moved_back"]["host-link-lost"] >= ROUNDS, found


@quick_only
def test_in_a_program_of_several_threads(world: World) -> None:
    world.start(back_s=BACK_S, lost_s=300)
    go = world.a.folder / "go"
    server = world.b.runner().start(sys.executable, "-c", THREADS, world.b.address, "7031")
    server.until(lambda: b"listening" in server.stdout, "listens")
    clients = [ping(world.a, world.b, 7031, go) for _ in range(2)]
    world.carried(2, 1000)
    there_and_back(world, {clients[0]: "a", clients[1]: "a"}, 2)
    go.touch()
    world.finish(*clients)
    server.until(lambda: len(server.stdout.split()) == 3, "both have been served")
    assert sorted(server.stdout.split()[1:]) == sorted(client.stdout.strip() for client in clients)
    server.stop(signal.SIGTERM)
    assert_rdma(server.report(), 2, 2000)


@quick_only
def test_redis_goes_on(world: World) -> None:
    world.start(back_s=BACK_S, lost_s=300)
    server = world.b.runner().start("redis-server", "--port", "7032", "--bind", world.b.address, "--save", "",
                                    "--dir", world.b.folder, "--protected-mode", "no")
    server.until(lambda: b"Ready to accept" in server.stdout, "listens")
    words = ["redis-benchmark", "-h", world.b.address, "-p", "7032", "-t", "set,get", "-c", "4", "-d", "300", "--csv"]
    endless = world.a.runner().start(*words, "-n", "100000000")
    world.carried(4, 15_000)
    there_and_back(world, {endless: "a", server: "b"}, 4)
    assert endless.stop() == -signal.SIGTERM
    server.stop(signal.SIGTERM)
    found = server.report().raw["connections"]
    assert found["rdma"] >= 4 and found["moved_back"]["host-link-lost"] >= 4 * ROUNDS, found
