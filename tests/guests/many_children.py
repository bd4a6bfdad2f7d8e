# SPDX-License-Identifier: Apache-2.0
"""A server with a child for each of many connections, all at the same time."""

import os
import socket
import sys

CHILDREN = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0), backlog=CHILDREN)
pids = []
for _ in range(CHILDREN):
    client = socket.create_connection(listener.getsockname())
    served, _ = listener.accept()
    pid = os.fork()
    if pid == 0:
        served.close()
        for _ in range(4):
            client.sendall(b"?")
        client.recv(1)  # the end
        client.close()
        os._exit(0)
    client.close()
    pids.append((pid, served))
for _, served in pids:
    assert served.recv(4, socket.MSG_WAITALL) == b"????"
for pid, served in pids:
    served.shutdown(socket.SHUT_WR)  # later children have it, too
    assert os.waitpid(pid, 0)[1] == 0
print("ok")
