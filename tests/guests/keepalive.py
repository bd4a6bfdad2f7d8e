# SPDX-License-Identifier: Apache-2.0
"""keepalive.py PORT CLIENTS PATH FILE: threads that ask for PATH, on connections that they keep, until SIGUSR1.

Each answer has to be what FILE has.  A server that leaves closes connections behind an answer, or while they are idle;
who was about to ask then asks once more on another one, as every client of HTTP does.  A connection that is refused, or
that ends without an answer when it is new, or in the middle of one, is a failure.  Prints "open" when all have been
answered, and at the end how many answers and how many connections there were.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from pathlib import Path

_PAUSE_S = 0.002


class Client(threading.Thread):
    """One that has at most one connection."""

    def __init__(self, port: int, path: str, body: bytes) -> None:
        super().__init__()
        self.address, self.path, self.body = ("127.0.0.1", port), path, body
        self.answers = self.connections = 0
        self.failure = ""
        self.over = threading.Event()
        self.sock: socket.socket | None = None

    def run(self) -> None:
        """Until it is over, or the first failure."""
        try:
            while not self.over.wait(_PAUSE_S):
                self.ask()
        except (OSError, ValueError) as error:
            self.failure = f"{error!r} after {self.answers} answers, {self.connections} connections"

    def ask(self) -> None:
        """One request, and its answer."""
        new = self.sock is None
        if self.sock is None:
            self.sock = socket.create_connection(self.address, timeout=60)
            self.connections += 1
        try:
            self.sock.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % self.path.encode())
            first = self.sock.recv(1 << 16)
        except (BrokenPipeError, ConnectionResetError):
            first = b""
        if not first and new:
            raise ValueError("a new connection has ended without an answer")
        if not first:
            self.sock.close()
            self.sock = None
            self.ask()
            return
        self.check(self.sock, first)

    def check(self, sock: socket.socket, got: bytes) -> None:
        """It is the whole answer."""
        while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < len(self.body):
            part = sock.recv(1 << 16)
            if not part:
                raise ValueError("an answer has ended in the middle")
            got += part
        head, _, body = got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 ") or body != self.body:
            raise ValueError(f"another answer: {head!r}")
        self.answers += 1
        if b"connection: close" in head.lower():
            sock.close()
            self.sock = None


def main(port: int, clients: int, path: str, file: Path) -> int:
    """Exit status."""
    over = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: over.set())
    all_ = [Client(port, path, file.read_bytes()) for _ in range(clients)]
    for client in all_:
        client.start()
    while not all(client.answers or client.failure for client in all_):
        over.wait(0.01)
    print("open", flush=True)
    over.wait()
    for client in all_:
        client.over.set()
    for client in all_:
        client.join()
    failures = [client.failure for client in all_ if client.failure]
    print(sum(client.answers for client in all_), sum(client.connections for client in all_), *failures)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
