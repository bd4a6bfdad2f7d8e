# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, from rows of results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.purposes import PURPOSES
from tools.sdbench import targets, where
from tools.sdbench.machine import ROOT
from tools.sdbench.results import METRICS, Results, Row, short

INSTRUCTIONS = ROOT / "tools" / "bench" / "baseline.json"

TITLES = {
    "rtt": "Round trips", "sessions": "Round trips of two sessions on one core",
    "stream": "Streams, read message by message", "batch": "Streams of 8 bytes, read in batches",
    "pairs": "Several pairs at the same time", "many": "Many connections", "idle": "Open connections that are silent",
    "setup": "Connections a second", "fork": "Children a second", "calls": "A call that is not a socket's",
    "startup": "Start-up", "switch": "Each technique switched off alone",
    "tokens": "A token of its owner against a lock, in programs with threads",
    "barriers": "One membarrier for all connections of a wait against one for each", "command": "Own command",
    "redis": "redis", "nginx": "nginx", "proxy": "Reverse proxy", "haproxy": "HAProxy", "memcached": "memcached",
    "postgresql": "PostgreSQL", "go": "Go", "grpc": "gRPC", "node": "node",
}  # fmt: skip
MICRO = ("rtt", "sessions", "stream", "batch", "pairs", "many", "idle", "setup", "fork", "calls", "startup",
         "switch", "tokens", "barriers")


@dataclass
class Table:
    """Text in rows; `good` says of cells whether they are better or worse than native."""

    title: str
    headings: list[str]
    rows: list[list[str]] = field(default_factory=list)
    good: dict[tuple[int, int], bool] = field(default_factory=dict)
    note: str = ""


def cell(row: Row, variant: str, brief: bool) -> str:
    """Median with its spread, then the ratio to native and that of CPU time; `brief` leaves some out."""
    value, spread = row.median(variant, row.main), row.spread(variant, row.main)
    if value is None or spread is None:
        return row.skipped.get(variant, "-")
    text = short(value) if brief else f"{short(value)} ({short(spread[0])}-{short(spread[1])})"
    if variant == row.native:
        cpu = row.median(variant, "cpu_us")
        return text + (f"; {short(cpu)} µs CPU" if cpu is not None and not brief else "")
    ratio, cpu_ratio = row.ratio(variant), row.ratio(variant, "cpu_us")
    text += f"; **{short(ratio.median)}x** ({short(ratio.low)}-{short(ratio.high)})" if ratio else ""
    text += f"; CPU {short(cpu_ratio.median)}x" if cpu_ratio else ""
    share = row.on_shm(variant)
    return text + (f"; {share:.0%} on shm" if share is not None and 0 < share < 0.995 else "")


def percentiles(row: Row, variant: str) -> str:
    """p99 and p99.9, where there are any."""
    values = [row.median(variant, metric) for metric in ("p99_us", "p999_us")]
    return " / ".join(short(value) for value in values if value is not None)


def of_bench(name: str, rows: list[Row], brief: bool = False) -> Table:
    """All cases of one benchmark: a column for each variant."""
    variants = list(dict.fromkeys(variant for row in rows for variant in [*row.samples, *row.skipped]))
    variants.sort(key=lambda variant: not variant.startswith("tcp"))
    tails = any("p99_us" in sample for row in rows for sample in row.samples.get("sdrun", []))
    more = ["p99 / p99.9: native, sdrun, µs"] if tails else []
    table = Table(TITLES.get(name, name), ["case", "unit", *variants, *more])
    for number, row in enumerate(rows):
        unit = METRICS[row.main][0] if row.main != "p50_us" else "p50, µs"
        line = [row.title, unit, *(cell(row, variant, brief) for variant in variants)]
        if tails:
            line.append(f"{percentiles(row, row.native)}, {percentiles(row, 'sdrun')}")
        table.rows.append(line)
        for column, variant in enumerate(variants, 2):
            ratio = row.ratio(variant)
            if ratio and variant != row.native:
                table.good[number, column] = ratio.median >= 1
    return table


def of_targets(rows: Iterable[Row]) -> Table:
    """What was to be reached, with the floors of the same run."""
    table = Table("Targets", ["what", "case", "target", "reached", "floor"],
                  note="Marked: not reached. Of the applications' cases, where TCP or unix sockets are faster: how "
                       "much of their speed is reached.")
    for number, line in enumerate(targets.lines(rows)):
        table.rows.append(line.cells())
        table.good[number, 3] = line.reached
    return table


def not_better(rows: Iterable[Row]) -> Table:
    """Where sdrun loses."""
    table = Table("Where sdrun is not better", ["what", "case", "native", "sdrun", "ratio (least to greatest)", "CPU"])
    found = [(ratio.median, row, ratio) for row in rows if (ratio := row.ratio("sdrun")) and ratio.median < 1]
    for _, row, ratio in sorted(found, key=lambda entry: entry[0]):
        native, own = row.median(row.native, row.main) or 0, row.median("sdrun", row.main) or 0
        unit = METRICS[row.main][0]
        cpu = row.ratio("sdrun", "cpu_us")
        table.rows.append([TITLES.get(row.bench, row.bench), row.title, f"{short(native)} {unit}",
                           f"{short(own)} {unit}", str(ratio), f"{short(cpu.median)}x" if cpu else ""])
    return table


