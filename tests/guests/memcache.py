# SPDX-License-Identifier: Apache-2.0
"""memcache.py PORT: sets and gets binary values on several connections of a memcached."""

from __future__ import annotations

import random
import socket
import sys


def main() -> None:
    """Every value comes back, also through another connection."""
    connections = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(8)]
    files = [connection.makefile("rb") for connection in connections]
    source = random.Random(4)
    for number in range(400):
        value = source.randbytes(source.choice([1, 40, 3000, 100_000]))
        writer, reader = source.randrange(8), source.randrange(8)
        connections[writer].sendall(b"set k%d 0 0 %d\r\n" % (number % 20, len(value)) + value + b"\r\n")
        assert files[writer].readline() == b"STORED\r\n"
        connections[reader].sendall(b"get k%d\r\n" % (number % 20))
        assert files[reader].readline() == b"VALUE k%d 0 %d\r\n" % (number % 20, len(value))
        assert files[reader].read(len(value) + 2) == value + b"\r\n"
        assert files[reader].readline() == b"END\r\n"
    print("ok")


if __name__ == "__main__":
    main()
