# SPDX-License-Identifier: Apache-2.0
"""CPU time of programs that have not ended."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

CPUCLOCK_SCHED = 2
SESSION, CUTIME, CSTIME = 3, 13, 14
"""Fields of /proc/PID/stat behind the name, counted from the state."""
_TICK = os.sysconf("SC_CLK_TCK")


def of_process(pid: int, children: tuple[str, str]) -> float:
    """Seconds of the process, by its CPU clock, and of the children that it has reaped, by ticks."""
    clock = (~pid << 3) | CPUCLOCK_SCHED
    return time.clock_gettime(clock) + (int(children[0]) + int(children[1])) / _TICK


def of_sessions(leaders: list[int]) -> float:
    """Seconds of all processes of these sessions."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[SESSION]) in leaders:
                total += of_process(int(folder.name), (fields[CUTIME], fields[CSTIME]))
    return total
