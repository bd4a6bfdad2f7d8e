# SPDX-License-Identifier: Apache-2.0
"""Samples, rows of a table, and the JSON that keeps them."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Sample = dict[str, float]

VERSION = 1

# How a figure is read: its unit for people, and whether more of it is better.
METRICS: dict[str, tuple[str, bool]] = {
    "p50_us": ("µs", False), "p99_us": ("µs", False), "p999_us": ("µs", False), "rate": ("/s", True),
    "mib_s": ("MiB/s", True), "cpu_us": ("µs CPU", False), "ns": ("ns", False), "ms": ("ms", False),
    "cpu_ms_s": ("ms CPU/s", False), "kib": ("KiB", False), "s": ("s", False), "cpu_s": ("s CPU", False),
}  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """How many times better than native, by rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


def short(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.095 else f"{value:.3f}"


@dataclass
class Row:
    """One question, asked of every variant in turn, several rounds."""

    bench: str
    case: dict[str, Any]
    main: str
    """The metric that the row is about."""
    native: str
    """The variant that all others are compared with."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    counters: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of variants under sdrun: the report's counters, from the last round."""

    @property
    def title(self) -> str:
        """The case in words."""
        return ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in self.case.items())

    def median(self, variant: str, metric: str) -> float | None:
        """Over the rounds; None if the variant has no such figure."""
        values = [sample[metric] for sample in self.samples.get(variant, []) if metric in sample]
        return statistics.median(values) if values else None

    def spread(self, variant: str, metric: str) -> tuple[float, float] | None:
        """Least and greatest."""
        values = [sample[metric] for sample in self.samples.get(variant, []) if metric in sample]
        return (min(values), max(values)) if values else None

    def ratio(self, variant: str, metric: str | None = None) -> Ratio | None:
        """Against native in the same round, above 1 if better; None if a figure is missing."""
        metric = metric or self.main
        more_is_better = METRICS[metric][1]
        values = []
        for own, native in zip(self.samples.get(variant, []), self.samples.get(self.native, []), strict=False):
            above, below = (own.get(metric), native.get(metric))
            if not more_is_better:
                above, below = below, above
            if above and below:
                values.append(above / below)
        return Ratio(statistics.median(values), min(values), max(values)) if values else None

    def on_shm(self, variant: str) -> float | None:
        """Share of the ends of connections that shared memory carried; None if the variant was not under sdrun."""
        return self.median(variant, "shm_share")


@dataclass
class Results:
    """One run of sdbench."""

    kind: str
    machine: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Replace the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that `save` wrote. ValueError if it is not one."""
        raw = json.loads(path.read_text())
        if not isinstance(raw, dict) or raw.pop("version", None) != VERSION:
            raise ValueError(f"{path} is not a file of this sdbench")
        rows = [Row(**row) for row in raw.pop("rows")]
        return cls(rows=rows, **raw)
