# SPDX-License-Identifier: Apache-2.0
"""resp.py PORT: a small redis client that checks values, pipelines, publish/subscribe and BGSAVE during traffic."""

from __future__ import annotations

import random
import socket
import sys
import time


class Redis:
    """One connection, the replies of RESP2 as Python values."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb")

    def send(self, *words: bytes | str) -> None:
        """One command, no waiting."""
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        self.sock.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))

    def reply(self) -> object:
        """One reply; an error reply ends the program."""
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        raise SystemExit(f"reply {line!r}")

    def __call__(self, *words: bytes | str) -> object:
        """Command and reply."""
        self.send(*words)
        return self.reply()


def values(redis: Redis, source: random.Random) -> dict[str, bytes]:
    """Binary values of all sizes come back unchanged."""
    sizes = [0, 1, 100, 4096, 16383, 65536, 262144, 1_000_003, *(source.randrange(3000) for _ in range(300))]
    kept = {f"key:{size}": source.randbytes(size) for size in sizes}
    for key, value in kept.items():
        assert redis("SET", key, value) == b"OK"
        assert redis("GET", key) == value
    return kept


def pipeline(redis: Redis) -> None:
    """A thousand commands before the first reply is read."""
    for number in range(1000):
        redis.send("INCRBY", "counter", str(number))
    total = 0
    for number in range(1000):
        total += number
        assert redis.reply() == total


def publish(redis: Redis, port: int) -> None:
    """Messages reach a subscriber that waits."""
    subscriber = Redis(port)
    assert subscriber("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
    for number in range(300):
        assert redis("PUBLISH", "news", f"item {number}") == 1
        if number % 50 == 0:
            time.sleep(0.01)
        assert subscriber.reply() == [b"message", b"news", b"item %d" % number]


def save_during_traffic(redis: Redis, kept: dict[str, bytes]) -> None:
    """BGSAVE forks; the connection goes on in the parent, and the child writes a complete file."""
    before = redis("LASTSAVE")
    time.sleep(1.1)  # LASTSAVE has seconds
    assert redis("BGSAVE") == b"Background saving started"
    deadline = time.monotonic() + 30
    while redis("LASTSAVE") == before:
        assert time.monotonic() < deadline
        for key in list(kept)[:50]:
            assert redis("GET", key) == kept[key]
    assert b"rdb_last_bgsave_status:ok" in bytes(redis("INFO", "persistence"))  # type: ignore[call-overload]


def main() -> None:
    """All of it on one connection, plus the subscriber's."""
    port = int(sys.argv[1])
    redis = Redis(port)
    kept = values(redis, random.Random(1))
    pipeline(redis)
    publish(redis, port)
    save_during_traffic(redis, kept)
    for key, value in kept.items():
        assert redis("GET", key) == value
    print("ok")


if __name__ == "__main__":
    main()
