# SPDX-License-Identifier: Apache-2.0
"""A reset (SO_LINGER of 0) while the wire is cut, and monitors killed: the other end sees what it would natively."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.hosts.test_between import quick_only
from tests.hosts.world import Mode, World

TALK = """
import errno, os, socket, struct, sys, time
who, address, port, now, cut, up = sys.argv[1:7]
def wait(path):
    while not os.path.exists(path): time.sleep(0.01)
def tell(*words): print(*words, flush=True)
if who == "server":
    l = socket.create_server((address, int(port)))
    tell("listening")
    s, _ = l.accept()
    while (data := s.recv(65536)) != b"!": s.sendall(data)
    tell("ready")
    wait(up)
    def attempt(what, call):
        try: tell(what, call())
        except OSError as error: tell(what, errno.errorcode[error.errno] if error.errno else type(error).__name__)
    s.settimeout(3)
    attempt("recv", lambda: s.recv(1))
    attempt("send", lambda: s.send(b"x"))
    s.settimeout(60)
    attempt("recv", lambda: s.recv(1))
    attempt("send", lambda: s.send(b"x"))
else:
    s = socket.create_connection((address, int(port)))
    n = 0
    while not os.path.exists(now):
        m = os.urandom(1 + n * 37 % 3000); n += 1
        s.sendall(m); left = len(m)
        while left: left -= len(s.recv(left))
        time.sleep(0.005)
    s.sendall(b"!")
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait(cut)
    s.close()
    tell("closed")
    wait(up)
"""


def talk(world: World, mode: Mode, *, killed: bool) -> list[str]:
    """What the other end is told, in lines."""
    folder = world.a.folder / f"reset-{mode.name}"
    folder.mkdir()
    words = [str(folder / word) for word in ("now", "cut", "up")]
    now, cut, up = (folder / word for word in ("now", "cut", "up"))
    port = "7070" if mode is Mode.NATIVE else "7071"
    server = world.b.runner(mode).start(sys.executable, "-c", TALK, "server", world.b.address, port, *words)
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = world.a.runner(mode).start(sys.executable, "-c", TALK, "client", world.b.address, port, *words)
    if mode is not Mode.NATIVE:
        world.carried(1, 10_000)
    now.touch()
    server.until(lambda: b"ready" in server.stdout, "has all")
    world.cut(world.a, True)
    if killed:
        for host in (world.a, world.b):
            os.kill(host.monitor_pid(), signal.SIGKILL)
    cut.touch()
    client.until(lambda: b"closed" in client.stdout, "has closed")
    world.cut(world.a, False)
    if mode is not Mode.NATIVE:
        world.linked()
    up.touch()
    world.finish(client, server)
    return server.stdout.decode().splitlines()[2:]


@quick_only
@pytest.mark.parametrize("killed", [False, True], ids=["cut", "cut and killed"])
def test_reset(world: World, killed: bool) -> None:
    world.start(dead_s=1, back_s=600)
    native = talk(world, Mode.NATIVE, killed=False)
    far = talk(world, Mode.SHM, killed=killed)
    assert native[0] == "recv ECONNRESET" and far == native
