# SPDX-License-Identifier: Apache-2.0
"""Asks a question of all variants in turn, round after round, and shows progress and results meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.sdbench.results import METRICS, Results, Row, Sample, short
from tools.sdbench.stage import BenchError, NotHere, Stage

Ask = Callable[[Stage], Sample]


@dataclass
class Case:
    """One row to be: what is asked of whom. The first variant is native."""

    bench: str
    case: dict[str, Any]
    main: str
    variants: Mapping[str, Ask]
    rounds: int | None = None
    """If not as many as usual."""


@dataclass
class Runner:
    """Interleaves: all variants of a round run before the next round, the order turns."""

    stage: Stage
    results: Results
    rounds: int
    output: Path
    console: Console = field(default_factory=Console)
    total: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self, cases: list[Case]) -> None:
        """All of them; the JSON is written after each, so that what was measured is not lost."""
        self.total += len(cases)
        for case in cases:
            row = Row(case.bench, case.case, case.main, next(iter(case.variants)))
            rounds = case.rounds or self.rounds
            for number in range(rounds):
                names = list(case.variants)
                turned = names[number % len(names):] + names[:number % len(names)]
                for name in turned:
                    if name not in row.skipped:
                        self._one(row, name, case.variants[name], f"round {number + 1} of {rounds}")
            self.done += 1
            self.results.rows.append(row)
            self.results.save(self.output)
            self.console.print(line(row), markup=False, highlight=False)

    def _one(self, row: Row, name: str, ask: Ask, which: str) -> None:
        took = time.monotonic() - self.started
        left = f", about {took / self.done * (self.total - self.done) / 60:.0f} min left" if self.done else ""
        text = f"{self.done + 1} of {self.total}{left}: {row.bench}, {row.title}: {name}, {which}"
        with self.console.status(text.replace("[", "(")):
            try:
                sample = ask(self.stage)
                add_reports(row, name, sample, self.stage.reports())
            except NotHere as reason:
                row.skipped[name] = str(reason)
                return
            except BenchError as error:
                row.skipped[name] = f"failed: {error}"
                row.samples.pop(name, None)
                self.stage.forget_reports()
                return
        row.samples.setdefault(name, []).append(sample)


def add_reports(row: Row, name: str, sample: Sample, reports: list[dict[str, Any]]) -> None:
    """Who carried the connections, and what the library counted."""
    if not reports:
        return
    total = sum(report["connections"]["total"] for report in reports)
    shm = sum(report["connections"]["shm"] for report in reports)
    if total:
        sample["shm_share"] = shm / total
    sums: dict[str, float] = {}
    for report in reports:
        for counter, value in report["counters"].items():
            sums[counter] = sums.get(counter, 0) + value
        for reason, value in report["connections"]["tcp_reasons"].items():
            sums[f"tcp: {reason}"] = sums.get(f"tcp: {reason}", 0) + value
    row.counters[name] = {counter: value for counter, value in sums.items() if value}


def line(row: Row) -> str:
    """A finished row for people: native, then every other variant as a multiple of it."""
    unit = METRICS[row.main][0]
    native = row.median(row.native, row.main)
    parts = [f"{row.bench:8} {row.title:34} {row.native} {short(native) if native is not None else '-'} {unit}"]
    for name in row.samples:
        ratio, value = row.ratio(name), row.median(name, row.main)
        if name == row.native or value is None:
            continue
        cpu = row.ratio(name, "cpu_us")
        text = f"{name} {short(value)}"
        text += f" = {short(ratio.median)}x" if ratio else ""
        text += f" (CPU {short(cpu.median)}x)" if cpu else ""
        share = row.on_shm(name)
        text += f" [{share:.0%} on shm]" if share is not None and share < 0.995 else ""
        parts.append(text)
    parts += [f"{name}: {reason}" for name, reason in row.skipped.items()]
    return " | ".join(parts)
