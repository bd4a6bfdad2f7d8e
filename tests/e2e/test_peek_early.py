# SPDX-License-Identifier: Apache-2.0
"""A peek for more than there is, on a connection that is about to move: it keeps to its time limit, and sleeps."""

from __future__ import annotations

import sys

from tests.harness import Runner

PEEK = """
import resource, socket, struct, time
with socket.create_server(("127.0.0.1", 0)) as listener:
    near, (far, _) = socket.create_connection(listener.getsockname()), listener.accept()
far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 0, 500000))
near.send(b"ab")
time.sleep(0.5)  # by TCP, and now both ends may be on shared memory
used = resource.getrusage(resource.RUSAGE_SELF)
print(far.recv(10, socket.MSG_PEEK | socket.MSG_WAITALL))
more = resource.getrusage(resource.RUSAGE_SELF)
print(more.ru_utime + more.ru_stime - used.ru_utime - used.ru_stime < 0.25)
for _ in range(3):
    far.send(b"c"); print(near.recv(10)); near.send(b"d"); print(far.recv(10))
"""


def test_it_ends_in_time(native: Runner, shm: Runner) -> None:
    expected = native.run(sys.executable, "-c", PEEK).ok().stdout
    assert expected.startswith(b"b'ab'\nTrue\n")
    program = shm.run(sys.executable, "-c", PEEK, timeout=20).ok()
    assert program.stdout == expected
    assert program.report().shm == 2
