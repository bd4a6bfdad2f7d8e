# SPDX-License-Identifier: Apache-2.0
"""What is known about every process of the tree that we have heard of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from sdlib import abi
from sdlib.records import dataclass, field
from sdtrace import procfs
from sdtrace.areas import Area

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LISTED_MAX: Final = 10_000
"""Programs in the report; a shell that runs for months starts more."""

NO_SOCKET: Final = "no-socket-call"
"""Reason of a process that was never injected because it never asked for a socket."""


@dataclass
class Program:
    """One program in one process: a line of the report. An exec after an injection starts a new one."""

    pid: int
    ns_pid: int
    exe: str
    injected: bool = False
    reason: str = NO_SOCKET
    refused: bool = False
    """Never to be tried again: the reason will not go away while this program runs."""
    stops: int = 0
    """How often it was stopped without success."""
    areas: list[Area] = field(default_factory=list)


@dataclass
class Process:
    """A living process. `pidfd` pins its identity: a pid may be used again, this descriptor's process never is."""

    pid: int
    ns_pid: int
    pidfd: int
    program: Program
    areas: dict[int, Area] = field(default_factory=dict)
    carry: list[tuple[int, int]] | None = None
    """Connections that an exec, announced by the library, will take along: (descriptor, block id)."""
    domains: frozenset[tuple[str, int]] = frozenset()
    """Programs, by path and user, whose denials hold here (lineage.py)."""
    given_back: bool = False
    """It, or the process that has started it, was taken out of the tree (parting.py)."""
    reaper: bool = False
    """Processes whose parent ended may have become its children."""

    def on_ring(self, block: int) -> bool:
        """Is its connection, or may one be, on shared memory? Whoever has that needs the library, policy or not."""
        if block == abi.const.SD_CARRY_AREAS:
            return True
        area, place = self.areas.get(block >> 16), block & 0xFFFF
        if area is None or place >= abi.const.SD_AREA_BLOCKS:
            return False
        return area.block_state(place) == abi.const.SD_BLOCK_ATTACHED


class Processes:
    """The living ones by pid, and the programs of all, in the order of their appearance."""

    def __init__(self, watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        """`watch` and `unwatch` take a pidfd in and out of the event loop."""
        self._watch, self._unwatch = watch, unwatch
        self._living: dict[int, Process] = {}
        self._by_pidfd: dict[int, Process] = {}
        self._some_given_back = False
        self.programs: list[Program] = []
        self.unlisted = 0
        """Programs beyond LISTED_MAX."""

    def __iter__(self) -> Iterator[Process]:
        """The living ones."""
        return iter(list(self._living.values()))

    def find(self, status: procfs.Status) -> Process:
        """The record of the process that `status` was read from, made if need be; OSError when it is gone."""
        known = self._living.get(status.tgid)
        if known is not None:
            if procfs.alive(known.pidfd):
                return known
            self.ended(known.pidfd)
        pidfd = os.pidfd_open(status.tgid)
        program = Program(status.tgid, status.ns_pid, procfs.exe(status.tgid))
        process = Process(status.tgid, status.ns_pid, pidfd, program)
        process.given_back = self._some_given_back and self._starter_given_back(status)
        self._living[status.tgid] = self._by_pidfd[pidfd] = process
        self._list(program)
        self._watch(pidfd)
        return process

    def give_back(self, process: Process) -> None:
        """Neither this one nor what it starts is ours any more."""
        process.given_back = self._some_given_back = True

    def take_back(self, process: Process) -> None:
        """It is ours again, from now on: what it had before is over, as after an exec."""
        process.given_back = False
        self.new_image(process)

    def _starter_given_back(self, status: procfs.Status) -> bool:
        pid = status.ppid
        with contextlib.suppress(OSError):
            while pid > 1 and pid not in self._living:
                pid = procfs.status(pid).ppid
        return pid in self._living and self._living[pid].given_back

    def leader(self, tid: int) -> Process | None:
        """The process of that id, for what does no harm if it is another's by now; None of other threads."""
        return self._living.get(tid)

    def _list(self, program: Program) -> None:
        if len(self.programs) < LISTED_MAX:
            self.programs.append(program)
        else:
            self.unlisted += 1

    def new_image(self, process: Process) -> None:
        """The process has executed a program: nothing of ours is mapped there any more."""
        exe = procfs.exe(process.pid)
        if process.program.injected or process.program.refused:
            process.program = Program(process.pid, process.ns_pid, exe)
            self._list(process.program)
        process.program.exe = exe
        process.program.reason = NO_SOCKET
        if process.carry is None:
            process.areas = {}

    def known(self, pid: int) -> Process | None:
        """The record of a living process, if there is one."""
        process = self._living.get(pid)
        return process if process is not None and procfs.alive(process.pidfd) else None

    def is_pidfd(self, fd: int) -> bool:
        """Is `fd` one that we asked to be watched?"""
        return fd in self._by_pidfd

    def ended(self, pidfd: int) -> Process | None:
        """The process is no more; its programs stay for the report."""
        process = self._by_pidfd.pop(pidfd, None)
        if process is not None:
            self._living.pop(process.pid, None)
            with contextlib.suppress(OSError, KeyError):
                self._unwatch(pidfd)
            os.close(pidfd)
        return process
