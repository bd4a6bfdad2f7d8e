# SPDX-License-Identifier: Apache-2.0
"""Programs that give a connection to another host away, or lock themselves up: it goes back to TCP first."""

from __future__ import annotations

import sys

import pytest

from tests.hosts.talk import ping
from tests.hosts.test_between import assert_shown
from tests.hosts.world import VERBS, Mode, World, assert_rdma

pytestmark = pytest.mark.skipif(VERBS, reason="the same without RDMA shows it, in a hundredth of the time")

SERVER = """
import ctypes, os, socket, sys
address, port, how, now, path = sys.argv[1:6]
l = socket.create_server((address, int(port)))
print("listening", flush=True)
s, _ = l.accept()
def serve(until=None):
    while data := s.recv(65536):
        s.sendall(data)
        if until and os.path.exists(until): return
def lock_up():                     # a filter that allows everything; nobody knows that
    class Program(ctypes.Structure):
        _fields_ = [("n", ctypes.c_ushort), ("at", ctypes.c_void_p)]
    code = ctypes.create_string_buffer(bytes.fromhex("06000000" "0000ff7f"), 8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    made = Program(1, ctypes.addressof(code))
    assert libc.prctl(22, 2, ctypes.byref(made), 0, 0) == 0, ctypes.get_errno()
serve(now)
if how == "lock up":
    lock_up(); serve()
elif how == "urgent":
    assert s.send(b"!", socket.MSG_OOB) == 1; serve()
else:
    with socket.socket(socket.AF_UNIX) as u:
        u.connect(path); socket.send_fds(u, [b"x"], [s.fileno()]); u.recv(1)
s.close()
"""
STRANGER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as u:
    u.bind(sys.argv[1]); u.listen()
    print("listening", flush=True)
    c, _ = u.accept()
    _, fds, _, _ = socket.recv_fds(c, 1, 1)
    c.send(b"x")
s = socket.socket(fileno=fds[0])
while data := s.recv(65536): s.sendall(data)
s.shutdown(socket.SHUT_WR)
"""


@pytest.mark.parametrize("how", ["pass", "lock up", "urgent"])
def test_back_in_mid_stream(world: World, how: str) -> None:
    world.start()
    go, now, path = (world.a.folder / name for name in ("go", "now", "unix"))
    stranger = world.b.runner(Mode.NATIVE).start(sys.executable, "-c", STRANGER, path)
    stranger.until(lambda: b"listening" in stranger.stdout, "listens")
    server = world.b.runner().start(sys.executable, "-c", SERVER, world.b.address, "7030", how, now, path)
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = ping(world.a, world.b, 7030, go)
    world.a.carried(1)
    assert_shown(world)
    now.touch()
    go.touch()
    world.finish(client, server)
    for program in (client, server):
        assert_rdma(program.report())
        assert sum(program.report().raw["connections"]["moved_back"].values()) >= 1, program.report()
    if how == "pass":
        stranger.ok()
    else:
        stranger.close()
