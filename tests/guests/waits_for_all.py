# SPDX-License-Identifier: Apache-2.0
"""Process 1 of its PID namespace, with a connection: it has no children but its own, and waits for all there are."""

import os
import socket

listener = socket.create_server(("127.0.0.1", 0))
child = os.fork()
if child == 0:
    ours = socket.create_connection(listener.getsockname())
    for _ in range(100):
        ours.sendall(ours.recv(9))
    os._exit(7)
theirs = listener.accept()[0]
for n in range(100):
    theirs.sendall(b"%d" % n)
    assert theirs.recv(9) == b"%d" % n
ended = []
try:
    while True:
        pid, status = os.wait()
        ended.append((pid == child, os.waitstatus_to_exitcode(status)))
except ChildProcessError:
    print(os.getpid(), ended)
