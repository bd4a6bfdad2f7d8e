# SPDX-License-Identifier: Apache-2.0
"""What becomes of a tree's counters: areas are folded when nobody sees them any more, and in the end comes the report.

The report is written before the parent of the root process can see that it has ended, if nobody else lives; else
when the last task is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import syslog
import time
from collections.abc import Callable

from sdtrace import cli, explain, procfs, report
from sdtrace.areas import Area
from sdtrace.enforce import Enforcer
from sdtrace.hypercalls import Hypercalls
from sdtrace.offers import Broker
from sdtrace.processes import Process, Processes
from sdtrace.vault import Vault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sdtrace.learning import Learner

_EXIT_PATIENCE_MS: Final = 2000
_ASKED_AGAIN_S: Final = 2.0
_INCOMPLETE: Final = "the supervisor ended before the program; of what it alone knew nothing is told"


class Accounts:
    """The counters of one tree, of the living and of the dead."""

    def __init__(self, options: cli.Options, processes: Processes, broker: Broker, hypercalls: Hypercalls,
                 enforcer: Enforcer, learner: Learner | None, guard: Callable[..., bool],
                 ended: Callable[[int], None], vault: Vault) -> None:
        """`guard` runs what must not end us, `ended` takes note of a process by its pidfd."""
        self._options = options
        self._processes = processes
        self._broker = broker
        self._hypercalls = hypercalls
        self._enforcer = enforcer
        self._learner = learner
        self._guard = guard
        self._ended = ended
        self._vault = vault
        self._written: dict[str, object] | None = None
        self.ledger = report.Totals()
        self._left: tuple[int, float] | None = None
        self.errors = 0
        """What went wrong in here and was survived."""

    def leaving(self, status: int, process: Process) -> None:
        """The root process ends by itself, and nobody else is alive: its parent shall find the report.

        A signal makes the kernel ask again; if that took as long each time, a ticking timer would keep it from ending.
        """
        if process.pid != self._hypercalls.reporting_pid:
            return
        if self._left is not None and self._left[0] == process.pidfd and time.monotonic() < self._left[1]:
            return
        self._leave(status, process)
        self._left = process.pidfd, time.monotonic() + _ASKED_AGAIN_S

    def _leave(self, status: int, process: Process) -> None:
        self._sweep_ended()
        others = {other.pid for other in self._processes} | set(filter(_filtered, procfs.children(process.pid)))
        others |= {int(slot.pid) for area in self._hypercalls.areas for slot in area.slots()}
        alone = not any(map(procfs.running, others - {process.pid, process.ns_pid}))
        drain = self._hypercalls.drain
        if drain is not None and alone:
            drain.finish()
        elif drain is not None:
            drain.flush()
        if alone:
            self.write_report(status & 0xFF)

    def _sweep_ended(self) -> None:
        """Take note of processes that have ended but whose pidfds have not come up yet."""
        for process in self._processes:
            if not (procfs.alive(process.pidfd) and procfs.running(process.pid)):
                self._ended(process.pidfd)

    def _orphans(self) -> list[Area]:
        """Areas that no process we know has; forked children that we have never heard of may see them."""
        held = {id(area) for process in self._processes for area in process.areas.values()}
        return [area for area in self._hypercalls.areas if id(area) not in held]

    def sweep(self) -> None:
        """Take the counters of the dead into the ledger: their slots and areas are of no more use."""
        for area in self._orphans():
            self._guard(self._fold, area)
        for area in self._hypercalls.areas:
            self._guard(self._free_slots, area)

    def _fold(self, area: Area) -> None:
        if area.fold():
            self._broker.forget_area(area)
            self.ledger.add_area(area)
            self._hypercalls.areas.remove(area)
            self._vault.drop_area(area)
            area.close()

    def _free_slots(self, area: Area) -> None:
        """Slots of processes that are gone go to the next forks. In another PID namespace nobody can be told dead."""
        for slot in area.slots() if area.host_pids else ():
            pid = int(slot.pid)
            if not procfs.running(pid) and area.take_slot(slot, pid):
                self.ledger.add_slot(area, slot, pid)
                area.free_slot(slot)
        for part in area.parts() if area.host_pids else ():
            if not procfs.running(part.pid):
                part.tid = 0  # its marks are void; whoever claims it next clears them

    def exit_status(self) -> int | None:
        """Status of the root process, which has let go of the filter but may not have ended yet."""
        poll = select.poll()
        poll.register(self._options.root_pidfd, select.POLLIN)
        if not poll.poll(_EXIT_PATIENCE_MS):
            return None
        return procfs.exit_status(self._options.root_pidfd, self._options.root_pid)

    def write_report(self, exit_status: int | None) -> None:
        """Write what was asked for; the same content is not written twice."""
        if not (self._options.report or self._options.explain):
            return
        totals = self.ledger.with_areas(self._hypercalls.areas)
        programs, unlisted = self._processes.programs, self._processes.unlisted
        content = report.build(programs, unlisted, totals, exit_status, self.errors, self._enforcer.denials)
        if self._options.successor is not None:
            content["error"] = _INCOMPLETE
        if content == self._written:
            return
        before, self._written = self._written, content
        if self._options.report:
            try:
                report.write(self._options.report, content)
            except OSError as error:
                syslog.syslog(syslog.LOG_ERR, f"cannot write {self._options.report}: {error}")
        if self._options.explain:
            with contextlib.suppress(OSError):  # nobody reads standard error any more
                explain.show(content, before)

    def write_policy(self) -> None:
        """Write down what was learned."""
        if self._learner is not None and self._options.learn is not None:
            from pathlib import Path

            try:
                self._learner.write(Path(self._options.learn), self._options.command)
            except OSError as error:
                syslog.syslog(syslog.LOG_ERR, f"cannot write {self._options.learn}: {error}")


def _filtered(pid: int) -> bool:
    """Has it our filter? A container's first process is also the parent of our keeper, and of the monitor."""
    with contextlib.suppress(OSError):
        return procfs.status(pid).filters > procfs.status(os.getpid()).filters
    return False
