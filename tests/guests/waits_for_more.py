# SPDX-License-Identifier: Apache-2.0
"""Two processes have a connection, and one sleeps for more than there is: it wakes up when that comes, and not before.

edge: in an edge-triggered epoll behind a byte that stays unread; low: in poll for as much as SO_RCVLOWAT says.
The other process sleeps in poll, and leaves what there is to the first.
"""

import os
import select
import signal
import socket
import sys
import time

WARM, ROUNDS, QUIET_S = 100, 3, 0.4
how = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))


def peer() -> None:
    sock = socket.create_connection(listener.getsockname())
    for _ in range(WARM):
        sock.sendall(b"?")
        assert sock.recv(1) == b"!"
        time.sleep(0.005)  # the connection moves meanwhile
    for _ in range(ROUNDS):
        time.sleep(0.1)  # both sleep
        sock.sendall(b"first")
        time.sleep(QUIET_S)
        sock.sendall(b"second")
        assert sock.recv(1) == b"!"
    assert sock.recv(1) == b""


def companion(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        poll.poll()
        time.sleep(0.05)


def heard(sock: socket.socket) -> list[int]:
    """How often it is told of bytes until all of a round is there, and how many are."""
    sleeper = select.epoll() if how == "edge" else select.poll()
    sleeper.register(sock, select.EPOLLIN | (select.EPOLLET if how == "edge" else 0))
    seen: list[int] = []
    while not seen or seen[-1] < len("firstsecond"):
        assert sleeper.poll(), "asleep"
        seen.append(len(sock.recv(100, socket.MSG_PEEK)))
    return seen


child = os.fork()
if child == 0:
    peer()
    os._exit(0)
sock, _ = listener.accept()
for _ in range(WARM):
    assert sock.recv(1) == b"?"
    sock.sendall(b"!")
if how == "low":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 11)
other = os.fork()
if other == 0:
    companion(sock)
for _ in range(ROUNDS):
    print(*heard(sock))
    assert len(sock.recv(100)) == 11
    sock.sendall(b"!")
os.kill(other, signal.SIGKILL)
os.waitpid(other, 0)
sock.close()
os.waitpid(child, 0)
