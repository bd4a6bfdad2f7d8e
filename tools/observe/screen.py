# SPDX-License-Identifier: Apache-2.0
"""What sdtop shows, drawn from what was seen: no terminal, no clock and no keys in here.

From the top: what carries the connections and how much, over the last minutes; what somebody should look at; the
programs; and with all the lines that are left, the connections.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdlib import abi
from tools.observe.samples import Interval
from tools.observe.sdss import printable
from tools.observe.sdstat import microseconds, number
from tools.observe.view import Row

STYLES: Final = {"shm": "green", "rdma": "cyan", "tcp": "yellow"}
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_KEPT: Final = 240
_BAR: Final = 40
_REASONS_SHOWN: Final = 3
_SLOW_S: Final = 0.1
"""A mean wait for the supervisor or the monitor that somebody should know of."""


def _rate(row: Row) -> float:
    return row.rates.get("tx", 0.0) + row.rates.get("rx", 0.0)


def _program(row: Row) -> str:
    return row.users[0].name if row.users else ""


SORTS: Final[dict[str, Callable[[Row], tuple[float | str, float]]]] = {
    "rate": lambda row: (0, -_rate(row)),
    "queued": lambda row: (0, -row.send_queue - row.receive_queue),
    "program": lambda row: (_program(row), -_rate(row)),
    "reason": lambda row: (row.reason or "~", -_rate(row)),
}
SHOWN: Final = ("all", "shm", "rdma", "tcp")


@dataclass
class Wishes:
    """What its user has asked for by keys."""

    sort: str = "rate"
    shown: str = "all"
    paused: bool = False
    interval: float = 2.0

    def key(self, key: str) -> bool:
        """Take note of one. False: leave."""
        if key == "s":
            names = list(SORTS)
            self.sort = names[(names.index(self.sort) + 1) % len(names)]
        elif key == "t":
            self.shown = SHOWN[(SHOWN.index(self.shown) + 1) % len(SHOWN)]
        elif key in (" ", "p"):
            self.paused = not self.paused
        return key != "q"


@dataclass
class History:
    """The last looks, in units a second."""

    series: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, interval: Interval) -> None:
        """One more."""
        sums: Counter[str] = Counter()
        for line in interval.programs():
            sums.update(line["counters"])
        seconds = interval.seconds
        values = {
            "ring": sum(sums[f"bytes_{ring}_tx"] for ring in ("shm", "rdma")) / seconds,
            "tcp": sum(_rate(row) for row in interval.now.rows if row.path == "tcp"),
            "library": sums["calls_library"] / seconds, "kernel": sums["calls_kernel"] / seconds,
            "parks": sums["parks"] / seconds,
        }  # fmt: skip
        for name, value in values.items():
            self.series.setdefault(name, deque(maxlen=_KEPT)).append(value)

    def now(self, name: str) -> float:
        """The last value."""
        return self.series[name][-1] if self.series.get(name) else 0.0


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` of them; the highest is a full block, zero is the lowest."""
    last = list(values)[-width:] if width > 0 else []
    most = max(last, default=0.0) or 1.0
    return "".join(_BLOCKS[min(int(value / most * len(_BLOCKS)), len(_BLOCKS) - 1)] for value in last)


def bar(parts: Iterable[tuple[int, str]], width: int) -> Text:
    """Each part as wide as its share, at least one character if it is there at all."""
    parts = [(count, style) for count, style in parts if count]
    total = sum(count for count, _ in parts)
    text = Text()
    for count, style in parts:
        text.append("█" * max(round(width * count / total), 1), style=style)
    return text if total else Text("░" * width, style="dim")


def _title(interval: Interval, wishes: Wishes, width: int) -> Text:
    at = time.strftime("%H:%M:%S", time.localtime())
    programs = len(interval.programs())
    left = f" sdtop  {at}  {programs} process{'es' if programs != 1 else ''} under {len(interval.now.documents)} sdrun"
    left += "  PAUSED" if wishes.paused else f"  every {wishes.interval:g} s"
    right = "  q quit  space pause  s sort  t path "
    return Text((left + right.rjust(width - len(left)))[:width], style="reverse")


