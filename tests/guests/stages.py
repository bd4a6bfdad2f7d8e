# SPDX-License-Identifier: Apache-2.0
"""Connections that are opened and used when somebody says so: stages.py serve PORT | stages.py drive PORT FOLDER.

The server echoes. The driver waits for files in FOLDER: `open-N` opens connection N, and every connection that is open
is used all the time, each byte compared; `stop` ends it. `done-N` appears once connection N has carried a thousand
messages since it was opened, `beat` grows whenever all have been used.
"""

import os
import select
import socket
import sys
import time


def serve(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    poll, socks = select.poll(), {listener.fileno(): listener}
    poll.register(listener, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                socks[sock.fileno()] = sock
                poll.register(sock, select.POLLIN)
                continue
            data = socks[fd].recv(65536)
            if data:
                socks[fd].sendall(data)
            else:
                poll.unregister(fd)
                socks.pop(fd).close()


def exchange(sock: socket.socket, number: int, count: int) -> None:
    message = b"%d:%d." % (number, count)
    sock.sendall(message)
    got = b""
    while len(got) < len(message):
        part = sock.recv(100)
        if not part:
            sys.exit(f"connection {number} ended at message {count}")
        got += part
    if got != message:
        sys.exit(f"connection {number}: {got!r} instead of {message!r}")


def drive(port: int, folder: str) -> None:
    socks: dict[int, socket.socket] = {}
    counts: dict[int, int] = {}
    while not os.path.exists(f"{folder}/stop"):
        for name in os.listdir(folder):
            number = int(name[5:]) if name.startswith("open-") else -1
            if number >= 0 and number not in socks:
                socks[number] = socket.create_connection(("127.0.0.1", port))
                socks[number].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                counts[number] = 0
        for number, sock in socks.items():
            for _ in range(50):
                exchange(sock, number, counts[number])
                counts[number] += 1
            if counts[number] == 1000:
                open(f"{folder}/done-{number}", "w").close()
        with open(f"{folder}/beat", "a") as beat:
            beat.write(".")
        time.sleep(0.002)
    print("whole", sum(counts.values()))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    drive(int(sys.argv[2]), sys.argv[3])
