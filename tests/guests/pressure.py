# SPDX-License-Identifier: Apache-2.0
"""A writer and a reader that stops: pressure.py FOLDER. One process each, by fork.

After some exchanges the reader stops reading. The writer writes until it is told to wait, puts the number of bytes into
FOLDER/full, and goes on with a blocking send of 4 MiB; FOLDER/read lets the reader go on. It prints whether what came
is what was sent.
"""

import hashlib
import os
import random
import select
import socket
import sys
import time

FOLDER = sys.argv[1]
MORE = 4 << 20


def wait_for(name: str) -> None:
    while not os.path.exists(f"{FOLDER}/{name}"):
        time.sleep(0.01)


def read(port: int) -> None:
    sock = socket.create_connection(("127.0.0.1", port))
    for _ in range(200):
        sock.sendall(sock.recv(10))
    wait_for("read")
    digest = hashlib.sha256()
    while data := sock.recv(65536):
        digest.update(data)
    sock.sendall(digest.digest())
    os._exit(0)


def fill(sock: socket.socket, digest: "hashlib._Hash") -> int:
    """Write until there has been no room for a while; how many bytes that took."""
    rng, total = random.Random(1), 0
    sock.setblocking(False)
    while select.select([], [sock], [], 0.5)[1]:
        data = rng.randbytes(1000)
        try:
            sent = sock.send(data)
        except BlockingIOError:
            continue
        digest.update(data[:sent])
        total += sent
    sock.setblocking(True)
    return total


listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
if os.fork() == 0:
    read(address[1])
sock, _ = listener.accept()
for _ in range(200):
    sock.sendall(b"x" * 10)
    got = 0
    while got < 10:
        got += len(sock.recv(10 - got))
sent = hashlib.sha256()
full = fill(sock, sent)
with open(f"{FOLDER}/full.new", "w") as file:
    file.write(str(full))
os.rename(f"{FOLDER}/full.new", f"{FOLDER}/full")
rest = random.Random(2).randbytes(MORE)
sent.update(rest)
sock.sendall(rest)
sock.shutdown(socket.SHUT_WR)
there = b""
while part := sock.recv(100):
    there += part
print("whole" if there == sent.digest() else "different")
