# SPDX-License-Identifier: Apache-2.0
"""`sdtop`: programs under sdrun and their busiest connections, over the whole screen until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tools.observe.samples import Interval
from tools.observe.sdss import printable
from tools.observe.sdstat import intervals, microseconds, number
from tools.observe.view import Row

_STYLE = {"shm": "green", "rdma": "cyan", "tcp": "yellow"}


def parser() -> argparse.ArgumentParser:
    """All options."""
    result = argparse.ArgumentParser(
        prog="sdtop", description="Programs under sdrun and their busiest connections, live, until Ctrl-C.")
    result.add_argument("-i", "--interval", type=float, default=2.0, metavar="SECONDS", help="from look to look (2)")
    result.add_argument("-n", "--count", type=int, default=0, metavar="N", help="end after N looks")
    return result


def _programs(interval: Interval) -> Table:
    table = Table(title="programs, per second", title_justify="left", expand=True)
    table.add_column("pid", justify="right")
    table.add_column("program")
    for heading in ("lib calls", "kernel calls", "shm send B", "shm recv B", "bells", "parks", "spins won"):
        table.add_column(heading, justify="right")
    table.add_column("not accelerated because")
    lines = interval.programs()
    lines.sort(key=lambda line: -line["counters"]["calls_library"] - line["counters"]["calls_kernel"])
    for line in lines:
        count = line["counters"]
        cells = [number(count[name] / interval.seconds) for name in
                 ("calls_library", "calls_kernel", "bytes_shm_tx", "bytes_shm_rx", "bells_tx", "parks")]
        won = f"{100 * count['spins_won'] // count['spins']} %" if count["spins"] else "-"
        table.add_row(str(line["pid"]), Text(printable(line["exe"].rpartition("/")[2])), *cells, won,
                      Text(printable(line["reason"])))
    return table


def _weight(row: Row) -> float:
    return -sum(row.rates.values())


def _connections(interval: Interval, height: int) -> Table:
    table = Table(title="busiest connections", title_justify="left", expand=True)
    for heading in ("path", "local", "peer", "program", "peer's program"):
        table.add_column(heading)
    for heading in ("queued", "shm send B/s", "shm recv B/s"):
        table.add_column(heading, justify="right")
    table.add_column("reason")
    for row in sorted(interval.connections(), key=_weight)[:height]:
        users = [printable(found[0].name) if found else "-" for found in (row.users, row.peer_users)]
        rates = [number(row.rates.get(name, 0.0)) for name in ("shm_tx", "shm_rx")]
        table.add_row(Text(row.path, style=_STYLE.get(row.path, "")), f"{row.local.host}:{row.local.port}",
                      f"{row.peer.host}:{row.peer.port}", *users, number(row.send_queue + row.receive_queue), *rates,
                      Text(printable(row.reason)))
    return table


def screen(interval: Interval, height: int) -> RenderableType:
    """Everything, for a terminal of so many lines."""
    supervisors = [
        f"{line['root_pid']} {printable(line['command'].rpartition('/')[2])}: notifications "
        f"{microseconds(line['notification_mean_s'])}, monitor {microseconds(line['offer_mean_s'])}, "
        f"errors {line['errors']}"
        for line in interval.supervisors()
    ]
    head = Text("\n".join(supervisors) or "no program runs under sdrun")
    busy = _programs(interval)
    return Group(Panel(head, title="sdtop"), busy, _connections(interval, max(height - busy.row_count - 14, 3)))


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    console = Console()
    with suppress(KeyboardInterrupt), Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        for interval in intervals(max(options.interval, 0.1), options.count):
            live.update(screen(interval, console.size.height), refresh=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
