# SPDX-License-Identifier: Apache-2.0
"""Whose peers are mostly not under sdrun does not ask the monitor about each of them, until one is."""

from __future__ import annotations

import sys

import pytest

from tests.harness import Program, Runner

SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
for _ in range(int(sys.argv[1])):
    conn, _ = listener.accept()
    while data := conn.recv(100): conn.sendall(data)
    conn.close()
"""

CLIENT = """
import socket, sys, time
port, count, rounds, pause = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
for _ in range(count):
    with socket.create_connection(("127.0.0.1", port)) as conn:
        for _ in range(rounds):
            conn.sendall(b"x"); conn.recv(1); time.sleep(pause)
"""
STRANGERS, ROUNDS = 120, 40


def _after_strangers(shm: Runner, native: Runner, more: int) -> tuple[Program, str]:
    server = shm.start(sys.executable, "-c", SERVER, str(STRANGERS + more))
    server.until(lambda: b"\n" in server.stdout, "it listens")
    port = server.stdout.split()[0].decode()
    native.run(sys.executable, "-c", CLIENT, port, str(STRANGERS), str(ROUNDS), "0").ok()
    return server, port


@pytest.mark.parametrize(("rounds", "pause"), [("3000", "0"), ("6", "0.1")])
def test_who_lives_longer_is_offered_all_the_same(shm: Runner, native: Runner, rounds: str, pause: str) -> None:
    shm.eager = False
    server, port = _after_strangers(shm, native, 1)
    friend = shm.run(sys.executable, "-c", CLIENT, port, "1", rounds, pause).ok()
    report = server.ok().report()
    assert friend.report().shm == report.shm == 1
    assert 8 <= report.raw["counters"]["offers"] < STRANGERS / 3, report
    assert report.raw["connections"]["tcp_reasons"]["few-operations"] > STRANGERS / 2


def test_friends_with_short_connections_are_found(shm: Runner, native: Runner) -> None:
    shm.eager = False
    server, port = _after_strangers(shm, native, 300)
    friend = shm.run(sys.executable, "-c", CLIENT, port, "300", "60", "0.0003").ok()
    # From the first that both ends have probed: later than the 150th of 300 in one run of a hundred.
    assert friend.report().shm > 30
    assert server.ok().report().shm > 30


def test_who_has_chosen_gets_what_he_says(shm: Runner, native: Runner) -> None:
    shm.eager = False
    shm.options = ["--set", "upgrade=after_ops:8"]
    server, _ = _after_strangers(shm, native, 0)
    assert server.ok().report().raw["counters"]["offers"] == STRANGERS
