# SPDX-License-Identifier: Apache-2.0
"""A server and two clients, each of a session of its own, on one CPU: all sleep on several connections at once.

Each client sends on its four connections, then waits for the answers, which come while it sleeps.
epoll, poll: what they wait in.
"""

import os
import select
import socket
import sys
import time
from collections.abc import Callable

LASTS_S, CONNECTIONS, CLIENTS = 2.0, 4, 2
how = sys.argv[1]


def serve(listener: socket.socket) -> None:
    poll = select.poll() if how == "poll" else select.epoll()
    socks = {}
    for _ in range(CLIENTS * CONNECTIONS):
        sock = listener.accept()[0]
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        poll.register(sock.fileno(), select.POLLIN)
    while socks:
        for fd, _ in poll.poll():
            if data := socks[fd].recv(100):
                socks[fd].sendall(data)
            else:
                poll.unregister(fd)
                socks.pop(fd).close()


def ask(port: int) -> None:
    poll = select.poll() if how == "poll" else select.epoll()
    socks = {}
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        poll.register(sock.fileno(), select.POLLIN)
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
