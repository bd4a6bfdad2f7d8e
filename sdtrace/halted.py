# SPDX-License-Identifier: Apache-2.0
"""A process all of whose threads are stopped, and go on as if we had never come.

Kernel facts used here: SEIZE works on threads one by one and new threads may appear until all are stopped, hence the
rescan.  A thread that waits for an answer of ours gets one with which it comes to its stop (`notify.let_stop`).  A stop
for a real signal swallows our pending interrupt, so it is asked for again before the signal is passed on.  A thread in
an uninterruptible wait (a parent in vfork) does not stop: there is a deadline, and such threads are let go as soon as
they do (`release_lingering`).

epoll_wait, recv with a time-out, sigtimedwait and semop answer any interruption with -EINTR, although no signal came.
That becomes -ERESTARTNOHAND: restarted if there is no handler to run, still -EINTR if one arrived meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import TracebackType

from sdlib.records import dataclass, field
from sdtrace import notify, procfs
from sdtrace.ptrace import (
    CONT,
    EVENT_STOP,
    INTERRUPT,
    O_TRACESYSGOOD,
    SEIZE,
    WALL,
    Registers,
    RemoteError,
    ask,
    detach,
    get_mask,
    get_registers,
    hide_interruption,
    set_mask,
    set_registers,
    spurious_eintr,
    uninterrupted,
    wait,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Self

_STOP_DEADLINE_S: Final = 0.2

lingering: set[int] = set()
"""Threads that were seized but did not stop in time, or were killed in a stop: as long as their tracer has not waited
for a dead one, its own parent does not hear of its end."""


def release_lingering() -> bool:
    """Let threads go that stopped too late or have been killed; True while some remain to be looked after."""
    for tid in list(lingering):
        try:
            pid, status = os.waitpid(tid, WALL | os.WNOHANG)
        except ChildProcessError:
            lingering.discard(tid)
            continue
        gone = True
        if pid and os.WIFSTOPPED(status):
            event_stop = status >> 16 == EVENT_STOP
            if event_stop:
                hide_interruption(tid)
            gone = detach(tid, 0 if event_stop else os.WSTOPSIG(status))
        if pid and gone:
            lingering.discard(tid)
    return bool(lingering)


@dataclass
class Thread:
    """A stopped thread, and what is to be put back."""

    tid: int
    registers: Registers
    mask: int
    mask_now: int
    restore: Registers | None = None
    dispatched: bool = field(default=False)


class Halted:
    """All threads of a process, stopped."""

    def __init__(self, pid: int) -> None:
        """`pid` is the thread group; nothing happens before the scope is entered."""
        self.pid = pid
        self._threads: dict[int, Thread] = {}
        self._commit = False

    def __enter__(self) -> Self:
        """Stop everything. RemoteError when that cannot be done; nothing is left changed then."""
        notify.take_all()
        try:
            self._stop_all()
            self._prepare()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let everything go."""
        self._commit = self._commit and kind is None
        self._let_go()

    def _prepare(self) -> None:
        """What is to be done once all have stopped."""

    def _let_go(self) -> None:
        for thread in self._threads.values():
            with contextlib.suppress(OSError):
                self._put_back(thread)
        lingering.update(thread.tid for thread in self._threads.values() if not detach(thread.tid))
        if lingering:
            release_lingering()

    def _stop_all(self) -> None:
        """Seize and interrupt in two passes, so that the threads come to a stop side by side."""
        while new := [tid for tid, state in procfs.thread_states(self.pid).items()
                      if tid not in self._threads and state not in "ZX"]:
            seized: list[int] = []
            try:
                seized.extend(tid for tid in new if self._seize(tid))
            except RemoteError:
                lingering.update(seized)  # or the next signal would stop them for good
                raise
            finally:
                for tid in seized:
                    with contextlib.suppress(ProcessLookupError):
                        ask(INTERRUPT, tid)
                        self._call(tid)
            for position, tid in enumerate(seized):
                try:
                    self._arrive(tid, time.monotonic() + _STOP_DEADLINE_S)
                except (RemoteError, OSError):
                    lingering.update(set(seized[position:]) - set(self._threads))
                    raise
            if not seized:
                return

    def _call(self, tid: int) -> None:
        """Interrupted, it may wait for something that only ends by an answer: asked until it has come to its stop."""
        notify.let_stop(tid)

    def _seize(self, tid: int) -> bool:
        try:
            ask(SEIZE, tid, 0, O_TRACESYSGOOD)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            if tid in lingering:
                raise RemoteError("still being released", transient=True) from error
            if procfs.thread_states(self.pid).get(tid, "Z") in "ZX":
                return False
            raise RemoteError("ptrace-refused") from error
        return True

    def _arrive(self, tid: int, deadline: float) -> None:
        """Bring a seized thread to our own stop, passing signals on."""
        while (status := wait(tid, deadline, self._call)) is not None:
            stop_signal = os.WSTOPSIG(status)
            if status >> 16 == EVENT_STOP:
                registers = get_registers(tid)
                mask = get_mask(tid)
                self._threads[tid] = Thread(tid, registers, mask, mask)
                if stop_signal != signal.SIGTRAP:
                    raise RemoteError("stopped by job control", transient=True)
                return
            with contextlib.suppress(ProcessLookupError):
                ask(INTERRUPT, tid)
                ask(CONT, tid, 0, stop_signal)

    def _put_back(self, thread: Thread) -> None:
        if thread.restore is not None:
            set_registers(thread.tid, thread.restore)
        elif spurious_eintr(thread.registers):
            set_registers(thread.tid, uninterrupted(thread.registers))
        # Setting a mask ends a temporary one (ppoll, sigsuspend), whose call is restarted anyway: only if needed.
        if thread.mask_now != thread.mask and not self._commit:
            self._set_mask(thread, thread.mask)

    @staticmethod
    def _set_mask(thread: Thread, mask: int) -> None:
        set_mask(thread.tid, mask)
        thread.mask_now = mask

    def registers(self) -> Iterator[Registers]:
        """Registers of every thread, as found."""
        return (thread.registers for thread in self._threads.values())

    def threads(self) -> list[Thread]:
        """All of them; what is put into `restore` they go on with."""
        return list(self._threads.values())

    @property
    def thread_count(self) -> int:
        """How many threads the process has."""
        return len(self._threads)
