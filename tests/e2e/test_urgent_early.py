# SPDX-License-Identifier: Apache-2.0
"""Urgent data on a connection that is about to move: the receiver may have its ring before the sender could say in it
that there is a mark.

The JDK's own UrgentDataTest hung by this, at the mark: the kernel said that there was something, and FIONREAD that
there was nothing.
"""

from __future__ import annotations

import sys

from tests.harness import Runner

URGENT = """
import signal, socket, time
signal.alarm(20)
for turn in range(150):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near, (far, _) = socket.create_connection(listener.getsockname()), listener.accept()
    near.send(b"ab")
    end = time.monotonic() + turn % 30 * 0.0001
    while time.monotonic() < end:
        pass
    near.send(b"!", socket.MSG_OOB)
    near.send(b"cd")
    assert b"".join(far.recv(1) for _ in range(4)) == b"abcd"
    far.send(b"back")
    assert near.recv(4) == b"back"
    near.close(), far.close()
print("ok")
"""


def test_nobody_waits_at_the_mark(native: Runner, shm: Runner) -> None:
    for runner in (native, shm):
        assert runner.run(sys.executable, "-c", URGENT, timeout=30).ok().stdout == b"ok\n"