# ---------------------------------------------------------- where it goes

def instructions() -> Table:
    """Instructions of the fast paths by purpose, from the baseline of `make baseline`."""
    calls = json.loads(INSTRUCTIONS.read_text())["calls"]
    names = [name for name in ("send8", "recv8", "send8, with threads", "recv8, with threads") if name in calls]
    table = Table("Instructions from the call site and back, 8 bytes", ["", *names])
    for purpose in PURPOSES:
        counts = [calls[name]["purposes"].get(purpose, 0) for name in names]
        if any(counts):
            table.rows.append([purpose, *map(str, counts)])
    table.rows.append(["all", *(str(calls[name]["total"]) for name in names)])
    table.rows.append(["system calls", *(str(calls[name]["system_calls"]) for name in names)])
    return table


def _find(rows: list[Row], bench: str, size: str, placement: str) -> Row | None:
    for row in rows:
        if row.bench == bench and row.case == {"size": size, "placement": placement}:
            return row
    return None


def costs(rows: list[Row]) -> Table:
    """What a message, a KiB and a hand-over cost, by transport and placement."""
    table = Table("Where the time goes", ["transport", "placement", "per message, ns CPU", "per KiB, ns CPU",
                                          "hand-over, µs (half a round trip)"],
                  note="Per message: a stream of 8 bytes, both ends together; per KiB: the difference to one of "
                       "64 KiB. The hand-over between two cores has the wake-up in it, if there is one.")
    for placement in dict.fromkeys(row.case.get("placement", "") for row in rows if row.bench == "rtt"):
        small, large = (_find(rows, "stream", size, placement) for size in ("8 B", "64 KiB"))
        trip = _find(rows, "rtt", "8 B", placement)
        if not small or not large or not trip:
            continue
        for variant in small.samples:
            one, many = small.median(variant, "cpu_us"), large.median(variant, "cpu_us")
            half = trip.median(variant, "p50_us")
            if one is None or many is None or half is None:
                continue
            table.rows.append([variant, placement, short(one * 1000), short((many - one) * 1000 / 64), short(half / 2)])
    return table


def parts(rows: Iterable[Row]) -> Iterator[Table]:
    """What the CPU time of messages is for."""
    measured = [row for row in rows if row.bench == where.BENCH]
    for placement in dict.fromkeys(row.case["placement"] for row in measured):
        headings, lines = where.lines(measured, placement)
        yield Table(f"What the CPU time is for, {placement}, ns", headings, lines,
                    note="Of both ends, by samples (tools/sdbench/where.py): a message of 8 bytes in a stream; a KiB "
                         "more in one; half a round trip of 8 bytes, in which spinning is `wake-up, switch`.")


def events(rows: Iterable[Row]) -> Table:
    """What the library counted, per call on a connection of ours."""
    counters = ("calls_kernel", "bells_tx", "parks", "spins", "spins_won", "traps")
    table = Table("What 1000 calls on sdrun's connections came to",
                  ["what", "case", "without a system call", *counters[1:]],
                  note="Over the whole run with its start and warm-up.")
    for row in rows:
        own = row.counters.get("sdrun", {})
        calls = own.get("calls_library", 0) + own.get("calls_kernel", 0)
        if calls < 1000 or row.bench == "switch":
            continue
        table.rows.append([TITLES.get(row.bench, row.bench), row.title, f"{own.get('calls_library', 0) / calls:.1%}",
                           *(short(own.get(name, 0) / calls * 1000) for name in counters[1:])])
    return table


def every(results: list[Results], brief: bool = False) -> list[Table]:
    """All tables, in the order of a page."""
    rows = [row for result in results for row in result.rows]
    own_tables = {*MICRO, where.BENCH}
    benches = [*MICRO, *dict.fromkeys(row.bench for row in rows if row.bench not in own_tables)]
    tables = [of_targets(rows), not_better(rows)]
    tables += [of_bench(name, own, brief) for name in benches if (own := [row for row in rows if row.bench == name])]
    tables += [costs(rows), *parts(rows), instructions(), events(rows)]
    return [table for table in tables if table.rows]


def markdown(table: Table) -> str:
    """For docs/."""
    lines = [f"### {table.title}", ""]
    lines += [table.note, ""] if table.note else []
    lines.append("| " + " | ".join(table.headings) + " |")
    lines.append("|---" * len(table.headings) + "|")
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def machine_line(result: Results) -> str:
    """One sentence about where and when."""
    own = result.machine
    return (f"`sdbench {result.kind}`, {own.get('date', '')[:10]}, commit {own.get('commit', '?')}: "
            f"{own.get('cpus')} CPUs ({own.get('cpu')}, {own.get('machine')}), Linux {own.get('kernel')}, "
            f"TCP congestion control {own.get('congestion_control')}, "
            f"load before the start {short(own.get('load_before', 0))}, "
            f"{'quick, ' if result.options.get('quick') else ''}{result.options.get('rounds', '?')} rounds.")


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what is between two marks of a file. ValueError if they are not there."""
    old = path.read_text()
    head, found, rest = old.partition(begin)
    _, also, tail = rest.partition(end)
    if not found or not also:
        raise ValueError(f"{path} has no marks {begin} and {end}")
    path.write_text(f"{head}{begin}\n\n{text}\n{end}{tail}")
