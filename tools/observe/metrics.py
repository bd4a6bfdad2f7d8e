# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, collected from all supervisors at each scrape; names in docs/observing.md.

Counters are per tree (its root program and pid), since the start and with those of ended processes: they never go
back while the tree lives.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sdlib import abi
from sdlib.wire import trees
from tools.observe.view import path_of

_LABELS: Final = ["program", "root_pid"]


def _labels(document: dict[str, Any]) -> list[str]:
    supervisor = document["supervisor"]
    return [os.path.basename(supervisor["command"]), str(supervisor["root_pid"])]


class Trees(Collector):
    """Asks at each scrape; keeps nothing."""

    def collect(self) -> Iterator[Metric]:
        """All families."""
        documents = trees.ask_all()
        yield GaugeMetricFamily("sdrun_supervisors", "Trees that can be looked at", value=len(documents))
        yield from _counters(documents)
        for name, key, what in (("sdrun_tcp_connections", "tcp_reasons", "Ended connections that stayed on TCP"),
                                ("sdrun_moved_back", "moved_back", "Connections moved back to TCP")):
            family = CounterMetricFamily(name, f"{what}, by reason", labels=[*_LABELS, "reason"])
            for document in documents:
                for reason, times in document[key].items():
                    family.add_metric([*_labels(document), reason], times)
            yield family
        yield _sizes(documents)
        yield _open(documents)
        yield from _latencies(documents)


def _counters(documents: list[dict[str, Any]]) -> Iterator[Metric]:
    for name in abi.COUNTERS:
        family = CounterMetricFamily(f"sdrun_{name}", f"Counter {name} of sd_abi.h", labels=_LABELS)
        for document in documents:
            family.add_metric(_labels(document), document["counters"][name])
        yield family


def _sizes(documents: list[dict[str, Any]]) -> Metric:
    """The sum of the bytes is what the byte counters say: the programs do not count it twice."""
    family = HistogramMetricFamily("sdrun_message_bytes", "Bytes that one call has sent or received",
                                   labels=[*_LABELS, "direction"])
    for document in documents:
        for direction, counts in document.get("sizes", {}).items():
            sums = list(itertools.accumulate(counts))
            buckets = [(str(float(size)), float(seen)) for size, seen in zip(abi.SIZES, sums, strict=False)]
            family.add_metric([*_labels(document), direction], [*buckets, ("+Inf", float(sums[-1]))], None)
    return family


def _open(documents: list[dict[str, Any]]) -> Metric:
    family = GaugeMetricFamily("sdrun_open_connections", "Open connections by what carries them",
                               labels=[*_LABELS, "path"])
    for document in documents:
        paths = [path_of(line, [])[0] for line in document["connections"]]
        for path in ("shm", "rdma", "tcp"):
            family.add_metric([*_labels(document), path], paths.count(path))
    return family


def _latencies(documents: list[dict[str, Any]]) -> Iterator[Metric]:
    for name, section, key, what in (
        ("sdrun_supervisor_notifications", "supervisor", "notifications", "System calls answered by the supervisor"),
        ("sdrun_monitor_offers", "monitor", "offers", "Connections offered to the monitor"),
    ):
        times = CounterMetricFamily(name, what, labels=_LABELS)
        seconds = CounterMetricFamily(f"{name}_seconds", f"{what}: time spent", labels=_LABELS)
        for document in documents:
            times.add_metric(_labels(document), document[section][key]["times"])
            seconds.add_metric(_labels(document), document[section][key]["seconds"])
        yield times
        yield seconds
    errors = CounterMetricFamily("sdrun_supervisor_errors", "Failures inside supervisors", labels=_LABELS)
    for document in documents:
        errors.add_metric(_labels(document), document["supervisor"]["errors"])
    yield errors


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
