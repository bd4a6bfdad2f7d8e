# SPDX-License-Identifier: Apache-2.0
"""Edge triggers, and bytes that come by TCP first and then by the ring, with the doorbell between.

The server reads both in one go while that doorbell lies unread in the kernel, whose edge has been reported. Then it
sleeps in epoll_wait, and has to hear of what comes next.
"""

import contextlib
import os
import select
import socket
import sys
import time

listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
if os.fork() == 0:
    sock = socket.create_connection(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"a" * 100)  # nobody has attached: TCP
    assert sock.recv(1) == b"x"
    sock.sendall(b"b" * 1000)  # the ring, if there is one
    assert sock.recv(1) == b"y"
    for n in range(5):
        time.sleep(0.05)
        sock.sendall(b"%d" % n)
        if sock.recv(1) != b"%d" % n:
            os._exit(1)
    os._exit(0)

sock, _ = listener.accept()
epoll = select.epoll()
epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
time.sleep(0.1)
sock.setblocking(False)
sock.send(b"x")
time.sleep(0.1)
got = 0
while got < 1100:
    if not epoll.poll(20):
        sys.exit(f"asleep after {got}")
    with contextlib.suppress(BlockingIOError):
        got += len(sock.recv(65536))
sock.send(b"y")
echoed = 0
while echoed < 5:
    if not epoll.poll(20):
        sys.exit(f"asleep after {echoed} more")
    with contextlib.suppress(BlockingIOError):
        sock.send(sock.recv(100))
        echoed += 1
_, status = os.wait()
print("heard" if status == 0 else status)
