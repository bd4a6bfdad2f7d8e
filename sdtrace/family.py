# SPDX-License-Identifier: Apache-2.0
"""A running program and the processes that it has started: all that `sdrun --attach` takes over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sdtrace import procfs
from sdtrace.attach import Attacher
from sdtrace.injector import Injector
from sdtrace.notify import Listener
from sdtrace.opening import AttachError
from sdtrace.processes import Processes

FAMILY_MAX: Final = 64
"""Processes in one go; the keeper has room for so many listeners (launch/keeper.h)."""


class Family:
    """For one supervisor."""

    def __init__(self, attacher: Attacher, processes: Processes, filters: int) -> None:
        """`filters`: a process with at least so many was born under ours."""
        self._attacher, self._processes, self._filters = attacher, processes, filters

    def take_over(self, root: int, *, children: bool) -> tuple[list[Listener], str]:
        """Their listeners, and which of the children stay as they are, and why; AttachError if the root does."""
        listeners, left = self._one(root), dict[int, str]()
        seen = {root}
        while new := [pid for pid in _descendants(root) if children and pid not in seen]:
            seen.update(new)  # those that are not ours yet may have more meanwhile
            for pid in new:
                try:
                    listeners += self._child(pid, len(listeners) + len(self._attacher.dormant.taken))
                except AttachError as error:
                    left[pid] = str(error)
        told = (f"not its child {pid}: {why}" for pid, why in left.items() if procfs.running(pid))
        return listeners + self._attacher.dormant.taken, "; ".join(told)

    def _one(self, pid: int) -> list[Listener]:
        taken = self._attacher.process(pid)
        Injector.has_library(self._processes.find(taken.status).program)
        return [taken.listener] if taken.listener is not None else []

    def _child(self, pid: int, before: int) -> list[Listener]:
        if self._born_ours(pid) and not self._attacher.was_given_back(pid):
            return []
        if before >= FAMILY_MAX:
            raise AttachError(f"more than {FAMILY_MAX} processes")
        return self._one(pid)

    def _born_ours(self, pid: int) -> bool:
        """Was it born under the filter of one that has been taken over?"""
        try:
            return procfs.status(pid).filters >= self._filters
        except OSError:
            return True  # it has ended


def _descendants(pid: int) -> Iterator[int]:
    """Living children, their children, and so on."""
    try:
        below = procfs.children(pid)
    except OSError:
        return
    for child in below:
        if procfs.running(child):
            yield child
            yield from _descendants(child)
