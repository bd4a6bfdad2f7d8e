# SPDX-License-Identifier: Apache-2.0
"""Makes more connections, one after the other, than the library has places for; then one that talks."""

import socket
import sys
import time

listener = socket.create_server(("127.0.0.1", 0))


def connection() -> tuple[socket.socket, socket.socket]:
    near = socket.create_connection(listener.getsockname())
    return near, listener.accept()[0]


for _ in range(int(sys.argv[1])):
    near, far = connection()
    near.close()
    far.close()
near, far = connection()
for turn in range(300):
    if turn < 100:
        time.sleep(0.002)  # what makes it move goes on beside it
    near.sendall(b"warm")
    assert far.recv(4) == b"warm"
    far.sendall(b"k")
    assert near.recv(1) == b"k"
print("ok", flush=True)
