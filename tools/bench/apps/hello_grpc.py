# SPDX-License-Identifier: Apache-2.0
"""gRPC at both ends, with bytes for messages, so that no compiler of messages is needed.

    hello_grpc.py serve ADDRESS
    hello_grpc.py load ADDRESS SECONDS      one call after the other; prints JSON
"""

from __future__ import annotations

import json
import resource
import sys
import time
from concurrent import futures

import grpc

METHOD = "/sdbench.Hello/Say"
WARM_S = 1.0


class Hello(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The one method: gives back what it gets."""

    def service(self, details: grpc.HandlerCallDetails) -> object:
        """How METHOD is called."""
        return grpc.unary_unary_rpc_method_handler(lambda message, _: message) if details.method == METHOD else None


def serve(address: str) -> None:
    """For ever."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((Hello(),))
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def load(address: str, seconds: float) -> None:
    """Calls in turn."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        message, latencies, total = b"x" * 64, [], 0
        begin = time.perf_counter() + WARM_S
        before, user, warm = time.perf_counter(), 0.0, True
        while before < begin + seconds:
            if call(message) != message:
                raise SystemExit("hello_grpc: unexpected answer")
            after = time.perf_counter()
            total += 1
            if warm and before >= begin:
                user, warm = resource.getrusage(resource.RUSAGE_SELF).ru_utime, False  # Python's start is none of it
            if before >= begin:
                latencies.append(after - before)
            before = after
    user = (resource.getrusage(resource.RUSAGE_SELF).ru_utime - user) / max(1, len(latencies))
    latencies.sort()
    quantiles = {name: latencies[int(share * (len(latencies) - 1))] * 1e9
                 for name, share in (("p50_ns", 0.5), ("p99_ns", 0.99), ("p999_ns", 0.999))}
    print(json.dumps({"seconds": seconds, "count": len(latencies), "total": total, "user_ns": user * 1e9, **quantiles}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        load(sys.argv[2], float(sys.argv[3]))
