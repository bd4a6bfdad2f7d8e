# SPDX-License-Identifier: Apache-2.0
"""A server and two clients, each of a session of its own, on one CPU: all sleep on several connections at once.

Each client sends on its four connections, then waits for the answers, which come while it sleeps.
epoll, poll: what they wait in.  threads: epoll, in programs with another thread each, and more connections; that of the
server closes one now and then, and the client opens another.
"""

import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable

how = sys.argv[1]
LASTS_S, CONNECTIONS, CLIENTS = 2.0, 12 if how == "threads" else 4, 2
REPLACED = 200
"""Rounds until a client asks for the end of its first connection."""


def other_thread() -> "queue.SimpleQueue[socket.socket]":
    """It closes what is put there."""
    closing: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    def run() -> None:
        while True:
            closing.get().close()

    if how == "threads":
        threading.Thread(target=run, daemon=True).start()
    return closing


def serve(listener: socket.socket) -> None:
    closing = other_thread()
    poll = select.poll() if how == "poll" else select.epoll()
    socks: dict[int, socket.socket] = {}

    def take() -> None:
        sock = listener.accept()[0]
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        poll.register(sock.fileno(), select.POLLIN)

    for _ in range(CLIENTS * CONNECTIONS):
        take()
    while socks:
        for fd, _ in poll.poll():
            data = socks[fd].recv(100)
            if data and data != b"end":
                socks[fd].sendall(data)
                continue
            poll.unregister(fd)
            if data:
                closing.put(socks.pop(fd))
                take()
            else:
                socks.pop(fd).close()


def ask(port: int) -> None:
    other_thread()
    poll = select.poll() if how == "poll" else select.epoll()
    socks: dict[int, socket.socket] = {}

    def connect() -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        poll.register(sock.fileno(), select.POLLIN)

    for _ in range(CONNECTIONS):
        connect()
    begin = time.monotonic()
    n = 0
    while time.monotonic() < begin + LASTS_S:
        n += 1
        text = b"%d" % n
        for sock in socks.values():
            sock.sendall(text)
        waiting = set(socks)
        while waiting:
            for fd, _ in poll.poll():
                got = socks[fd].recv(100)
                assert got == text, (got, text)
                waiting.remove(fd)
        if how == "threads" and n % REPLACED == 0:
            first = next(iter(socks))
            poll.unregister(first)
            with socks.pop(first) as sock:
                sock.setblocking(True)
                sock.sendall(b"end")
                assert sock.recv(1) == b""
            connect()


def child(work: Callable[..., None], *args: object) -> int:
    pid = os.fork()
    if not pid:
        os.setsid()
        work(*args)
        os._exit(0)
    return pid


os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
listener = socket.create_server(("127.0.0.1", 0))
children = [child(serve, listener), *(child(ask, listener.getsockname()[1]) for _ in range(CLIENTS))]
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
print("served", flush=True)
