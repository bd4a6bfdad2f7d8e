# SPDX-License-Identifier: Apache-2.0
"""What a program is denied by name is denied to all that it starts (strict trees only; sdtrace/syscalls.py).

A *domain* is a program, by path and user, that is denied something by name. A process is in the domains of all
programs that it ever was, and of who started it. Of a program we hear at its birth (arch_prctl) if it has a libc, at
its first call about connections, and in any case before it executes another one.

Forks are not announced. So of a process that we have not seen before, the parent tells: it can only have become
stricter since the fork. Where the parent may be another one than who forked (that one ended, and the orphan went to a
reaper), the process is in all domains that were ever seen in this tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from policies import Settings, Verdict, judge, judge_port
from policies.model import Dir, Proto
from sdlib.records import dataclass, replace
from sdtrace import procfs
from sdtrace.processes import Process, Processes

Domain = tuple[str, int]


@dataclass(frozen=True)
class Subject:
    """Who asks, and everything that binds it: its own settings first."""

    process: Process
    tid: int
    exe: str
    binding: tuple[Settings, ...]
    watched: bool = False
    """Everything is to be performed by us, to be learned from."""

    def restricts(self, dir_: Dir, proto: Proto | None = None) -> bool:
        """May anything of this direction (and protocol) be denied?"""
        denied = {pair for settings in self.binding for pair in settings.denies}
        return self.watched or any(d == dir_ and proto in (None, p) for d, p in denied)

    def judge(self, dir_: Dir, proto: Proto, address: bytes, port: int) -> Verdict:
        """The own settings' verdict, unless somebody else's is a denial."""
        return _strictest(judge(settings, dir_, proto, address, port) for settings in self.binding)

    def judge_port(self, proto: Proto, port: int) -> Verdict:
        """The same for a listener."""
        return _strictest(judge_port(settings, proto, port) for settings in self.binding)


def _strictest(verdicts: Iterable[Verdict]) -> Verdict:
    found = list(verdicts)
    denial = next((verdict for verdict in found if verdict.action == "deny"), None)
    return denial or found[0]


class Lineage:
    """The domains of all processes of a tree."""

    def __init__(
        self, processes: Processes, settings: Callable[[str, int], Settings], root_pid: int, filters: int, launcher: str
    ) -> None:
        """`filters`: a process with at least so many is of this tree. `launcher`: sdrun, which is no program of it."""
        self._processes = processes
        self._settings = settings
        self._root_pid = root_pid
        self._filters = filters
        self._launcher = launcher
        self._seen: set[int] = set()
        self._all: frozenset[Domain] = frozenset()

    def subject(self, process: Process, status: procfs.Status, tid: int, *, watched: bool = False) -> Subject:
        """What binds a process that asks now; its program is looked up anew, since it need not have told of an exec."""
        if id(process) not in self._seen:
            process.domains |= self._inherited(process, status)
            self._seen.add(id(process))
        exe = procfs.exe(process.pid)
        if exe == "?":
            exe = process.program.exe
        own = (exe, status.uid)
        settings = self._settings(*own)
        if settings.passes_on and own not in process.domains and exe != self._launcher:
            process.domains |= {own}
            self._all |= {own}
        others = (self._settings(*domain) for domain in sorted(process.domains) if domain != own)
        return Subject(process, tid, exe, (settings, *(_passed_on(other) for other in others)), watched)

    def forget(self, process: Process) -> None:
        """It has ended; its record's identity may be used again."""
        self._seen.discard(id(process))

    def reaps(self, process: Process) -> None:
        """It has asked to become the parent of orphans."""
        process.reaper = True

    def _inherited(self, process: Process, status: procfs.Status) -> frozenset[Domain]:
        if process.pid == self._root_pid:
            return frozenset()
        parent = self._processes.known(status.ppid)
        if parent is None or id(parent) not in self._seen:
            try:
                above = procfs.status(status.ppid)
                if above.filters < self._filters:
                    return self._all  # its parent has ended, and the one it has now is outside
                parent = self._processes.find(above)
                self.subject(parent, above, parent.pid)
            except OSError:
                return self._all
        if parent.reaper or parent.ns_pid == 1:
            return self._all
        return parent.domains


def _passed_on(settings: Settings) -> Settings:
    """Of another program's settings only what was said about it by name."""
    if settings.action != "deny" or settings.action_is_own:
        return settings
    return replace(settings, action="kernel")
