# SPDX-License-Identifier: Apache-2.0
"""A server sleeps in epoll_wait on many connections: however many of them a client writes to, it serves them all.

The client stops it while it sleeps, so all that is written comes in one sleep. What was served is told by a pipe: so
the doorbells of the report are the client's.
"""

import os
import select
import signal
import socket
import sys
import time

CONNECTIONS, ROUNDS = 16, 20
listener = socket.create_server(("127.0.0.1", 0))
served, tell = os.pipe()


def serve(edge: int) -> None:
    poll, socks = select.epoll(), {}
    for _ in range(CONNECTIONS):
        sock, _ = listener.accept()
        assert sock.recv(1) == b"?"
        sock.sendall(b"!")
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN | edge)
    while socks:
        for fd, _ in poll.poll():
            data = socks[fd].recv(100)
            os.write(tell, b"." * len(data))
            if not data:
                socks.pop(fd).close()


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
    serve(select.EPOLLET if sys.argv[1] == "edge" else 0)
    os._exit(0)
drive(child)
_, status = os.wait()
print("served" if status == 0 else status)
