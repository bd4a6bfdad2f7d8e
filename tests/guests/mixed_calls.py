# SPDX-License-Identifier: Apache-2.0
"""Two processes send to each other, from a thread and into another, by calls in random turn: mixed_calls.py SEED BYTES.

Sends that wait, sends that do not with poll for room, sendmsg of two halves, SO_SNDBUF changed in between; receives
that wait, with MSG_WAITALL, with MSG_PEEK, without waiting and with poll, after pauses.  Prints whether what came is
what was sent, to both; who waits for twenty seconds ends with status 3.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import sys
import threading
import time

SEED, BYTES = int(sys.argv[1]), int(sys.argv[2])
PATIENCE_MS = 20_000
SENT_AT_ONCE = (1, 8, 100, 1000, 5000, 64 * 1024, 300_000, 1_500_000)
ASKED_FOR = (1, 10, 1000, 65536, 1 << 20, 3 << 20)
BUFFERS = (4096, 20_000, 100_000, 400_000)


def await_one(sock: socket.socket, event: int) -> None:
    poll = select.poll()
    poll.register(sock, event)
    if not poll.poll(PATIENCE_MS):
        os._exit(3)


def send_some(sock: socket.socket, data: memoryview, how: float) -> int:
    if how < 0.5:
        return sock.send(data)
    if how >= 0.9:
        return sock.sendmsg([data[: len(data) // 2], data[len(data) // 2 :]])
    try:
        return sock.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        await_one(sock, select.POLLOUT)
        return 0


def send_all(sock: socket.socket, name: int, sums: dict[int, str]) -> None:
    rng, digest, left = random.Random(SEED * 1000 + name), hashlib.sha256(), BYTES
    while left:
        data = rng.randbytes(min(left, rng.choice(SENT_AT_ONCE)))
        digest.update(data)
        left -= len(data)
        if rng.random() < 0.03:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, rng.choice(BUFFERS))
        rest = memoryview(data)
        while rest:
            rest = rest[send_some(sock, rest, rng.random()) :]
    sums[name] = digest.hexdigest()


def receive_some(sock: socket.socket, size: int, how: float) -> bytes:
    """Nothing if nothing was there, or if it was only looked at."""
    if how < 0.2:
        sock.recv(size, socket.MSG_PEEK)
        return b""
    if how < 0.7:
        return sock.recv(size, socket.MSG_WAITALL if how < 0.4 else 0)
    try:
        return sock.recv(size, socket.MSG_DONTWAIT)
    except BlockingIOError:
        await_one(sock, select.POLLIN)
        return b""


def receive_all(sock: socket.socket, name: int, sums: dict[int, str]) -> None:
    rng, digest, left = random.Random(SEED * 2000 + name), hashlib.sha256(), BYTES
    while left:
        if rng.random() < 0.1:
            time.sleep(rng.choice((0, 0.0005, 0.005)))
        data = receive_some(sock, min(left, rng.choice(ASKED_FOR)), rng.random())
        digest.update(data)
        left -= len(data)
    sums[name] = digest.hexdigest()


def talk(sock: socket.socket, mine: int, theirs: int) -> dict[int, str]:
    for _ in range(200):
        sock.send(b"x")
        sock.recv(1)
    sums: dict[int, str] = {}
    threads = [threading.Thread(target=send_all, args=(sock, mine, sums)),
               threading.Thread(target=receive_all, args=(sock, theirs, sums))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sums


listener = socket.create_server(("127.0.0.1", 0))
ours, theirs = os.pipe()
child = os.fork()
if child == 0:
    there = talk(socket.create_connection(listener.getsockname()), 1, 2)
    os.write(theirs, f"{there[1]} {there[2]}".encode())
    os._exit(0)
here = talk(listener.accept()[0], 2, 1)
status = os.waitpid(child, 0)[1]
same = status == 0 and os.read(ours, 1000).decode() == f"{here[1]} {here[2]}"
print("whole" if same else "different")
