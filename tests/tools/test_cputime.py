# SPDX-License-Identifier: Apache-2.0
"""What a server's CPU time is made of: its session, and children with sessions of their own, ended or not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools.sdbench import cputime

SERVER = """
import os, sys, time
def burn():
    while time.process_time() < 0.2:
        sum(range(20_000))
server = os.getpid()
if os.fork() == 0:
    if sys.argv[1] == "session":
        os.setsid()
    burn()
    print("burnt", flush=True)
    if sys.argv[2] == "ends":
        os._exit(0)
    while os.getppid() == server:
        time.sleep(0.05)
    os._exit(0)
sys.stdin.readline()
if sys.argv[2] == "ends":
    os.wait()
print("looked", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("where", ["session", "beside"])
@pytest.mark.parametrize("then", ["stays", "ends"])
def test_children_count(where: str, then: str) -> None:
    argv = [sys.executable, "-c", SERVER, where, then]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as server:
        assert server.stdin and server.stdout
        before = cputime.of_servers([server.pid])
        assert server.stdout.readline() == b"burnt\n"
        first = cputime.of_servers([server.pid])  # running, or a zombie
        server.stdin.write(b"\n")
        server.stdin.flush()
        assert server.stdout.readline() == b"looked\n"
        second = cputime.of_servers([server.pid])  # reaped, if it has ended
        server.kill()
    for used in (first - before, second - before):
        assert used.all >= 0.17 and used.all / 2 < used.user <= used.all + 0.02, (before, first, second)
