# SPDX-License-Identifier: Apache-2.0
"""A server forks while a connection in its epoll set has been silent for long, and its child closes all it has.

The server has to hear of the silent connection still.
"""

import os
import select
import socket

listener = socket.create_server(("127.0.0.1", 0))


def drive() -> None:
    busy, silent = (socket.create_connection(listener.getsockname()) for _ in range(2))
    for sock in (busy, silent) * 3:
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
    for _ in range(100):  # many sleeps of the server without a word of the other one
        select.select([], [], [], 0.002)
        busy.sendall(b"2")
        assert busy.recv(1) == b"2"
    busy.sendall(b"F")
    assert busy.recv(1) == b"F"
    silent.settimeout(20)
    silent.sendall(b"3")
    assert silent.recv(1) == b"3"


def fork(socks: dict[int, socket.socket]) -> None:
    if os.fork() == 0:
        for sock in socks.values():
            sock.close()
        os._exit(0)
    os.wait()


def serve() -> None:
    epoll, socks = select.epoll(), {}
    for _ in range(2):
        sock, _ = listener.accept()
        socks[sock.fileno()] = sock
        epoll.register(sock, select.EPOLLIN)
    while socks:
        for fd, _ in epoll.poll():
            data = socks[fd].recv(100)
            if not data:
                socks.pop(fd).close()
                continue
            if data == b"F":
                fork(socks)
            socks[fd].sendall(data)


if os.fork() == 0:
    drive()
    os._exit(0)
serve()
print("failed" if os.wait()[1] else "heard")
