# SPDX-License-Identifier: Apache-2.0
"""sdtop's screen: drawn from what was seen, into terminals of any size; and its keys, in a terminal of its own."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import struct
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sdlib import abi
from tests.harness import SDRUN, Runner
from tools.observe.samples import Interval
from tools.observe.screen import SORTS, History, Wishes, attention, bar, screen, sparkline
from tools.observe.sockets import Address, User
from tools.observe.view import Moment, Row


def document(second: int, **changes: Any) -> dict[str, Any]:
    """What the supervisor of one program says after so many seconds."""
    counters = dict.fromkeys(abi.COUNTERS, 0) | {
        "calls_library": 90_000 * second, "calls_kernel": 10_000 * second, "bytes_shm_tx": 5_000_000 * second,
        "parks": 40 * second, "spins": 100 * second, "spins_won": 93 * second, "sites_trapping": 3,
    }  # fmt: skip
    meter = {"times": 10 * second, "seconds": 0.001 * second, "longest_s": 0.004}
    sizes = {"sent": [0] * 6 + [50_000 * second] + [0] * (len(abi.SIZES) - 6), "received": [0] * (len(abi.SIZES) + 1)}
    process = {"pid": 4711, "exe": "/usr/sbin/nginx", "injected": True, "reason": "", "accelerate": "",
               "counters": counters, "moved_back": {}, "sizes": sizes} | changes
    return {
        "version": 1, "here": False, "uid": 0, "monitor": {"offers": meter}, "counters": counters, "tcp_reasons": {},
        "moved_back": {}, "processes": [process], "connections": [], "connections_left_out": 0,
        "supervisor": {"pid": 1, "root_pid": 4711, "command": "/usr/sbin/nginx", "errors": changes.get("errors", 0),
                       "notifications": meter},
    }  # fmt: skip


def row(inode: int, path: str, reason: str, rate: float, program: str = "nginx") -> Row:
    return Row(inode, "ESTAB", Address("127.0.0.1", 8080), Address("127.0.0.1", 40_000 + inode), 5, 0, 4, path, reason,
               [User(program, 4711, 3)], [User("wrk", 12, 4)], rates={"tx": rate, "rx": 2 * rate})


def seen(**changes: Any) -> Interval:
    rows = [row(number, "shm", "", 1000.0 * number) for number in range(1, 8)]
    rows += [row(10, "tcp", "peer-not-under-sdrun", 77_000.0, "curl"), row(11, "tcp", "policy", 1.0)]
    return Interval(Moment([document(1)], [], 10.0), Moment([document(3, **changes)], rows, 12.0))


def drawn(interval: Interval, wishes: Wishes | None = None, *, width: int = 120, height: int = 40) -> list[str]:
    """Lines of the screen."""
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    history = History()
    history.add(interval)
    console.print(screen(interval, history, wishes or Wishes(), interval.now.rows, width=width, height=height))
    return console.export_text().rstrip("\n").split("\n")


def test_what_is_on_it() -> None:
    lines = drawn(seen())
    text = "\n".join(lines)
    assert "1 process under 1 sdrun  every 2 s" in lines[0]
    assert "shm 7  tcp 2" in text and "peer-not-under-sdrun 1, policy 1" in text
    assert re.search(r"rings +5000kB/s", text) and re.search(r"kernel's TCP +231kB/s", text)
    assert re.search(r"calls in library +90k/s  90.0 %", text)
    assert re.search(r"4711  nginx +50k +90k +10k +5000k +0 +0 +40 +93 %", text)
    connections = [line for line in lines if "8080" in line]
    assert len(connections) == 9 and "curl" in connections[0] and "77k" in connections[0], "the busiest is on top"
    assert not [line for line in lines if line.startswith(" ! ")]


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 40), (200, 60), (40, 15)])
def test_it_fits_and_says_what_it_leaves_out(size: tuple[int, int]) -> None:
    width, height = size
    lines = drawn(seen(), width=width, height=height)
    assert all(len(line) <= width for line in lines)
    if height >= 24:
        assert len(lines) <= height, (len(lines), height)
        shown = sum("8080" in line or "127.0.…" in line or "127…" in line for line in lines)
        assert shown == 9 or any("more" in line for line in lines)
        assert any(line.split()[:1] == ["4711"] for line in lines), "a pid is never cut"


def test_what_calls_for_attention_is_said() -> None:
    [line] = attention(seen(moved_back={"quota-exhausted": 3}))
    assert line == "3 connections moved back to TCP: quota-exhausted"
    [line] = attention(seen(injected=False, reason="already-traced"))
    assert line == "nginx (4711): not injected: already-traced"
    [line] = attention(seen(errors=2))
    assert "2 supervisor errors" in line
    slow = seen()
    slow.now.documents[0]["monitor"]["offers"] = {"times": 12, "seconds": 4.0}
    [line] = attention(slow)
    assert re.search(r"waits \d+ us for the monitor", line)
    assert any(line.startswith(" ! nginx (4711): 2 supervisor errors") for line in drawn(seen(errors=2)))


def test_keys_choose() -> None:
    wishes = Wishes()
    assert wishes.key("t") and wishes.shown == "shm"
    assert len([line for line in drawn(seen(), wishes) if "8080" in line]) == 7
    assert wishes.key("t") and wishes.key("t") and wishes.shown == "tcp"
    assert len([line for line in drawn(seen(), wishes) if "8080" in line]) == 2
    assert wishes.key("t") and wishes.shown == "all"
    for _ in SORTS:
        assert wishes.key("s") and len([line for line in drawn(seen(), wishes) if "8080" in line]) == 9
    assert wishes.sort == "rate" and wishes.key(" ") and wishes.paused and not wishes.key("q")
    assert "PAUSED" in drawn(seen(), wishes)[0]
    by_program = [line for line in drawn(seen(), Wishes(sort="program")) if "8080" in line]
    assert "curl" in by_program[0] and " 7000 " in by_program[1]


def test_small_pictures() -> None:
    assert sparkline([0, 2, 4, 8], 10) == "▁▃▅█"
    assert sparkline([0, 8], 2) == "▁█" and sparkline([1, 2, 3], 1) == "█" and sparkline([], 5) == ""
    assert bar([(1, "green"), (999, "yellow")], 40).plain == "█" * 41, "one among a thousand is seen"
    assert bar([(0, "green")], 8).plain == "░" * 8


def test_nobody_runs() -> None:
    lines = drawn(Interval(Moment([], [], 0.0), Moment([], [], 1.0)))
    assert "No program runs under sdrun" in "\n".join(lines)


def test_in_a_terminal(native: Runner, tmp_path: Path) -> None:
    """It takes the whole screen, obeys keys, and leaves the terminal as it was."""
    # Programs of other tests live in the runtime directory of the session.
    alone = {**native.env, "XDG_RUNTIME_DIR": str(tmp_path), "TERM": "xterm-256color"}
    pid, terminal = pty.fork()
    if not pid:
        os.execve(SDRUN.parent / "sdtop", ["sdtop", "-i", "0.2"], alone)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    before = termios.tcgetattr(terminal)
    text = read_until(terminal, "No program runs under sdrun")
    assert "\x1b[?1049h" in text, "the alternate screen"
    os.write(terminal, b" ")
    read_until(terminal, "PAUSED")
    os.write(terminal, b"q")
    read_until(terminal, "\x1b[?1049l")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert termios.tcgetattr(terminal)[3] == before[3], "echo and line editing are on again"
    os.close(terminal)


def read_until(terminal: int, wanted: str) -> str:
    text, deadline = "", time.monotonic() + 60
    while wanted not in text:
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, text
        text += os.read(terminal, 65536).decode(errors="replace")
    return text
