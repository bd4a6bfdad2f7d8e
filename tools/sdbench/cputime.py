# SPDX-License-Identifier: Apache-2.0
"""CPU time of programs that have not ended."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

CPUCLOCK_SCHED = 2
PARENT, SESSION, UTIME, STIME, CUTIME, CSTIME = 1, 3, 11, 12, 13, 14
"""Fields of /proc/PID/stat behind the name, counted from the state."""
_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[str, list[str]]:
    name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    return name, rest.split()


def _of_process(pid: int, fields: list[str]) -> float:
    """Seconds of the process, by its CPU clock, and of the children that it has reaped, by ticks."""
    clock = (~pid << 3) | CPUCLOCK_SCHED
    try:
        own = time.clock_gettime(clock)
    except OSError:  # it has ended, and its parent has not looked yet
        own = (int(fields[UTIME]) + int(fields[STIME])) / _TICK
    return own + (int(fields[CUTIME]) + int(fields[CSTIME])) / _TICK


def of_servers(leaders: list[int]) -> float:
    """Seconds of all processes of these sessions, and of the leaders' children that have sessions of their own.

    PostgreSQL's have. Of the children only those with their parent's name: sdrun's keeper is one, too.
    """
    names = {}
    for leader in leaders:
        with suppress(OSError):
            names[leader] = _stat(leader)[0]
    total = 0.0
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError, IndexError):
            name, fields = _stat(pid)
            if int(fields[SESSION]) in leaders or names.get(int(fields[PARENT])) == name:
                total += _of_process(pid, fields)
    return total
