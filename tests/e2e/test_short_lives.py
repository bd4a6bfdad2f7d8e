# SPDX-License-Identifier: Apache-2.0
"""With the policy that comes with us.

What is over too soon, or pairs with nobody, is soon not offered any more; what lives long is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.harness import Report, Runner

SERVER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
if sys.argv[2] == "forks":
    os.fork(), os.fork()
def serve(conn):
    with conn:
        while data := conn.recv(100): conn.sendall(data)
clients = int(sys.argv[1])
for _ in range(clients if sys.argv[2] != "forks" else 1 << 30):
    conn, _ = listener.accept()
    if conn.getpeername()[0] == "127.0.0.9": break
    serve(conn)
"""
CLIENT = """
import socket, sys
port, count, rounds = map(int, sys.argv[1:4])
for _ in range(count):
    with socket.create_connection(("127.0.0.1", port)) as conn:
        for _ in range(rounds):
            conn.sendall(b"x"); conn.recv(1)
"""
END = """
import socket, sys
for _ in range(4):
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), source_address=("127.0.0.9", 0)).close()
"""
MANY, FEW = 120, 40
Load = tuple[Runner, int, int]
"""Whose clients, how many connections, how many round trips each."""
Serve = Callable[..., tuple[Report, list[Report]]]


@pytest.fixture
def serve(shm: Runner, native: Runner) -> Serve:
    shm.eager = False

    def run(*loads: Load, how: str = "") -> tuple[Report, list[Report]]:
        server = shm.start(sys.executable, "-c", SERVER, str(sum(load[1] for load in loads)), how)
        server.until(lambda: b"\n" in server.stdout, "it listens")
        port = server.stdout.split()[0].decode()
        clients = [runner.run(sys.executable, "-c", CLIENT, port, str(count), str(rounds)).ok()
                   for runner, count, rounds in loads]
        if how:
            native.run(sys.executable, "-c", END, port).ok()
        reports = [client.report() for load, client in zip(loads, clients, strict=True) if load[0] is shm]
        return server.ok().report(), reports

    return run


def _offers(report: Report) -> int:
    return int(report.raw["counters"]["offers"])


def _reasons(report: Report) -> dict[str, int]:
    reasons: dict[str, int] = report.raw["connections"]["tcp_reasons"]
    return reasons


@pytest.mark.parametrize("how", ["", "forks"])
def test_short_ones_are_offered_only_until_that_is_known(serve: Serve, shm: Runner, how: str) -> None:
    server, (client,) = serve((shm, MANY, 60), how=how)
    for report in (server, client):
        assert 1 <= _offers(report) < FEW, report
        assert _reasons(report)["short-lived"] > MANY - FEW, report


def test_a_long_one_among_short_ones_moves(serve: Serve, shm: Runner) -> None:
    server, clients = serve((shm, MANY, 60), (shm, 1, 1000), (shm, MANY, 60), (shm, 1, 3000))
    assert [report.shm for report in clients[1::2]] == [1, 1], clients
    assert _offers(server) < 3 * FEW
    assert _reasons(server)["short-lived"] > 2 * (MANY - FEW)


def test_long_ones_are_all_offered_at_once(serve: Serve, shm: Runner) -> None:
    server, (client,) = serve((shm, 30, 1500))
    assert server.shm == client.shm == 30
    assert client.raw["counters"]["bytes_tcp_tx"] < 30 * 40, "after eight operations, not later"


def test_strangers_are_offered_only_until_that_is_known(serve: Serve, shm: Runner, native: Runner) -> None:
    server, (friend,) = serve((native, 60, 1000), (shm, 1, 3000))
    assert 4 <= _offers(server) < 20
    assert _reasons(server)["peer-not-under-sdrun"] == 60
    assert friend.shm == server.shm == 1, "as soon as it had proved long"


@pytest.mark.parametrize("upgrade", ["after_ops:8", "eager"])
def test_who_has_chosen_gets_what_he_says(serve: Serve, shm: Runner, upgrade: str) -> None:
    shm.options = ["--set", f"upgrade={upgrade}"]
    server, (client,) = serve((shm, MANY, 60))
    assert _offers(server) == _offers(client) == MANY
