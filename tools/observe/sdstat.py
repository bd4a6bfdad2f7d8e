# SPDX-License-Identifier: Apache-2.0
"""`sdstat`: counters of programs under sdrun, once or again and again; as text, JSON lines, or for Prometheus."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from sdlib import abi
from tools.observe import hosts, view
from tools.observe.samples import Interval
from tools.observe.sdss import printable
from tools.observe.view import Moment

_COLUMNS: Final = {
    "lib-calls": "calls_library", "krn-calls": "calls_kernel", "shm-tx": "bytes_shm_tx", "shm-rx": "bytes_shm_rx",
    "rdma-tx": "bytes_rdma_tx", "rdma-rx": "bytes_rdma_rx",
    "bells": "bells_tx", "parks": "parks", "spins": "spins", "won": "spins_won", "switches": "switches_tx",
    "patched": "sites_patched", "traps": "traps",
}  # fmt: skip


_BAR: Final = 30


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    """All options."""
    result = argparse.ArgumentParser(
        prog="sdstat",
        description="Counters of programs under sdrun: calls answered by the library and by the kernel, bytes through "
        "shared memory, doorbells, parks, spins and how many of them won, switches, patched and trapping call sites.",
        epilog="Without -i: since each process began. With it, what came in each interval.",
    )
    result.add_argument("-i", "--interval", type=_seconds, metavar="SECONDS", help="again and again, so far apart")
    result.add_argument("-c", "--count", type=int, default=0, metavar="N", help="with -i: end after N intervals")
    result.add_argument("-p", "--pid", type=int, action="append", default=[], help="this process; may be repeated")
    result.add_argument("--sizes", action="store_true", help="also how many messages there were of each size")
    result.add_argument("--hosts", action="store_true", help="also a line per other host: queue, credits, retries")
    result.add_argument("--connections", action="store_true", help="also a line per connection")
    form = result.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document per line")
    form.add_argument("--prometheus", action="store_true", help="print Prometheus' text format once")
    form.add_argument("--listen", metavar="[HOST:]PORT", help="serve that over HTTP (HOST: 127.0.0.1)")
    return result


def intervals(seconds: float | None, count: int) -> Iterator[Interval]:
    """The first without `before` only when there is no interval to wait for."""
    before: Moment | None = None
    if seconds is None:
        yield Interval(None, view.look())
        return
    before = view.look()
    done = 0
    while not count or done < count:
        time.sleep(seconds)
        now = view.look()
        yield Interval(before, now)
        before, done = now, done + 1


def as_json(interval: Interval, pids: list[int], *, connections: bool, others: bool = False) -> dict[str, Any]:
    """One document."""
    programs = [line for line in interval.programs() if not pids or line["pid"] in pids]
    document: dict[str, Any] = {
        "version": 1, "seconds": interval.seconds if interval.before else None,
        "supervisors": interval.supervisors(), "programs": programs,
    }  # fmt: skip
    if others:
        document["hosts"] = hosts.look()
    if connections:
        rows = [row for row in interval.connections() if not pids or any(user.pid in pids for user in row.users)]
        document["connections"] = [row.as_json() for row in rows]
    return document


def number(value: float) -> str:
    """Short, for a column."""
    for unit in ("", "k", "M", "G"):
        if abs(value) < 10_000:
            return f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}T"


def microseconds(seconds: float | None) -> str:
    """A mean duration."""
    return "-" if seconds is None else f"{seconds * 1e6:.0f} us"


def histogram(programs: list[dict[str, Any]]) -> Iterator[str]:
    """Messages of all programs by size: what one call has sent or received."""
    sums = {name: [sum(counts) for counts in zip(*(line["sizes"][name] for line in programs if line["sizes"]),
                                                 strict=False)] for name in ("sent", "received")}
    most = max([1, *sums["sent"], *sums["received"]])
    labels = [f"<= {number(size)}" for size in abi.SIZES] + [f"> {number(abi.SIZES[-1])}"]
    yield f"{'bytes':>10} {'sent':>10} {'received':>10}"
    for label, sent, received in zip(labels, *(sums[name] or [0] * len(labels) for name in ("sent", "received")),
                                     strict=False):
        if sent or received:
            bars = "#" * round(_BAR * sent / most) + "+" * round(_BAR * received / most)
            yield f"{label:>10} {number(sent):>10} {number(received):>10} {bars}".rstrip()


def text(document: dict[str, Any], *, sizes: bool = False) -> Iterator[str]:
    """Lines for people."""
    yield f"{'pid':>7} {'program':<16}" + "".join(f"{name:>10}" for name in _COLUMNS) + "  not accelerated because"
    for line in document["programs"]:
        name = printable(line["exe"].rpartition("/")[2])[:16]
        cells = "".join(f"{number(line['counters'][counter]):>10}" for counter in _COLUMNS.values())
        yield f"{line['pid']:>7} {name:<16}{cells}  {printable(line['reason'])}".rstrip()
        for reason, times in line["moved_back"].items():
            if times:
                yield f"{'':>7} {'':<16}  moved back to TCP: {times} {reason}"
    if sizes:
        yield from histogram(document["programs"])
    for line in document.get("connections", ()):
        ends = f"{line['local']['host']}:{line['local']['port']} > {line['peer']['host']}:{line['peer']['port']}"
        rates = ", ".join(f"{name} {number(value)}B/s" for name, value in line["rates"].items())
        yield f"{'':>7} {ends:<44} {line['path']:<4} {printable(line['reason'])} {rates}".rstrip()
    for line in document.get("hosts", ()):
        yield (f"host {printable(line['host'])}: {line['link']}, {line['connections']} connections, "
               f"queue {line['under_way']}/{line['depth']}, unread {number(line['unread'])}B, "
               f"credits {number(line['credits'])}B, retries {line['retries']}, RNR {line['rnr']}")
    for line in document["supervisors"]:
        waited = microseconds(line["notification_mean_s"])
        yield (f"supervisor {line['pid']}: {line['notifications']} notifications, {waited}; "
               f"monitor: {line['offers']} offers, {microseconds(line['offer_mean_s'])}; errors {line['errors']}")


def _watch(options: argparse.Namespace) -> int:
    for interval in intervals(options.interval, options.count):
        document = as_json(interval, options.pid, connections=options.connections, others=options.hosts)
        if options.json:
            print(json.dumps(document), flush=True)
        else:
            print("\n".join(text(document, sizes=options.sizes)), flush=True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    if options.prometheus or options.listen:
        from tools.observe import metrics

        if options.listen:
            return metrics.serve(options.listen)
        sys.stdout.write(metrics.text())
        return 0
    with suppress(KeyboardInterrupt, BrokenPipeError):
        return _watch(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
