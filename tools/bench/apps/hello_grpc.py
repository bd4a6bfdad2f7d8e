# SPDX-License-Identifier: Apache-2.0
"""gRPC at both ends, with bytes for messages, so that no compiler of messages is needed.

    hello_grpc.py serve ADDRESS
    hello_grpc.py load ADDRESS SECONDS      one call after the other; prints JSON
"""

from __future__ import annotations

import json
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
        before = time.perf_counter()
        while before < begin + seconds:
            if call(message) != message:
                raise SystemExit("hello_grpc: unexpected answer")
            after = time.perf_counter()
            total += 1
            if before >= begin:
                latencies.append(after - before)
            before = after
    latencies.sort()
    quantiles = {name: latencies[int(share * (len(latencies) - 1))] * 1e9
                 for name, share in (("p50_ns", 0.5), ("p99_ns", 0.99), ("p999_ns", 0.999))}
    print(json.dumps({"seconds": seconds, "count": len(latencies), "total": total, **quantiles}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        load(sys.argv[2], float(sys.argv[3]))
