# SPDX-License-Identifier: Apache-2.0
"""`sdtop`: programs under sdrun and their connections, until q or Ctrl-C (tools/observe/screen.py draws)."""

from __future__ import annotations

import argparse
import os
import sys
import termios
import time
import tty
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.live import Live

from sdlib.wire.ready import readable
from tools.observe import view
from tools.observe.filters import FilterError, Test, compile_filter
from tools.observe.samples import Interval
from tools.observe.screen import History, Wishes, screen

_SHORTEST_S = 0.1
_PAUSED_S = 3600.0


def parser() -> argparse.ArgumentParser:
    """All options."""
    result = argparse.ArgumentParser(
        prog="sdtop",
        description="Programs under sdrun and their connections, live: what carries them, how much, and what "
        "somebody should look at.",
        epilog="Keys: q quits, space pauses, s sorts connections by rate, queued bytes, program or reason, t shows all "
        "of them or those of one path. Waits and moves back that call for attention are in red. FILTER is "
        "that of sdss.",
    )
    result.add_argument("-i", "--interval", type=float, default=2.0, metavar="SECONDS", help="from look to look (2)")
    result.add_argument("-n", "--count", type=int, default=0, metavar="N", help="end after N looks")
    result.add_argument("filter", nargs="*", metavar="FILTER", help="which connections to list, as for sdss")
    return result


class Keys:
    """Single keys of the terminal, if standard input is one."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._before: list[object] = []

    def __enter__(self) -> Keys:
        if self._fd >= 0:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._fd >= 0:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> str:
        """A key that comes within so long, or ""."""
        if self._fd < 0:
            time.sleep(seconds)
            return ""
        return os.read(self._fd, 1).decode(errors="replace") if readable(self._fd, seconds) else ""


class Top:
    """The loop: look, draw, wait for keys."""

    def __init__(self, options: argparse.Namespace, test: Test, console: Console) -> None:
        self._wishes = Wishes(interval=max(options.interval, _SHORTEST_S))
        self._left = options.count
        self._test, self._console = test, console
        self._history = History()
        self._before = view.look()
        self._shown: Interval | None = None

    def _look(self) -> None:
        now = view.look()
        self._shown = Interval(self._before, now)
        self._shown.connections()  # gives the rows their rates
        self._history.add(self._shown)
        self._before = now

    def _draw(self, live: Live) -> None:
        if self._shown is not None:
            rows = [row for row in self._shown.now.rows if self._test(row)]
            size = self._console.size
            live.update(screen(self._shown, self._history, self._wishes, rows, width=size.width, height=size.height),
                        refresh=True)

    def _until(self, deadline: float, keys: Keys, live: Live) -> bool:
        """Obey keys until then, or as long as it is paused. False: leave."""
        while self._wishes.paused or time.monotonic() < deadline:
            left = max(deadline - time.monotonic(), 0.0)
            key = keys.wait(_PAUSED_S if self._wishes.paused else left)
            if key:
                if not self._wishes.key(key):
                    return False
                self._draw(live)
        return True

    def run(self, keys: Keys, live: Live) -> None:
        """Until its user has seen enough."""
        while self._until(time.monotonic() + self._wishes.interval, keys, live):
            self._look()
            self._draw(live)
            self._left -= 1
            if self._left == 0:
                return


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit status: 0; 2 for a wrong filter."""
    options = parser().parse_args(argv)
    try:
        test = compile_filter(options.filter)
    except FilterError as error:
        print(f"sdtop: {error}", file=sys.stderr)
        return 2
    console = Console()
    with suppress(KeyboardInterrupt), Keys() as keys, \
            Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        Top(options, test, console).run(keys, live)
    return 0


if __name__ == "__main__":
    sys.exit(main())
