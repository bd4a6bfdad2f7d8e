# SPDX-License-Identifier: Apache-2.0
"""A connection between hosts that another program of its host is given (SCM_RIGHTS), or takes (pidfd_getfd).

Every byte arrives, whoever has it, and reports say what carried it.
"""

from __future__ import annotations

import sys

import pytest

from tests.hosts.talk import ping
from tests.hosts.test_between import quick_only
from tests.hosts.world import Mode, Program, World, assert_rdma, wait_for

SERVER = """
import os, socket, sys
address, port, how, now, path = sys.argv[1:6]
l = socket.create_server((address, int(port)))
ours, theirs = socket.socketpair()
def serve(s, until=None):
    while data := s.recv(65536):
        s.sendall(data)
        if until and os.path.exists(until): return
if how == "family":
    if not (child := os.fork()):
        l.close(); ours.close()
        serve(socket.socket(fileno=socket.recv_fds(theirs, 1, 1)[1][0]))
        os._exit(0)
print("listening", flush=True)
s, _ = l.accept()
serve(s, now)
if how == "taken":
    print("taken", os.getpid(), s.fileno(), flush=True)
    serve(s)
else:
    if how != "family":
        ours.close()
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(path)
    socket.send_fds(ours, [b"x"], [s.fileno()])
    s.close()
    if how == "family": os.waitpid(child, 0)
    else: ours.recv(1)
"""
RECEIVER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as u:
    u.bind(sys.argv[1]); u.listen()
    print("listening", flush=True)
    c, _ = u.accept()
    s = socket.socket(fileno=socket.recv_fds(c, 1, 1)[1][0])
    while data := s.recv(65536): s.sendall(data)
    c.send(b"x")
"""
TAKER = """
import ctypes, errno, os, socket, sys
pid, fd = map(int, sys.argv[1:3])
libc = ctypes.CDLL(None, use_errno=True)
taken = libc.syscall(438, os.pidfd_open(pid), fd, 0)
if taken < 0: print(errno.errorcode[ctypes.get_errno()])
else:
    s = socket.socket(fileno=taken)
    print(s.getpeername()[0], s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
"""


@quick_only
@pytest.mark.parametrize("how", ["family", "other", "native"])
def test_sent(world: World, how: str) -> None:
    """To a process of its family it goes with its ring; to any other program by TCP."""
    world.start()
    go, now, path = (world.a.folder / name for name in ("go", "now", "unix"))
    receiver = None
    if how != "family":
        mode = Mode.NATIVE if how == "native" else Mode.SHM
        receiver = world.b.runner(mode).start(sys.executable, "-c", RECEIVER, path)
        receiver.until(lambda: b"listening" in receiver.stdout, "listens")
    server = world.b.runner().start(sys.executable, "-c", SERVER, world.b.address, "7060", how, now, path)
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = ping(world.a, world.b, 7060, go)
    world.a.carried(1, 10_000)
    now.touch()
    if how == "family":
        moved = ring_bytes(world, client)
        wait_for(lambda: ring_bytes(world, client) > moved + 50_000, world.known)
    else:
        wait_for(lambda: world.a.tells(client).get("moved_back"), world.known)
    go.touch()
    world.finish(client, server, *([receiver] if receiver else []))
    for program in (client, server):
        assert_rdma(program.report())
        back = program.report().raw["connections"]["moved_back"]
        assert bool(back) == (how != "family"), back


@quick_only
@pytest.mark.parametrize("mode", [Mode.SHM, Mode.NATIVE])
def test_taken(world: World, mode: Mode) -> None:
    """Under sdrun that is refused: the other host cannot be stopped meanwhile. An outsider may look."""
    world.start()
    go, now = (world.a.folder / name for name in ("go", "now"))
    server = world.b.runner().start(sys.executable, "-c", SERVER, world.b.address, "7061", "taken", now, "")
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = ping(world.a, world.b, 7061, go)
    world.a.carried(1, 10_000)
    now.touch()
    server.until(lambda: b"taken" in server.stdout, "is to be taken from")
    place = server.stdout.split()[-2:]
    taker = world.b.runner(mode).start(sys.executable, "-c", TAKER, *(word.decode() for word in place))
    taker.ok()
    assert taker.stdout.decode().strip() == ("EPERM" if mode is Mode.SHM else f"{world.a.address} 0")
    moved = ring_bytes(world, client)
    wait_for(lambda: ring_bytes(world, client) > moved + 50_000, world.known)
    go.touch()
    world.finish(client, server)
    for program in (client, server):
        assert_rdma(program.report())
        assert not program.report().raw["connections"]["moved_back"]


def ring_bytes(world: World, client: Program) -> int:
    return int(world.a.tells(client).get("counters", {}).get("bytes_rdma_tx", 0))
