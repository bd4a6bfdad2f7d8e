# SPDX-License-Identifier: Apache-2.0
"""A server sleeps on many connections: however many of them a client writes to, it serves them all.

level, edge: in epoll_wait; poll, select: in these; threads: two threads, each in epoll_wait on a half of them.

The client stops it while it sleeps, so all that is written comes in one sleep. What was served is told by a pipe: so
the doorbells of the report are the client's.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

CONNECTIONS, ROUNDS = 16, 20
listener = socket.create_server(("127.0.0.1", 0))
served, tell = os.pipe()


def sleeper(socks: list[socket.socket], how: str) -> Callable[[], list[int]]:
    """What sleeps on all of them and says which are readable."""
    if how == "select":
        return lambda: [sock.fileno() for sock in select.select([s for s in socks if s.fileno() >= 0], [], [])[0]]
    poll = select.poll() if how == "poll" else select.epoll()
    for sock in socks:
        poll.register(sock, select.EPOLLIN | (select.EPOLLET if how == "edge" else 0))
    return lambda: [fd for fd, _ in poll.poll()]


def serve_some(socks: list[socket.socket], how: str) -> None:
    wait, left = sleeper(socks, how), {sock.fileno(): sock for sock in socks}
    while left:
        for fd in wait():
            if fd not in left:
                continue
            data = left[fd].recv(100)
            os.write(tell, b"." * len(data))
            if not data and how == "poll":
                os._exit(0)  # a closed descriptor stays in its list
            if not data:
                left.pop(fd).close()


def serve(how: str) -> None:
    socks = []
    for _ in range(CONNECTIONS):
        sock, _ = listener.accept()
        assert sock.recv(1) == b"?"
        sock.sendall(b"!")
        sock.setblocking(False)
        socks.append(sock)
    if how != "threads":
        serve_some(socks, how)
        return
    halves = [threading.Thread(target=serve_some, args=(socks[half::2], how)) for half in (0, 1)]
    for thread in halves:
        thread.start()
    for thread in halves:
        thread.join()


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(") ")[2][0]


def until(pid: int, wanted: str) -> None:
    while state(pid) != wanted:
        time.sleep(0.001)


def drive(pid: int) -> None:
    socks = [socket.create_connection(listener.getsockname()) for _ in range(CONNECTIONS)]
    for sock in socks:
        sock.sendall(b"?")
        assert sock.recv(1) == b"!"
    for number in range(ROUNDS):
        some = socks[number % 3 :: 1 + number % 2]
        until(pid, "S")
        os.kill(pid, signal.SIGSTOP)
        until(pid, "T")
        for sock in some:
            sock.sendall(b"x" * (1 + number % 2))
        os.kill(pid, signal.SIGCONT)
        left = len(some) * (1 + number % 2)
        while left:
            if not select.select([served], [], [], 30)[0]:
                sys.exit(f"round {number}: {left} bytes are not served")
            left -= len(os.read(served, left))
    for sock in socks:
        sock.close()


child = os.fork()
if child == 0:
    serve(sys.argv[1])
    os._exit(0)
drive(child)
_, status = os.wait()
print("served" if status == 0 else status)
