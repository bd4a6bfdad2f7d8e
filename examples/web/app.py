# SPDX-License-Identifier: Apache-2.0
"""A page that counts its visitors in redis, and shows twenty entries of a list: some forty small messages a request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import redis

store = redis.Redis(port=int(os.environ["REDIS_PORT"]))


def application(environ: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
    """WSGI."""
    visits = store.incr("visits")
    entries = [store.get(f"entry:{number}") or b"-" for number in range(20)]
    body = b"visit %d\n" % visits + b"\n".join(entries)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
