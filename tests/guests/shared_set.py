# SPDX-License-Identifier: Apache-2.0
"""shared_set.py PORT: an epoll set that a child has, too, who says for which descriptors each message was told of.

Echoes what comes on connections that it accepts, once the child has been told of it.
"""

from __future__ import annotations

import os
import select
import socket
import sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
epoll = select.epoll()
ask, asked = os.pipe()
answer, answered = os.pipe()
if os.fork() == 0:
    os.close(asked)
    while os.read(ask, 1):
        os.write(answered, b"%d " % epoll.poll(5)[0][0])
    os._exit(0)
os.close(ask)

connection, _ = listener.accept()
epoll.register(connection, select.EPOLLIN)
while epoll.poll(10):
    os.write(asked, b"x")
    told = int(os.read(answer, 100))
    if told != connection.fileno():
        raise SystemExit(f"the child is told of {told}, not {connection.fileno()}")
    data = connection.recv(1 << 16)
    if not data:
        break
    connection.sendall(data)
