# SPDX-License-Identifier: Apache-2.0
"""pyhttp.py server PORT | client PORT: http.server with a thread per connection, http.client with keep-alive."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import random
import signal
import sys


class Digest(http.server.BaseHTTPRequestHandler):
    """POST answers the body's SHA-256; GET /N answers N pseudo-random bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Read it all, answer its digest."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(hashlib.sha256(body).hexdigest().encode())

    def do_GET(self) -> None:
        """As many bytes as the path says."""
        size = int(self.path[1:])
        self._answer(random.Random(size).randbytes(size))

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def serve(port: int) -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Digest).serve_forever()


def client(port: int) -> None:
    """Four kept-alive connections, 60 requests each."""
    for _ in range(4):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for size in [*range(0, 50000, 2500), *range(1, 40), 1_000_000]:
            body = random.Random(size).randbytes(size)
            connection.request("POST", "/", body)
            assert connection.getresponse().read().decode() == hashlib.sha256(body).hexdigest()
            connection.request("GET", f"/{size}")
            assert connection.getresponse().read() == body
        connection.close()
    print("ok")


if __name__ == "__main__":
    (serve if sys.argv[1] == "server" else client)(int(sys.argv[2]))
