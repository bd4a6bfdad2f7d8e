# SPDX-License-Identifier: Apache-2.0
"""What supervisors say of their trees (sdlib/wire/trees.py), as Prometheus families; names in docs/observing.md.

Counters are per tree (its root program and pid, and its user), since the start and with those of ended processes: they
never go back while the tree lives. Documents are as their user's programs want them: well formed, and no more.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sdlib import abi

_LABELS: Final = ["program", "root_pid", "uid"]
_NAME_MAX: Final = 64


def _labels(document: dict[str, Any]) -> list[str]:
    supervisor = document["supervisor"]
    name = "".join(char if char.isprintable() else "?" for char in os.path.basename(supervisor["command"])[:_NAME_MAX])
    return [name, str(supervisor["root_pid"] % (1 << 32)), str(document["uid"])]


def _each_once(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two with the same labels would make the whole of it unreadable; pids of two namespaces may be equal."""
    return list({tuple(_labels(document)): document for document in documents}.values())


def families(documents: Iterable[dict[str, Any]]) -> Iterator[Metric]:
    """All families. `documents` are well formed, with the `uid` whose they are."""
    known = _each_once(documents)
    yield GaugeMetricFamily("sdrun_supervisors", "Trees that can be looked at", value=len(known))
    yield from _counters(known)
    for name, key, what in (("sdrun_tcp_connections", "tcp_reasons", "Ended connections that stayed on TCP"),
                            ("sdrun_moved_back", "moved_back", "Connections moved back to TCP")):
        family = CounterMetricFamily(name, f"{what}, by reason", labels=[*_LABELS, "reason"])
        for document in known:
            for reason in document[key].keys() & set(abi.REASONS):
                family.add_metric([*_labels(document), reason], document[key][reason])
        yield family
    yield _sizes(known)
    yield _open(known)
    yield from _latencies(known)


def _counters(documents: list[dict[str, Any]]) -> Iterator[Metric]:
    for name in abi.COUNTERS:
        make = GaugeMetricFamily if name in abi.GAUGES else CounterMetricFamily
        family = make(f"sdrun_{name}", f"Counter {name} of sd_abi.h", labels=_LABELS)
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
        for path in ("shm", "rdma", "tcp"):
            family.add_metric([*_labels(document), path], document.get("open", {}).get(path, 0))
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