def _connections_line(rows: list[Row]) -> Text:
    paths = Counter(row.path for row in rows if row.path)
    line = bar([(paths[path], STYLES[path]) for path in STYLES], _BAR)
    for path, style in STYLES.items():
        if paths[path] or path != "rdma":
            line.append(f"  {path} {paths[path]}", style=style)
    return line


def _reasons_line(rows: list[Row]) -> Text:
    reasons = Counter(printable(row.reason) or "?" for row in rows if row.path == "tcp")
    most = reasons.most_common(_REASONS_SHOWN)
    text = ", ".join(f"{reason} {times}" for reason, times in most)
    rest = sum(reasons.values()) - sum(times for _, times in most)
    return Text(text + (f", others {rest}" if rest else ""), style="yellow")


def _overview(interval: Interval, history: History, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    rows = interval.now.rows
    table.add_row("connections", _connections_line(rows))
    if any(row.path == "tcp" for row in rows):
        table.add_row("on TCP since", _reasons_line(rows))
    room = max(width - 44, 8)
    calls = history.now("library") + history.now("kernel")
    share = f"  {100 * history.now('library') / calls:.1f} %" if calls else ""
    lines = (("rings", "ring", "B/s", ""), ("kernel's TCP", "tcp", "B/s", ""),
             ("calls in library", "library", "/s", share), ("in the kernel", "kernel", "/s", ""),
             ("sleeps", "parks", "/s", ""))
    for label, name, unit, after in lines:
        value = f"{number(history.now(name))}{unit}{after}"
        table.add_row(label, Text(f"{value:<22}").append(sparkline(history.series.get(name, ()), room), style="blue"))
    table.add_row("message sizes", _sizes_line(interval))
    return table


def _sizes_line(interval: Interval) -> Text:
    sums = [0] * (len(abi.SIZES) + 1)
    for line in interval.programs():
        for counts in line["sizes"].values():
            sums = [one + other for one, other in zip(sums, counts, strict=True)]
    return Text("1 ").append(sparkline(sums, len(sums)), style="magenta").append(f" >{number(abi.SIZES[-1])}B")


def attention(interval: Interval) -> list[str]:
    """What somebody should look at, in words; [] when all is well."""
    said = []
    for line in interval.supervisors():
        name = f"{printable(line['command'].rpartition('/')[2])} ({line['root_pid']})"
        if line["errors"]:
            said.append(f"{name}: {line['errors']} supervisor errors: see the system log")
        for what, key in (("its supervisor", "notification_mean_s"), ("the monitor", "offer_mean_s")):
            if (line[key] or 0.0) > _SLOW_S:
                said.append(f"{name}: waits {microseconds(line[key])} for {what}")
    moved: Counter[str] = Counter()
    hostile = 0
    for one in interval.programs():
        moved.update(one["moved_back"])
        hostile += one["counters"]["hostile_drops"]
        if one["counters"]["faults_inside"]:
            said.append(f"{printable(one['name'])} ({one['pid']}): a call ended in a mistake of the library (EFAULT)")
        if not one["injected"] and one["reason"]:
            said.append(f"{printable(one['name'])} ({one['pid']}): not injected: {printable(one['reason'])}")
    said += [f"{times} connections moved back to TCP: {reason}" for reason, times in moved.items() if times]
    return said + ([f"{hostile} connections ended, since their peer broke the ring"] if hostile else [])


_RATES: Final = {"lib/s": "calls_library", "kernel/s": "calls_kernel", "shm tx/s": "bytes_shm_tx",
                 "shm rx/s": "bytes_shm_rx", "bells/s": "bells_tx", "sleeps/s": "parks"}
_NARROW: Final = 100
_LEFT_OUT: Final = ("bells/s", "sleeps/s")
"""Columns that a narrow terminal has no room for."""
_WIDE: Final = 120
"""Room for what connections count besides bytes."""


def _programs(interval: Interval, room: int, width: int) -> Table:
    table = Table(box=None, expand=True, header_style="bold underline", padding=(0, 1))
    table.add_column("pid", justify="right", no_wrap=True, min_width=7)
    table.add_column("program", no_wrap=True, ratio=2, min_width=9)
    rates = {name: key for name, key in _RATES.items() if width >= _NARROW or name not in _LEFT_OUT}
    for heading in ("msgs/s", *rates, "won"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why not", style="yellow", no_wrap=True, ratio=1)
    lines = interval.programs()
    lines.sort(key=lambda line: -line["counters"]["calls_library"] - line["counters"]["calls_kernel"])
    for line in lines[:room]:
        count = line["counters"]
        messages = sum(map(sum, line["sizes"].values()))
        cells = [number(value / interval.seconds) for value in (messages, *(count[key] for key in rates.values()))]
        won = f"{100 * count['spins_won'] // count['spins']} %" if count["spins"] else "-"
        table.add_row(str(line["pid"]), Text(printable(line["name"])), *cells, won, Text(printable(line["reason"])))
    if len(lines) > room:
        table.add_row("", Text(f"and {len(lines) - room} more", style="dim"))
    return table


def _ends(row: Row) -> tuple[Text, Text]:
    return tuple(Text(f"{printable(found[0].name) if found else '-'} ", style="bold").append(
        f"{address.host}:{address.port}", style="not bold")
        for found, address in ((row.users, row.local), (row.peer_users, row.peer)))  # type: ignore[return-value]


_CONNECTION_RATES: Final = {"tx/s": ("tx",), "rx/s": ("rx",), "msgs/s": ("messages_tx", "messages_rx"),
                            "bells/s": ("bells_tx",), "sleeps/s": ("parks",)}


def _connections(rows: list[Row], wishes: Wishes, room: int, width: int) -> Table:
    table = Table(box=None, expand=True, header_style="bold underline", padding=(0, 1))
    table.add_column("path", no_wrap=True)
    for heading in ("local", "peer"):
        table.add_column(heading, no_wrap=True, ratio=3)
    shown = {name: keys for name, keys in _CONNECTION_RATES.items() if width >= _WIDE or name in ("tx/s", "rx/s")}
    for heading in ("queued", *shown):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("reason" if wishes.shown == "all" else f"reason ({wishes.shown} only)", no_wrap=True, ratio=2)
    chosen = [row for row in rows if row.path and wishes.shown in ("all", row.path)]
    chosen.sort(key=SORTS[wishes.sort])
    for row in chosen[:room]:
        rates = [number(sum(row.rates[key] for key in keys)) if row.rates.keys() >= set(keys) else "-"
                 for keys in shown.values()]
        table.add_row(Text(row.path, style=STYLES.get(row.path, "")), *_ends(row),
                      number(row.send_queue + row.receive_queue), *rates, Text(printable(row.reason)))
    if len(chosen) > room:
        table.add_row("", Text(f"and {len(chosen) - room} more; sorted by {wishes.sort}", style="dim"))
    return table


def screen(interval: Interval, history: History, wishes: Wishes, rows: list[Row], *,
           width: int, height: int) -> RenderableType:
    """Everything, for a terminal of this size. `rows`: the connections that may be listed."""
    parts: list[RenderableType] = [_title(interval, wishes, width)]
    if not interval.now.documents:
        return Group(*parts, Text("\n  No program runs under sdrun. Start one:  sdrun -- CMD"))
    parts += [_overview(interval, history, width)]
    warnings = attention(interval)[:4]
    parts += [Text(f" ! {line}", style="bold red", no_wrap=True) for line in warnings] or [Text("")]
    left = max(height - 10 - max(len(warnings), 1) - 4, 4)
    programs = min(len(interval.programs()), max(left // 3, 2))
    listed = _connections(rows, wishes, max(left - programs - 1, 2), width)
    parts += [_programs(interval, programs, width), Text(""), listed]
    return Group(*parts)
