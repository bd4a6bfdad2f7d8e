# SPDX-License-Identifier: Apache-2.0
"""Where the end of a large message has been taken, without waiting, a small one is taken, too."""

import socket

STEP = 128 << 10

listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()
for _ in range(100):
    near.sendall(b"warm")
    assert far.recv(4) == b"warm"
    far.sendall(b"k")
    assert near.recv(1) == b"k"
near.setblocking(False)


def send(data: bytes) -> int:
    try:
        return near.send(data)
    except BlockingIOError:
        return 0


def take(count: int) -> None:
    while count:
        count -= len(far.recv(count))


taken = []
for size in (STEP, STEP - 1, STEP // 2 + 1, STEP, STEP + 1):
    queued = 0
    while sent := send(bytes(8 << 20)):
        queued += sent
    left = size
    while left:
        take(step := min(STEP, queued))
        queued -= step
        sent = send(bytes(left))
        queued += sent
        left -= sent
    taken.append(sent := send(b"x"))
    take(queued + sent)
print(taken, flush=True)
