# SPDX-License-Identifier: Apache-2.0
"""Programs on two hosts: what they see is what they would see by TCP, and the report says what carried it."""

from __future__ import annotations

import sys

from tests.hosts.world import World, assert_rdma

ECHO = """
import socket, sys
l = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
s, _ = l.accept()
n = 0
while data := s.recv(65536): s.sendall(data); n += len(data)
print(n)
"""
PING = """
import os, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
total = 0
def ping(n):
    global total
    m = os.urandom(1 + n * 37 % 3000); total += len(m)
    s.sendall(m); got = b""
    while len(got) < len(m):
        part = s.recv(65536); assert part, (n, len(got), len(m)); got += part
    assert got == m, n
n = 0
while not os.path.exists(sys.argv[4]):
    ping(n); n += 1; time.sleep(0.01)
for n in range(int(sys.argv[3])): ping(n)
s.shutdown(socket.SHUT_WR)
assert s.recv(1) == b""
print(total)
"""


def test_ping_pong(world: World) -> None:
    world.start()
    go = world.a.folder / "go"
    server = world.b.runner().start(sys.executable, "-c", ECHO, world.b.address, "7000")
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = world.a.runner().start(sys.executable, "-c", PING, world.b.address, "7000", "300", go)
    world.a.carried(1)
    go.touch()
    client.ok()
    server.ok()
    assert server.stdout.split()[-1] == client.stdout.strip()
    for program in (client, server):
        assert_rdma(program.report(), 1, 300_000)
