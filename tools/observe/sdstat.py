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
from tools.observe.sdss import printable, quiet_pipe
from tools.observe.view import Moment

_COLUMNS: Final = {
    "msgs-tx": "sent", "msgs-rx": "received",
    "lib-calls": "calls_library", "krn-calls": "calls_kernel", "shm-tx": "bytes_shm_tx", "shm-rx": "bytes_shm_rx",
    "rdma-tx": "bytes_rdma_tx", "rdma-rx": "bytes_rdma_rx", "tcp": "tcp",
    "bells": "bells_tx", "parks": "parks", "spins": "spins", "won": "spins_won", "switches": "switches_tx",
    "patched": "sites_patched", "trapping": "sites_trapping", "traps": "traps",
}  # fmt: skip
_IF_ANY: Final = {"rdma-tx", "rdma-rx"}
"""Columns that are left out where they are all zero."""

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
        description="Counters of programs under sdrun: messages, calls answered by the library and by the kernel, "
        "bytes through shared memory and TCP, doorbells, parks, spins and how many of them won, switches, moves back "
        "to TCP by reason, patched and trapping call sites; and how long programs waited for supervisor and monitor.",
        epilog="Without -i: since each process began. With it, what came in each interval; `trapping` is what is so "
        "now, and the longest waits are since the start.",
    )
    result.add_argument("-i", "--interval", type=_seconds, metavar="SECONDS", help="again and again, so far apart")
    result.add_argument("-c", "--count", type=int, default=0, metavar="N", help="with -i: end after N intervals")
    result.add_argument("-p", "--pid", type=int, action="append", default=[], help="this process; may be repeated")
    result.add_argument("--sizes", action="store_true", help="also how many messages there were of each size")
    result.add_argument("--hosts", action="store_true", help="also a line per other host: queue, credits, retries")
    result.add_argument("--connections", action="store_true",
                        help="also a line per connection: messages, bytes, doorbells, parks, spins and those it won")
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


def _values(line: dict[str, Any]) -> dict[str, int]:
    """A program's columns: its counters, its messages by direction, and all bytes that the kernel carried."""
    counters = line["counters"]
    return {**counters, "tcp": counters["bytes_tcp_tx"] + counters["bytes_tcp_rx"],
            **{name: sum(line["sizes"].get(name, ())) for name in ("sent", "received")}}


def _programs(lines: list[dict[str, Any]]) -> Iterator[str]:
    values = [_values(line) for line in lines]
    columns = {name: key for name, key in _COLUMNS.items()
               if name not in _IF_ANY or any(one[key] for one in values)}  # fmt: skip
    yield f"{'pid':>7} {'program':<16}" + "".join(f"{name:>10}" for name in columns) + "  not accelerated because"
    for line, one in zip(lines, values, strict=True):
        name = printable(line["name"])[:16]
        cells = "".join(f"{number(one[key]):>10}" for key in columns.values())
        yield f"{line['pid']:>7} {name:<16}{cells}  {printable(line['reason'])}".rstrip()
        for reason, times in line["moved_back"].items():
            if times:
                yield f"{'':>7} {'':<16}  moved back to TCP: {times} {reason}"


_ENDS: Final = 48
_CONNECTION_COLUMNS: Final = {
    "msgs-tx": "messages_tx", "msgs-rx": "messages_rx", "shm-tx": "bytes_shm_tx", "shm-rx": "bytes_shm_rx",
    "tcp": "bytes_tcp", "bells": "bells_tx", "parks": "parks", "spins": "spins", "won": "spins_won",
}  # fmt: skip


def _connections(lines: list[dict[str, Any]]) -> Iterator[str]:
    names = (*_CONNECTION_COLUMNS, "queued", "tx/s", "rx/s")
    yield f"{'':>7} {'connection':<{_ENDS}} {'path':<4} " + " ".join(f"{name:>8}" for name in names) + "  reason"
    for line in lines:
        ends = f"{line['local']['host']}:{line['local']['port']} > {line['peer']['host']}:{line['peer']['port']}"
        known = line["bytes"] | line["counts"]
        counts = (*(known[name] for name in _CONNECTION_COLUMNS.values()),
                  line["receive_queue"] + line["send_queue"], *(line["rates"].get(name) for name in ("tx", "rx")))
        cells = " ".join(f"{'-' if one is None else number(one):>8}" for one in counts)
        yield f"{'':>7} {ends:<{_ENDS}} {line['path']:<4} {cells}  {printable(line['reason'])}".rstrip()


def waited(times: int, mean: float | None, longest: float | None) -> str:
    """So often, so long on average, and at most since the supervisor began."""
    return f"{times}, {microseconds(mean)} each, longest {microseconds(longest)}"


def text(document: dict[str, Any], *, sizes: bool = False) -> Iterator[str]:
    """Lines for people."""
    yield from _programs(document["programs"])
    if sizes:
        yield from histogram(document["programs"])
    if document.get("connections"):
        yield from _connections(document["connections"])
    for line in document.get("hosts", ()):
        yield (f"host {printable(line['host'])}: {line['link']}, {line['connections']} connections, "
               f"queue {line['under_way']}/{line['depth']}, unread {number(line['unread'])}B, "
               f"credits {number(line['credits'])}B, breaks {line['breaks']}, held {line['held_s']:.0f} s, "
               f"again {line['again']}, retries {line['retries']}, "
               f"RNR {line['rnr']}" + (f"; waits for RDMA: {printable(line['waits'])}" if line["waits"] else ""))
    for line in document["supervisors"]:
        calls = waited(line["notifications"], line["notification_mean_s"], line["notification_longest_s"])
        offers = waited(line["offers"], line["offer_mean_s"], line["offer_longest_s"])
        yield (f"supervisor {line['pid']} of {printable(line['command'].rpartition('/')[2])}: notifications {calls}; "
               f"offers to the monitor {offers}; errors {line['errors']}")


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
    with suppress(KeyboardInterrupt), quiet_pipe():
        return _watch(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
