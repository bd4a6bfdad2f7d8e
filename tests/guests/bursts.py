# SPDX-License-Identifier: Apache-2.0
"""Bursts on many connections with pauses between: bursts.py serve PORT | bursts.py drive PORT FOLDER CONNECTIONS.

The server echoes with one thread. The driver sends a burst of 300 KB on each connection, compares what comes back, and
then sleeps until there is a file `burst-N` in FOLDER, for N = 1, 2, ...; `did-N` appears after burst N; `stop` ends it.
With PAUSE (seconds) as the last argument it goes on by itself after random pauses around that, 4 times for each
connection, all in threads of their own.
"""

import os
import random
import select
import socket
import sys
import threading
import time

SIZE = 300_000


def serve(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    poll, socks = select.epoll(), {listener.fileno(): listener}
    poll.register(listener, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                socks[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
            elif data := socks[fd].recv(65536):
                socks[fd].sendall(data)
            else:
                poll.unregister(fd)
                socks.pop(fd).close()


def burst(sock: socket.socket, number: int) -> None:
    data = random.Random(number).randbytes(SIZE)
    writer = threading.Thread(target=sock.sendall, args=(data,))
    writer.start()
    got = bytearray()
    while len(got) < SIZE:
        part = sock.recv(65536)
        if not part:
            os._exit(3)
        got += part
    writer.join()
    if got != data:
        print("burst", number, "came back different at", next(i for i in range(SIZE) if got[i] != data[i]))
        os._exit(1)


def drive(port: int, folder: str, count: int, pause: float) -> None:
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]

    def by_itself(sock: socket.socket, number: int) -> None:
        for turn in range(4):
            burst(sock, number * 100 + turn)
            time.sleep(pause * random.uniform(0.95, 1.05))

    if pause:
        threads = [threading.Thread(target=by_itself, args=pair) for pair in zip(socks, range(count), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("whole")
        return
    number = 0
    while not os.path.exists(f"{folder}/stop"):
        if number == 0 or os.path.exists(f"{folder}/burst-{number}"):
            for index, sock in enumerate(socks):
                burst(sock, number * 1000 + index)
            open(f"{folder}/did-{number}", "w").close()
            number += 1
        time.sleep(0.05)
    print("whole")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    drive(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]) if len(sys.argv) > 5 else 0)
