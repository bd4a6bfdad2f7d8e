# SPDX-License-Identifier: Apache-2.0
"""A connection that processes share before its ends have come to their rings: on TCP, and the report says why."""

from __future__ import annotations

import sys

from tests.harness import Runner

SHARED = """
import os, socket, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    if not os.fork():
        with socket.create_connection(listener.getsockname()) as conn:
            for n in range(200):
                conn.sendall(b"%3d" % n); got = b""
                while len(got) < 3: got += conn.recv(3)
                assert int(got) == n
        os._exit(0)
    conn, _ = listener.accept()
child = os.fork()
if not child:
    while data := conn.recv(1000): conn.sendall(data)
    os._exit(0)
if sys.argv[1] == "alone": conn.close()
os.waitpid(child, 0); conn.close(); os.wait()
"""


def tcp_reasons(shm: Runner, how: str) -> dict[str, int]:
    found: dict[str, int] = shm.run(sys.executable, "-c", SHARED, how).report().raw["connections"]["tcp_reasons"]
    return found


def test_the_report_says_that_it_was_shared(shm: Runner) -> None:
    assert tcp_reasons(shm, "kept").get("shared-before-switch") == 1


def test_who_has_it_alone_moves(shm: Runner) -> None:
    """As servers do it that fork for each connection."""
    assert tcp_reasons(shm, "alone") == {}
