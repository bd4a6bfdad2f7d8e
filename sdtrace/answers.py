# SPDX-License-Identifier: Apache-2.0
"""What is answered to a notification, by its call.

    the library's own number    hypercalls.py
    arch_prctl(ARCH_SET_FS)     a new program image; injected here only if connections survived the exec (injector.py)
    exit_group                  of the root process, the last one: the report is written first (accounts.py)
    socket calls                first use of TCP: inject (injector.py), and let the call happen anew inside the library;
    in strict trees (sdtrace/syscalls.py) a restricted program's are performed by enforce.py
    execve, prctl               only in strict trees: who starts whom (lineage.py)
    pidfd_getfd                 strangers.py

Whatever goes wrong lets the call through, where nothing stands for a policy; elsewhere it is denied.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from functools import partial

from sdlib import abi
from sdtrace import procfs, strangers
from sdtrace.enforce import PERFORMED, Enforcer
from sdtrace.hypercalls import Hypercalls
from sdtrace.injector import Injector
from sdtrace.lineage import Lineage, Subject
from sdtrace.notify import X86_64, Listener, Notification
from sdtrace.processes import Process, Processes
from sdtrace.succession import answer_forgetful
from sdtrace.syscalls import EXECVE, EXECVEAT, EXIT_GROUP, PIDFD_GETFD, PRCTL
from sdtrace.workers import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sdtrace.learning import Learner


class Answers:
    """For one supervisor, one notification at a time."""

    def __init__(self, hypercalls: Hypercalls, processes: Processes, injector: Injector, workers: Workers,
                 enforcer: Enforcer, lineage: Lineage, learner: Learner | None, launcher: str,
                 guard: Callable[..., bool], leaving: Callable[[int, Process], None], *,
                 strict: bool, forgetful: bool) -> None:
        """`guard` runs what must not end us; `leaving` is told of a process that ends by itself, with its status.

        `strict`: something may be denied to some program. `forgetful`: who started whom is not known any more, so all
        is denied that could be.
        """
        self._hypercalls, self._processes, self._injector = hypercalls, processes, injector
        self._workers, self._enforcer, self._lineage = workers, enforcer, lineage
        self._learner, self._launcher = learner, launcher
        self._guard, self._leaving = guard, leaving
        self.strict, self._forgetful = strict, forgetful
        hypercalls.scattered = self._scattered
        hypercalls.equip = self._equip

    def one(self, listener: Listener, notif: Notification, *, answered: bool) -> None:
        """Answer one notification, come what may."""
        if answered:
            self._guard(self._seen_before, notif)
        elif not self._guard(self._answer, listener, notif):
            with contextlib.suppress(OSError):
                if notif.nr == abi.const.SD_HC_NR:
                    listener.reply(notif, -errno.ENOSYS)
                elif self.strict and notif.nr in PERFORMED:
                    listener.reply(notif, -errno.EACCES)
                else:
                    listener.let_through(notif)

    def _seen_before(self, notif: Notification) -> None:
        """The keeper has answered this one: a program's start. Only note who it was, if it still is there."""
        with contextlib.suppress(OSError):
            self._processes.find(procfs.status(notif.tid))

    def _answer(self, listener: Listener, notif: Notification) -> None:
        sender = self._processes.leader(notif.tid) if notif.nr == abi.const.SD_HC_NR else None
        if sender is not None and self._hypercalls.is_wakeup(notif):
            self._hypercalls.handle(listener, notif, sender)  # somebody on another host sleeps until this is done
        elif sender is not None and not self.strict and procfs.alive(sender.pidfd) and listener.valid(notif):
            self._injector.has_library(sender.program)  # it was there after the call was made: it is the one
            self._hypercalls.handle(listener, notif, sender)
        else:
            self._identify(listener, notif)

    def _identify(self, listener: Listener, notif: Notification) -> None:
        """Answer, once it is sure who asks."""
        try:
            status = procfs.status(notif.tid)
            if not listener.valid(notif):
                self._injector.missed(notif, status)
                return
            process = self._processes.find(status)
        except OSError:
            if not (self.strict and notif.nr in PERFORMED):
                listener.let_through(notif)  # gone, or going
            elif listener.valid(notif):
                listener.reply(notif, -errno.EACCES)
            return
        if notif.nr == EXIT_GROUP:
            self._leaving(notif.int_arg(0), process)
        if notif.nr == abi.const.SD_HC_NR:
            self._injector.has_library(process.program)
            if not (self.strict and self._answer_routed(listener, notif, status, process)):
                self._hypercalls.handle(listener, notif, process)
        else:
            self._answer_call(listener, notif, status, process)

    def _answer_call(self, listener: Listener, notif: Notification, status: procfs.Status, process: Process) -> None:
        if notif.nr == PIDFD_GETFD:
            self._taken(listener, notif)
        elif self.strict:
            self._answer_strictly(listener, notif, status, process)
        elif not self._injector.inject_for(listener, notif, status, process):
            listener.let_through(notif)

    def _taken(self, listener: Listener, notif: Notification) -> None:
        """A process takes a descriptor out of another one."""
        what = strangers.taken(notif)
        if what is None:
            listener.let_through(notif)
        else:
            self._workers.run(listener, notif, partial(strangers.have_it_passed, listener, notif, *what),
                              too_many=Listener.let_through)

    def _scattered(self, listener: Listener, notif: Notification, inode: int) -> None:
        self._workers.run(listener, notif, partial(strangers.have_it_known, inode))

    def _equip(self, listener: Listener, notif: Notification, pids: list[int], who: Callable[[], int]) -> None:
        def work() -> int:
            strangers.have_libraries(pids)
            return who()

        self._workers.run(listener, notif, work)

    def _answer_strictly(self, listener: Listener, notif: Notification, status: procfs.Status,
                         process: Process) -> None:
        if self._forgetful:
            answer_forgetful(self._injector, listener, notif, status, process)
            return
        subject = self._lineage.subject(process, status, notif.tid, watched=self._learner is not None)
        if self._note(notif, process, subject):
            listener.let_through(notif)
        elif self._injector.inject_for(listener, notif, status, process):
            pass  # it comes again, from the gate
        elif notif.nr in PERFORMED:
            self._enforcer.answer(listener, notif, subject)
        else:
            listener.let_through(notif)

    def _answer_routed(self, listener: Listener, notif: Notification, status: procfs.Status, process: Process) -> bool:
        """Calls that the library sends to us because of a policy (birth.c)."""
        what = notif.args[0] & 0xFFFFFFFF
        if what not in (abi.const.SD_HC_PERFORM, abi.const.SD_HC_ADMIT):
            return False
        self._hypercalls.no_exec(process)
        if self._forgetful:
            listener.reply(notif, -errno.EACCES)
            return True
        subject = self._lineage.subject(process, status, notif.tid)
        call = notif.as_routed()
        if what == abi.const.SD_HC_ADMIT:
            self._enforcer.answer_admission(listener, call, subject)
        elif self._enforcer.performs(call.nr):
            self._enforcer.answer(listener, call, subject)
        else:
            listener.reply(notif, -errno.EINVAL)
        return True

    def _note(self, notif: Notification, process: Process, subject: Subject) -> bool:
        """Calls of a strict tree that are let through once we have taken note of them."""
        if self._learner is not None and subject.exe != self._launcher:
            self._learner.program(subject.exe)
        if notif.arch != X86_64 or notif.nr == PRCTL:
            self._lineage.reaps(process)  # of a 32-bit program any of its few notified calls may have been that
            return True
        return notif.nr in (EXECVE, EXECVEAT)
