# SPDX-License-Identifier: Apache-2.0
"""The table of targets: what was to be reached, what is, and the floor that was measured beside it in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tools.sdbench import floor
from tools.sdbench.floor import FREE
from tools.sdbench.results import Row, short

APPS = ("redis", "nginx", "proxy", "haproxy", "memcached", "postgresql", "go", "grpc", "node")


@dataclass(frozen=True)
class Line:
    """One target in one case. `least`: whether the figure has to be at least the limit; else it is at most that."""

    what: str
    case: str
    figure: float
    limit: float
    least: bool
    floor: str = ""
    unit: str = "x"

    @property
    def reached(self) -> bool:
        """To the digits that are shown."""
        value = float(short(self.figure).replace(",", ""))
        return value >= self.limit if self.least else value <= self.limit

    def cells(self) -> list[str]:
        """What, case, target, reached, floor."""
        value = f"{short(self.figure)} {self.unit}"
        sign = "at least" if self.least else "at most"
        return [self.what, self.case, f"{sign} {self.limit:g} {self.unit}", value if self.reached else f"**{value}**",
                self.floor]


def _times(row: Row, above: str, below: str, metric: str | None = None) -> float | None:
    one, other = row.median(above, metric or row.main), row.median(below, metric or row.main)
    return one / other if one and other else None


def _trips(row: Row) -> Iterable[Line]:
    if row.case["size"] != "8 B":
        return
    if row.case["placement"] == "two cores" and (times := _times(row, "sdrun", "ring")):
        yield Line("round trip against the bare ring's", row.title, times, 1.25, False)
    if row.case["placement"] == "one core" and (times := _times(row, "sdrun", row.native)):
        floor = _times(row, "ring, kernel", row.native)
        yield Line("round trip against TCP's", row.title, times, 0.35, False,
                   f"the bare ring behind an empty filter and dispatch {short(floor)} x" if floor else "")


def _streams(row: Row) -> Iterable[Line]:
    if row.case["placement"] == "unpinned":
        return
    if row.case["size"] == "8 B" and (times := _times(row, "sdrun", row.native)):
        ring = _times(row, "ring", row.native)
        yield Line("messages against TCP's", row.title, times, 20, True,
                   f"the bare ring {short(ring)} x" if ring else "")
    elif row.case["size"] not in ("8 B", "64 B") and (times := _times(row, "sdrun", "ring")):
        copy = _times(row, "one copy", "ring")
        yield Line("stream against the bare ring's", row.title, times, 1 if row.case["size"] == "1 MiB" else 0.85, True,
                   f"one copy by process_vm_readv {short(copy)} x" if copy else "")


def _setup(row: Row) -> Iterable[Line]:
    own, floor = row.ratio("sdrun"), row.ratio("kernel")
    if own:
        yield Line("connections a second", row.title, own.median, 0.97, True,
                   f"an empty filter and dispatch {short(floor.median)} x" if floor else "")


FLOORS = (("filter", "an empty filter"), ("kernel", "an empty filter and dispatch"))


def _calls(row: Row) -> Iterable[Line]:
    native, own = row.median(row.native, "ns"), row.median("sdrun", "ns")
    if not native or not own:
        return
    floors = [f"{words} +{short(value - native)}" for name, words in FLOORS if (value := row.median(name, "ns"))]
    yield Line("a call that is not ours takes longer by", row.title, max(0.0, own - native), 15, False,
               ", ".join(floors), "ns")


FACTORS = {("redis", "GET, 1 connection, pipeline 1", "two cores"): 8.0,
           ("redis", "GET, 50 connections, pipeline 1", "two cores"): 3.0,
           ("nginx", "612 bytes, 1 connection", "two cores"): 5.5}


def _free(row: Row, rest: float) -> str:
    """What the case would come to with sockets that cost nothing, and with the bare ring's hand-over beside them.

    `rest`: what a factor against native stands for in this line.
    """
    ratio, whole = row.ratio(FREE), row.median(FREE, "cpu_us")
    between = row.median(FREE, "between_us")
    if not ratio or not whole or between is None:
        return ""
    parts = [row.median(FREE, name) or 0 for name in ("server_us", "client_us")]
    text = f"free sockets {short(ratio.median / rest)} x"
    if "1 connection" in row.title:
        text += f", and the bare ring's hand-over {short(ratio.median / rest * whole / (whole + between))} x"
    return f"{text} (server {short(parts[0])} µs, client {short(parts[1])} µs)"


def _user(row: Row, rest: float) -> str:
    """What the case would come to if all of the kernel took no time, natively: nobody's sockets can be faster.

    `rest`: as of _free.
    """
    rate = row.median(row.native, "whole_rate") or row.median(row.native, row.main)
    ends = [row.median(row.native, name) for name in ("server_user_us", "client_user_us")]
    if not rate or not ends[0] or not ends[1]:
        return ""
    server, client = ends[0], ends[1]
    place = {"two cores": (0, 1), "one core": (0, 0)}.get(row.case["placement"])
    best = floor.rate(server / 1e6, client / 1e6, 1 if "1 connection" in row.title else 2, place)
    parts = f"server {short(server)} µs, client {short(client)} µs"
    return f"a kernel that takes no time {short(best / rate / rest)} x ({parts})"


def _best(row: Row, rest: float) -> str:
    return _free(row, rest) or _user(row, rest)


def _apps(row: Row) -> Iterable[Line]:
    own, unix = row.ratio("sdrun"), row.ratio("unix")
    if not own:
        return
    limit = FACTORS.get((row.bench, row.case["what"], row.case["placement"]))
    if limit:
        times = _times(row, row.native, "sdrun", "p50_us") if row.bench == "nginx" else own.median
        what = "p50 below TCP's" if row.bench == "nginx" else "requests against TCP's"
        yield Line(f"{row.bench}: {what}", row.title, times or own.median, limit, True, _best(row, 1))
    if own.median < 1:
        yield Line(f"{row.bench}: faster than TCP", row.title, own.median, 1, True, _best(row, 1))
    if unix and own.median < unix.median:
        yield Line(f"{row.bench}: faster than unix sockets", row.title, own.median / unix.median, 1, True,
                   _best(row, unix.median))


READERS: dict[str, Callable[[Row], Iterable[Line]]] = {
    "rtt": _trips, "stream": _streams, "setup": _setup, "calls": _calls, **dict.fromkeys(APPS, _apps),
}


def lines(rows: Iterable[Row]) -> list[Line]:
    """All that the rows can say of the targets; of applications, where unix sockets or TCP are faster, only that."""
    return [line for row in rows if row.bench in READERS for line in READERS[row.bench](row)]
