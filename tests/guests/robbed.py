# SPDX-License-Identifier: Apache-2.0
"""robbed.py FOLDER: an echo between two processes; FOLDER/fd says which descriptor of the first one can be taken.

When FOLDER/go is there, both ends exchange messages and compare every byte.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from pathlib import Path

WARM, ROUNDS = 300, 3000


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or SystemExit."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise SystemExit("the end of the stream")
        data += part
    return data


def talk(sock: socket.socket, rounds: int, seed: int) -> None:
    """Questions of random bytes; each comes back."""
    source = random.Random(seed)
    for count in range(rounds):
        data = source.randbytes(source.randrange(1, 2000))
        sock.sendall(len(data).to_bytes(4, "big") + data)
        if exactly(sock, len(data)) != data:
            raise SystemExit(f"message {count} has changed")
        if count % 50 == 0:
            time.sleep(0.002)  # the other end goes to sleep


def echo(sock: socket.socket) -> None:
    """Until there is no more."""
    sock.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, 1)
    while head := sock.recv(4, socket.MSG_WAITALL):
        sock.sendall(exactly(sock, int.from_bytes(head, "big")))


def main() -> None:
    """The child answers."""
    folder = Path(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        echo(listener.accept()[0])
        os._exit(0)
    sock = socket.create_connection(listener.getsockname())
    sock.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, 1)
    listener.close()
    talk(sock, WARM, 1)
    (folder / "fd.new").write_text(str(sock.fileno()))
    (folder / "fd.new").rename(folder / "fd")
    while not (folder / "go").exists():
        time.sleep(0.01)
    talk(sock, ROUNDS, 2)
    sock.shutdown(socket.SHUT_WR)  # somebody may hold a copy
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the other end has failed")
    print("ok")


if __name__ == "__main__":
    main()
