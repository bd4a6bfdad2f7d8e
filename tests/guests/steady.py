# SPDX-License-Identifier: Apache-2.0
"""steady.py PORT CONNECTIONS PAUSE echo|resp|http: open connections, and check what comes back on each, until SIGUSR1.

Several messages are on their way at the same time. PAUSE in seconds, after each round. Prints "open" when all are
connected and have been used, and at the end how many rounds there were.
"""

from __future__ import annotations

import random
import signal
import socket
import sys
import time

_AT_ONCE = 4
_LARGEST = 9000


class Echo:
    """What a server of this kind is sent, and what it has to say."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)

    def ask(self) -> tuple[bytes, bytes]:
        """A message, and its answer."""
        data = self.source.randbytes(self.source.randrange(1, _LARGEST))
        return data, data


class Resp(Echo):
    """redis."""

    def ask(self) -> tuple[bytes, bytes]:
        value = self.source.randbytes(self.source.randrange(1, _LARGEST))
        return b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(value), value), b"$%d\r\n%s\r\n" % (len(value), value)


class Http(Echo):
    """A web server with a file of 612 bytes."""

    _BODY = random.Random(612).randbytes(612)

    def ask(self) -> tuple[bytes, bytes]:
        return b"GET /612 HTTP/1.1\r\nHost: x\r\n\r\n", self._BODY


def read(sock: socket.socket, wanted: bytes, *, ends_with: bool) -> None:
    """Exactly that, or (http) something that ends with it."""
    got = b""
    while len(got) < len(wanted) or (ends_with and not got.endswith(wanted)):
        part = sock.recv(1 << 16 if ends_with else len(wanted) - len(got))
        if not part:
            raise SystemExit("end of stream")
        got += part
    if not ends_with and got != wanted:
        raise SystemExit("bytes differ")


def one_round(sock: socket.socket, kind: Echo) -> None:
    """Some messages at once."""
    http = isinstance(kind, Http)
    asked = [kind.ask() for _ in range(1 if http else _AT_ONCE)]
    sock.sendall(b"".join(question for question, _ in asked))
    for _, answer in asked:
        read(sock, answer, ends_with=http)


def main(port: int, connections: int, pause: float, kind: str) -> None:
    """Until SIGUSR1."""
    stopped = []
    signal.signal(signal.SIGUSR1, lambda *_: stopped.append(True))
    make = {"echo": Echo, "resp": Resp, "http": Http}[kind]
    open_ = [(socket.create_connection(("127.0.0.1", port)), make(number)) for number in range(connections)]
    rounds = 0
    while not stopped:
        for sock, source in open_:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one_round(sock, source)
        rounds += 1
        if rounds == 1:
            print("open", flush=True)
        time.sleep(pause)
    for sock, _ in open_:
        sock.close()
    print(rounds, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
