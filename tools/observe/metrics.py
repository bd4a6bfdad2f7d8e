# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of trees without their monitor: from all supervisors at each scrape (monitor/programs.py)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from monitor.programs import families
from sdlib.wire import trees


class Trees(Collector):
    """Asks at each scrape; keeps nothing."""

    def collect(self) -> Iterator[Metric]:
        """All families."""
        return families(trees.ask_all())


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Trees())
    return registry


def text() -> str:
    """Prometheus' text format."""
    return generate_latest(_registry()).decode()


def serve(where: str) -> int:
    """Answer scrapes over HTTP until SIGINT or SIGTERM. Exit status: 0; 1 without the port, 2 for a wrong one."""
    host, _, port = where.rpartition(":")
    if not port.isdecimal() or int(port) > 0xFFFF:
        print(f"sdstat: --listen {where}: no port", file=sys.stderr)
        return 2
    try:
        server, thread = start_http_server(int(port), host.strip("[]") or "127.0.0.1", _registry())
    except OSError as error:
        print(f"sdstat: --listen {where}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"http://{host or '127.0.0.1'}:{server.server_port}/metrics", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.pause()
    server.shutdown()
    thread.join()
    return 0
