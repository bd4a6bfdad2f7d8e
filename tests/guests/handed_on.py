"""A connection goes from program to program by SCM_RIGHTS, in the middle of its life.

    give WAYS TIMES UNREAD   makes the connection, keeps one end, and sends the other to TIMES that connect to WAYS
    take WAY                 receives it and sends everything back
    relay WAY WAYS           receives it and sends it on

`give` prints ok when each of its messages has come back, in the right order.
"""

import array
import contextlib
import os
import socket
import sys
import time

ROUNDS, WARM = 2000, 40


def ways(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + "~")
    listener.listen()
    os.rename(path + "~", path)
    return listener


def give(way: socket.socket, conn: socket.socket) -> None:
    way.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [conn.fileno()]))])


def receive(path: str) -> tuple[socket.socket, socket.socket]:
    way = socket.socket(socket.AF_UNIX)
    way.connect(path)
    _, [[_, _, rights]], _, _ = way.recvmsg(1, socket.CMSG_SPACE(4))
    return way, socket.socket(fileno=array.array("i", rights)[0])


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def exactly(conn: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = conn.recv(size - len(data))
        assert part, data
        data += part
    return data


def first(path: str, times: int, unread: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    for conn in (near, far):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in range(WARM):
        near.sendall(b"warm %2d" % number)
        far.sendall(exactly(far, 7))
        assert exactly(near, 7) == b"warm %2d" % number
        time.sleep(0.003)  # the connection moves meanwhile
    near.sendall(b"u" * unread)
    takers = []
    with ways(path) as clients:
        for _ in range(times):
            takers.append(clients.accept()[0])
    for taker in takers:
        give(taker, far)
    far.close()
    assert exactly(near, unread) == b"u" * unread
    for number in range(ROUNDS):
        if number < 2 * WARM:
            time.sleep(0.003)  # it moves up again, which takes longer than all of them would
        near.sendall(b"message %4d" % number)
        assert exactly(near, 12) == b"message %4d" % number
    near.close()
    print("ok", flush=True)


def main() -> None:
    what, path = sys.argv[1:3]
    if what == "give":
        first(path, int(sys.argv[3]), int(sys.argv[4]))
        return
    wait_for(path)
    way, conn = receive(path)
    if what == "relay":
        with ways(sys.argv[3]) as clients:
            on, _ = clients.accept()
        give(on, conn)
        conn.close()
        way.recv(1)  # until the first program ends
        return
    with contextlib.suppress(ConnectionResetError):
        while part := conn.recv(64):
            conn.sendall(part)


main()
