# SPDX-License-Identifier: Apache-2.0
"""Programs that talk from one host to another, and what must hold of what they have said."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.hosts.world import VERBS, Host, Mode, Program, assert_rdma

ECHO = """
import os, socket, sys
def serve(s, n, moved):
    while data := s.recv(65536):
        s.sendall(data); n += len(data)
        if moved or not os.path.exists(sys.argv[4]): continue
        moved = True                 # another program or process than the one that accepted goes on
        if sys.argv[5] == "exec":
            s.set_inheritable(True)
            os.environ["GIVEN"] = f"{s.fileno()} {n}"
            os.execv(sys.executable, [sys.executable, "-c", os.environ["ECHO"], *sys.argv[1:]])
        if child := os.fork():
            os.waitpid(child, 0); return
    print(n, flush=True)
if given := os.environ.get("GIVEN"):
    fd, n = map(int, given.split())
    serve(socket.socket(fileno=fd), n, True); sys.exit()
l = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
for _ in range(int(sys.argv[3])):
    s, _ = l.accept()
    me = os.getpid()
    serve(s, 0, False)
    s.close()
    if os.getpid() != me: os._exit(0)
"""
PING = """
import os, socket, sys, time
address, port, rounds, go, how = sys.argv[1:6]
if how.isdigit():                # after exec: the connection is a descriptor that we were given
    s, total, how = socket.socket(fileno=int(how)), int(sys.argv[6]), "direct"
else:
    s, total = socket.create_connection((address, int(port))), 0
while (first := os.environ.get("FIRST")) and not os.path.exists(first):
    time.sleep(0.01)
def ping(n):
    global total
    m = os.urandom(1 + n * 37 % 3000); total += len(m)
    s.sendall(m); got = b""
    while len(got) < len(m):
        part = s.recv(65536); assert part, (n, len(got), len(m)); got += part
    assert got == m, (n, got[:80], m[:80])
n = 0
while not os.path.exists(go):
    ping(n); n += 1; time.sleep(0.01)
for n in range(int(rounds)): ping(n)
if how == "fork":                # the child goes on
    if child := os.fork(): os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    for n in range(int(rounds)): ping(n)
if how == "exec":
    s.set_inheritable(True)
    again = [address, port, rounds, go, str(s.fileno()), str(total)]
    os.execv(sys.executable, [sys.executable, "-c", os.environ["PING"], *again])
s.shutdown(socket.SHUT_WR)
assert s.recv(1) == b""
print(total)
"""
ROUNDS = "60" if VERBS else "200"


def echo(host: Host, port: int, go: Path, clients: int = 1, how: str = "fork") -> Program:
    words = (host.address, str(port), str(clients), go, how)
    server = host.runner().start(sys.executable, "-c", ECHO, *words, env={"ECHO": ECHO})
    server.until(lambda: b"listening" in server.stdout, "listens")
    return server


def ping(host: Host, server: Host, port: int, go: Path, how: str = "direct", mode: Mode = Mode.SHM,
         options: Sequence[str] = (), **env: str) -> Program:
    words = (server.address, str(port), ROUNDS, go, how)
    return host.runner(mode, *options).start(sys.executable, "-c", PING, *words, env={"PING": PING, **env})


def sums(program: Program) -> dict[str, tuple[int, str]]:
    """What one side says: {"sent": (bytes, sha256), "received": ...}."""
    words = (line.split() for line in program.stdout.decode().splitlines())
    return {what: (int(count), digest) for what, count, digest in words}


def assert_whole(client: Program, server: Program, size: int) -> None:
    """Each has received what the other has sent, and at least `size` bytes went by rings between the hosts."""
    assert sums(client)["sent"] == sums(server)["received"]
    assert sums(server)["sent"] == sums(client)["received"]
    for program in (client, server):
        assert_rdma(program.report(), 1, size)
