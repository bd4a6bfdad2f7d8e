# SPDX-License-Identifier: Apache-2.0
"""The whole tree is given back: `sdrun --detach PID`, from the request to the last word. A part of it: parting.py.

No new connection goes to a ring from the request on.  Then, again and again until it can be done: all processes that
have the library are stopped at once; each thread must be where it can be taken out (release.py); all connections go
back to TCP (giveback.py); the library gives back call sites, signal actions and epoll sets.

What remains in each process is the filter, which cannot be taken away, and the image, which costs nothing.  The keeper
goes on and lets every call through that the filter still holds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from sdlib import abi
from sdtrace import procfs
from sdtrace.areas import Area
from sdtrace.attempts import Attempts
from sdtrace.giveback import WARNED_S, give_back, warn
from sdtrace.image import Image
from sdtrace.inject import is_hooked
from sdtrace.keepsake import Keepsake
from sdtrace.offers import Broker
from sdtrace.processes import Processes
from sdtrace.release import Release
from sdtrace.seized import Seized


class Detachment(Attempts):
    """One request."""

    whole = True

    def __init__(self, image: Image, keepsake: Keepsake, processes: Processes, broker: Broker, areas: list[Area],
                 filters: int, answer: Callable[[str], None]) -> None:
        """`answer` is told why it failed, or "" when it is done."""
        super().__init__(answer)
        self._image, self._keepsake, self._processes = image, keepsake, processes
        self._broker, self._areas, self._filters = broker, areas, filters
        for area in areas:
            area.view.cfg.accel, area.view.cfg.reason = 0, abi.const.SD_REASON_detached
        warn(broker)

    def attempt(self) -> str | None:
        """See Attempts."""
        if self.tried_s < WARNED_S:
            return None
        with contextlib.ExitStack() as stack:
            stopped: dict[int, Seized] = {}
            while new := [pid for pid in self._tree() if pid not in stopped]:
                for pid in new:
                    stopped[pid] = stack.enter_context(Seized(pid, self._keepsake))
            releases = [(seized, Release(seized, self._image)) for seized in stopped.values()]
            plans = [(seized, release, release.plan()) for seized, release in releases]
            give_back(self._broker, stopped)
            for seized, release, plan in plans:
                release.run(plan)
                seized.commit()
        return ""

    def _tree(self) -> set[int]:
        """Living processes that have the library."""
        return {pid for pid in everybody(self._processes, self._areas, self._filters) if is_hooked(pid, self._image)}


def everybody(processes: Processes, areas: list[Area], filters: int) -> set[int]:
    """Living processes of a tree."""
    found: set[int] = set()
    for process in processes:
        found |= {process.pid, *below(process.pid, filters)}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if areas and {area.inode for area in areas} & procfs.memfds_mapped(int(name)):
                found.add(int(name))
    return {pid for pid in found - {os.getpid()} if procfs.running(pid)}


def below(pid: int, filters: int) -> Iterator[int]:
    """Those that it has started, as far as they are under the filter, and those that they have."""
    with contextlib.suppress(OSError):
        for child in procfs.children(pid):
            if procfs.status(child).filters >= filters:
                yield child
                yield from below(child, filters)
