# SPDX-License-Identifier: Apache-2.0
"""What happened between two moments, per program and per connection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdlib import abi
from tools.observe import sockets, view
from tools.observe.view import Moment, Row


@dataclass
class Interval:
    """Two moments; `before` None: since the beginning."""

    before: Moment | None
    now: Moment

    @property
    def seconds(self) -> float:
        """How long, at least a millisecond."""
        return max(self.now.at - self.before.at, 1e-3) if self.before else 1.0

    def programs(self) -> list[dict[str, Any]]:
        """One entry per process: counters since `before`, and the reasons for which connections moved back since."""
        earlier = _by_process(self.before) if self.before else {}
        return [
            {
                "pid": line["pid"], "name": line["name"], "exe": line["exe"], "supervisor": key[0],
                "injected": line["injected"], "reason": line["reason"] or line["accelerate"],
                "counters": _minus(line["counters"], earlier.get(key, {}).get("counters", {})) | {
                    name: line["counters"][name] for name in abi.GAUGES},
                "sizes": {name: _minus_all(counts, earlier.get(key, {}).get("sizes", {}).get(name, ()))
                          for name, counts in line.get("sizes", {}).items()},
                "moved_back": _minus(line["moved_back"], earlier.get(key, {}).get("moved_back", {})),
            }
            for key, line in _by_process(self.now).items()
        ]  # fmt: skip

    def connections(self) -> list[Row]:
        """Rows with rates and what they have counted since `before`; without it since they began, and no rates."""
        if self.before:
            view.add_rates(self.before, self.now)
        earlier = {row.inode: row.connection for row in self.before.rows} if self.before else {}
        return [_since(row, earlier.get(row.inode)) for row in self.now.rows if row.path]

    def supervisors(self) -> list[dict[str, Any]]:
        """How long programs waited for each supervisor, and that one for the monitor, on average since `before`."""
        documents = self.before.documents if self.before else []
        earlier = {document["supervisor"]["pid"]: document for document in documents}
        return [_latency(document, earlier.get(document["supervisor"]["pid"])) for document in self.now.documents]


def _by_process(moment: Moment) -> dict[tuple[int, int], dict[str, Any]]:
    return {(document["supervisor"]["pid"], line["pid"]): line | {"name": _name(line, here=document["here"])}
            for document in moment.documents for line in document["processes"]}


def _name(line: dict[str, Any], *, here: bool) -> str:
    """What ps and ss call it; Debian's redis-server is a link to another name."""
    return (sockets.name_of(line["pid"]) if here else "") or os.path.basename(line["exe"])


def _since(row: Row, before: dict[str, Any] | None) -> Row:
    if not before or not row.connection:
        return row
    return replace(row, connection=row.connection | view.since(before, row.connection))


def _minus(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """A smaller value than before is another process's that got the same pid: it counts whole."""
    return {name: value - before.get(name, 0) if value >= before.get(name, 0) else value for name, value in now.items()}


def _minus_all(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """Of another process that got the same pid, everything counts, as above."""
    if len(before) != len(now) or any(new < old for new, old in zip(now, before, strict=True)):
        return list(now)
    return [new - old for new, old in zip(now, before, strict=True)]


def _latency(now: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    def mean(*path: str) -> tuple[int, float | None]:
        new, old = now[path[0]][path[1]], before[path[0]][path[1]] if before else {"times": 0, "seconds": 0.0}
        times = new["times"] - old["times"]
        return times, (new["seconds"] - old["seconds"]) / times if times else None

    def longest(*path: str) -> float | None:
        """Since the supervisor began; older ones do not say."""
        found: float | None = now[path[0]][path[1]].get("longest_s")
        return found

    notifications, waited = mean("supervisor", "notifications")
    offers, asked = mean("monitor", "offers")
    return {
        "pid": now["supervisor"]["pid"], "root_pid": now["supervisor"]["root_pid"],
        "command": now["supervisor"]["command"], "notifications": notifications, "notification_mean_s": waited,
        "notification_longest_s": longest("supervisor", "notifications"), "offers": offers, "offer_mean_s": asked,
        "offer_longest_s": longest("monitor", "offers"), "errors": now["supervisor"]["errors"],
    }  # fmt: skip
