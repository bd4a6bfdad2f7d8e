# SPDX-License-Identifier: Apache-2.0
"""What goes to another host by rings stands in --pcap's file as if it had gone by TCP."""

from __future__ import annotations

import hashlib
import sys

import pytest

from tests.hosts.talk import echo
from tests.hosts.test_between import quick_only
from tests.hosts.world import Mode, World, assert_rdma
from tests.trace.test_pcap import packets, stream

TALK = """
import hashlib, os, random, socket, sys, time
address, port, go = sys.argv[1:4]
s, rng = socket.create_connection((address, int(port))), random.Random(3)
sent, got, left = hashlib.sha256(), hashlib.sha256(), 300
while left:
    data = rng.randbytes(rng.choice((1, 8, 500, 40000)))
    s.sendall(data); sent.update(data)
    n = len(data)
    while n:
        part = s.recv(n); assert part; got.update(part); n -= len(part)
    if os.path.exists(go): left -= 1
    else: time.sleep(0.01)
s.shutdown(socket.SHUT_WR)
assert s.recv(1) == b""
print(sent.hexdigest(), got.hexdigest())
"""


@quick_only
@pytest.mark.parametrize("world", ["device", "tcp"], indirect=True)
def test_packets_of_one_end(world: World) -> None:
    """Both directions, whole, without doorbells and greetings."""
    world.start()
    go = world.a.folder / "go"
    file = world.a.folder / "pcapng"
    server = echo(world.b, 7050, world.a.folder / "never")
    client = world.a.runner(Mode.SHM, "--pcap", str(file)).start(
        sys.executable, "-c", TALK, world.b.address, "7050", go)
    world.a.carried(1, 10_000)
    go.touch()
    world.finish(client, server)
    sent, got = client.stdout.decode().split()
    assert sent == got
    assert_rdma(client.report(), 1, 1_000_000)
    found = packets(file)
    own, other = found[0].port, found[1].port
    assert [packet.flags for packet in found[:3]] == ["S", "AS", "A"]
    assert hashlib.sha256(stream(found, own)).hexdigest() == sent
    assert hashlib.sha256(stream(found, other)).hexdigest() == got
    assert not [packet for packet in found if packet.odd]
