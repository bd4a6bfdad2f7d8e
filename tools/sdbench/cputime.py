# SPDX-License-Identifier: Apache-2.0
"""CPU time of programs that have not ended."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

CPUCLOCK_SCHED = 2
PARENT, SESSION, UTIME, STIME, CUTIME, CSTIME = 1, 3, 11, 12, 13, 14
"""Fields of /proc/PID/stat behind the name, counted from the state."""
_TICK = os.sysconf("SC_CLK_TCK")


class Used(NamedTuple):
    """Seconds of CPU time: all, and what of it went on outside of the kernel."""

    all: float
    user: float

    def __sub__(self, other: Used) -> Used:
        return Used(self.all - other.all, self.user - other.user)


def _stat(pid: int) -> tuple[str, list[str]]:
    name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    return name, rest.split()


def _of_process(pid: int, fields: list[str]) -> Used:
    """Of the process, by its CPU clock, and of the children that it has reaped, by ticks.

    What is user's of it is the share that the kernel's clock of ticks has found there.
    """
    user, system, child_user, child_system = (int(fields[at]) / _TICK for at in (UTIME, STIME, CUTIME, CSTIME))
    clock = (~pid << 3) | CPUCLOCK_SCHED
    try:
        own = time.clock_gettime(clock)
    except OSError:  # it has ended, and its parent has not looked yet
        own = user + system
    return Used(own + child_user + child_system, user + child_user)


def of_servers(leaders: list[int]) -> Used:
    """Of all processes of these sessions, and of the leaders' children that have sessions of their own.

    PostgreSQL's have. Of the children only those with their parent's name: sdrun's keeper is one, too.
    """
    names = {}
    for leader in leaders:
        with suppress(OSError):
            names[leader] = _stat(leader)[0]
    total = user = 0.0
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError, IndexError):
            name, fields = _stat(pid)
            if int(fields[SESSION]) in leaders or names.get(int(fields[PARENT])) == name:
                used = _of_process(pid, fields)
                total, user = total + used.all, user + used.user
    return Used(total, user)
