# SPDX-License-Identifier: Apache-2.0
"""The supervisor: answers notifications, injects, and reports. Started by the keeper (launch/spawn.c).

A program waits at its first socket until we serve, so nothing is imported at the start that few need: not `typing`,
`dataclasses`, `re` or `json` (sdlib/records.py, compact.py), nor the part of us that moves connections back. A test
looks (tests/sdtrace/test_start.py).

Life
    checking    policy and options; the launcher may wait for the verdict
    waiting     for the listener and for the notifications that came before us
    serving     one at a time, until the listener hangs up: the last task is gone
    reporting

One notification is worked on at a time: it stands in the keepsake, so the keeper can answer it should we die.  Every
notification is answered; whatever goes wrong in here lets the call through and is counted.

What is answered to which call: answers.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import sys
import syslog
import time
from functools import partial

from policies import Policy
from policies.model import Proto
from sdlib import abi
from sdtrace import cli, notify, opening, procfs, snapshot, strangers
from sdtrace.accounts import Accounts
from sdtrace.answers import Answers
from sdtrace.asked import Asked
from sdtrace.control import Control, KeeperGone
from sdtrace.enforce import Enforcer
from sdtrace.governing import Governing
from sdtrace.halted import release_lingering
from sdtrace.hypercalls import Hypercalls
from sdtrace.image import Image, ImageError
from sdtrace.image import load as load_image
from sdtrace.inject import has_library
from sdtrace.injector import Injector
from sdtrace.inspection import Inspection
from sdtrace.keepsake import Keepsake
from sdtrace.lineage import Lineage
from sdtrace.notify import Intake, Listener, Notification
from sdtrace.offers import RETRY_S, Broker, Origin
from sdtrace.processes import Process, Processes
from sdtrace.shrink import LOOK_S, Shrinker
from sdtrace.snapshot import Source
from sdtrace.strangers import Strangers
from sdtrace.succession import inherit
from sdtrace.syscalls import Variant
from sdtrace.vault import Vault
from sdtrace.workers import POLL_S, Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from sdtrace.held import Held, Key
    from sdtrace.learning import Learner
    from sdtrace.trace.drain import Drain

_LINGERING_POLL_S: Final = 0.01
_ORPHAN_POLL_S: Final = 5.0
_DETACHING_POLL_S: Final = 0.01
_UNABLE: Final = 125
_PR_SET_DUMPABLE: Final = 4
_LAUNCHER: Final = os.path.realpath(os.path.join(sys.prefix, "bin", "sdrun"))


class Supervisor:
    """One tree of processes, from the first notification to the report."""

    def __init__(self, options: cli.Options, policy: Policy, image: Image | str, keepsake: Keepsake,
                 control: Control) -> None:
        """`image` is text when there is none: why every process stays on the kernel."""
        self._control = control
        self._options = options
        self._governing = Governing(options, policy)
        self._keepsake = keepsake
        self._epoll = select.epoll()
        self._listeners: dict[int, Listener] = {}
        self._intake = Intake(keepsake, self._epoll.fileno(), control, served=options.receives)
        self._vault = Vault(control)
        self._broker = Broker(self._watch, self._unwatch, self._governing.settings, self._reload, self._vault)
        reporting_pid = options.root_pid if options.told_at_the_end else 0
        self._drain = _drain(options)
        self._hypercalls = Hypercalls(self._broker, self._governing.settings, accelerate=not options.no_accel,
                                      reporting_pid=reporting_pid, leaving=self._leaving, drain=self._drain,
                                      vault=self._vault)
        self._processes = Processes(self._watch, self._unwatch)
        self._filters = procfs.status(os.getpid()).filters + 1
        strict = bool(self._governing.filtered)
        self._routed = False
        """Strict only since a reload."""
        self._learner = _learner() if options.learn else None
        self._workers = Workers(keepsake)
        self._enforcer = Enforcer(self._workers, self._learner)
        self._lineage = Lineage(self._processes, self._governing.settings, options.root_pid, self._filters, _LAUNCHER)
        self.accounts = Accounts(options, self._processes, self._broker, self._hypercalls, self._enforcer,
                                 self._learner, self._guard, self._ended, self._vault)
        self._source = Source(options.root_pid, options.command, strict, self._processes, self._broker,
                              self._hypercalls.areas)
        self._image = image
        self._shrinker = Shrinker(self._broker.held, self._governing.settings, image, self._broker.measured)
        self._broker.errands.recall = self._recall
        self._broker.errands.summary = self._summary
        self._inspection = Inspection(self._snapshot)
        self._strangers = Strangers(image, keepsake, self._broker, self._hypercalls.areas)
        self._hypercalls.taken = self._strangers.has_taken
        self._hypercalls.share = self._strangers.share
        if not isinstance(image, str):
            self._hypercalls.has_library = partial(has_library, image=image)
        self._injector = Injector(options, image, keepsake, self._processes, self._broker, self._governing.settings,
                                  self._filters, self._drain, self._vault)
        self._asked = Asked(image, keepsake, self._processes, self._broker, self._hypercalls.areas, self._filters,
                            self._strangers, self._injector, lambda: self.strict)
        self._answers = Answers(self._hypercalls, self._processes, self._injector, self._workers, self._enforcer,
                                self._lineage, self._learner, _LAUNCHER, self._guard, self._leaving,
                                strict=strict, forgetful=strict and options.successor is not None)

    @property
    def given_back(self) -> bool:
        """The programs live on without us."""
        return self._asked.given_back

    @property
    def filtered(self) -> frozenset[Proto]:
        """Protocols whose calls the filter holds."""
        return self._governing.filtered

    @property
    def strict(self) -> bool:
        """May something be denied to some program?"""
        return self._answers.strict

    def take_over(self) -> tuple[list[Listener], str]:
        """The root process has been running (family.py); AttachError, TakenBack."""
        from sdtrace.attach import Attacher  # what few need is not to delay the start
        from sdtrace.family import Family
        from sdtrace.rejoining import ask_back

        options = self._options
        ask_back(options, self._filters)
        variant = Variant(not self._governing.uring_allowed, options.told_at_the_end, opening.strictest(self.filtered))
        attacher = Attacher(self._image, variant, self._keepsake, self._governing.settings, self._control.give,
                            trace=self._drain.what if self._drain is not None else 0)
        self._broker.prepare()
        return Family(attacher, self._processes, self._filters).take_over(
            options.root_pid, children=options.attach == "family")

    # ------------------------------------------------------------------- loop

    def _watch(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def serve(self, received: opening.Received) -> None:
        """Answer until the last task is gone."""
        self._begin(received)
        self._open_doors()
        self._answer_early(received)
        lingering = False
        while True:
            self._keepsake.beat()
            happened = self._intake.wait(self._patience(lingering=lingering))
            taken = self._answer_taken()
            for fd in sorted(happened, key=lambda fd: fd not in self._listeners):
                if fd not in self._listeners:
                    for each, _ in self._epoll.poll(0):
                        self._dispatch(each)
                    continue
                self._hung_up(fd)
                if not self._listeners:
                    return
            if self._workers:
                self._workers.sweep()
            if self._strangers:
                self._guard(self._strangers.tick)
            if not (happened or taken):
                self.accounts.sweep()
            if self._given_back():
                return
            lingering = release_lingering()

    def _answer_early(self, received: opening.Received) -> None:
        early = [(received.listener_of(notif), notif, answered) for notif, answered in received.early]
        for listener, notif, answered in early:
            if not answered:
                listener.owes(notif)
        for listener, notif, answered in early:
            self._keepsake.beat()
            self._answers.one(listener, notif, answered=answered)

    def _begin(self, received: opening.Received) -> None:
        for listener in received.listeners:
            self._listeners[listener.fd] = listener
            self._intake.add(listener)
        notify.intakes.append(self._intake)
        if self._options.successor is not None:
            self._guard(inherit, received.records, self._vault, self._hypercalls, self._broker, self._processes)

    def _open_doors(self) -> None:
        self._inspection.open()
        self._watch(self._inspection.fileno())
        self._asked.open(self._watch)

    def _given_back(self) -> bool:
        """Is everything the programs' own again?"""
        if not self._asked.busy:
            return False
        self._guard(self._asked.tick)
        return self._asked.settle(self._hypercalls.reconfigure)

    def _patience(self, *, lingering: bool) -> float:
        """How long to wait for an event, in seconds."""
        if lingering and not self._asked.busy:
            return _LINGERING_POLL_S
        if self._workers and not (self._asked.busy or self._strangers):
            return POLL_S
        waiting = self._broker.tick()
        if self._asked.busy:
            return _DETACHING_POLL_S
        if self._strangers:
            return strangers.RETRY_S
        idle = self._guard(self._shrinker.tick) and self._shrinker.waiting
        return RETRY_S if waiting else LOOK_S if idle else _ORPHAN_POLL_S

    def _reload(self) -> None:
        """Policy files have changed."""
        late = self._governing.reload(self._hypercalls.reconfigure)
        if late is None:
            return
        if "tcp" in late and not self._routed:
            self._restrict()
        moved = self._broker.rejudge(self._goes_back)
        syslog.syslog(syslog.LOG_INFO, f"policies reloaded; connections on their way back to TCP: {moved}")

    def _restrict(self) -> None:
        """The filter was chosen for a policy that denied nothing: calls come to us by the library's own will."""
        self._answers.strict = self._routed = self._source.strict = True
        _out_of_reach()
        self._control.verdict(0, denied={"tcp"})  # the keeper's, should we die
        self._hypercalls.begin_performing()
        syslog.syslog(syslog.LOG_INFO, "denials begin; a program that attacks its own library gets around them")

    def _goes_back(self, origin: Origin) -> bool:
        return not self._governing.settings(origin.exe, origin.uid).accelerate or self._hypercalls.stays(origin)

    def _hung_up(self, fd: int) -> None:
        """The last task under it is gone. The others are of processes that were attached beside it."""
        self._intake.remove(self._listeners.pop(fd))
        if self._listeners:
            os.close(fd)

    def _dispatch(self, fd: int) -> None:
        if self._processes.is_pidfd(fd):
            self._ended(fd)
            self.accounts.sweep()
        elif fd == self._broker.fileno():
            self._guard(self._broker.events)
        elif fd == self._inspection.fileno():
            self._guard(self._inspection.events)
        elif fd == self._asked.fileno():
            self._guard(self._asked.take)

    def _recall(self, key: Key, held: Held) -> int:
        from sdtrace.recall import Recaller

        return Recaller(self._image)(key, held)

    def _leaving(self, status: int, process: Process) -> None:
        self.accounts.leaving(status, process)

    def _ended(self, pidfd: int) -> None:
        process = self._processes.ended(pidfd)
        if process is not None:
            self._lineage.forget(process)
            self._vault.drop_carry(process)

    def _answer_taken(self) -> bool:
        """Those that there are now: more come meanwhile."""
        number = len(self._intake)
        for _ in range(number):
            self._answer(*self._intake.next())
        if not number and (taken := self._intake.instead()) is not None:
            self._answer(*taken)
            return True
        return bool(number)

    def _answer(self, listener: Listener, notif: Notification) -> None:
        begin = time.perf_counter()
        self._keepsake.beat()
        if notif.nr != abi.const.SD_HC_NR:
            self._intake.take()
        self._answers.one(listener, notif, answered=False)
        self._keepsake.forget_notification()
        self._source.notifications.add(time.perf_counter() - begin)

    def _guard(self, action: object, *args: object) -> bool:
        """Run something that must not end us; False, counted and logged when it fails."""
        try:
            action(*args)  # type: ignore[operator]
        except Exception:
            import traceback  # with tokenize and re: a tenth of the start

            self.accounts.errors += 1
            syslog.syslog(syslog.LOG_ERR, traceback.format_exc())
            if self._options.explain:
                with contextlib.suppress(OSError):
                    traceback.print_exc()
            return False
        return True

    # ---------------------------------------------------------------- looking

    def _snapshot(self) -> dict[str, Any]:
        """For those who look at us. Also sweeps: they may keep the loop from ever being idle."""
        self.accounts.sweep()
        return snapshot.build(self._source, self.accounts.ledger, self.accounts.errors)

    def _summary(self) -> dict[str, Any]:
        return snapshot.summary(self._source, self.accounts.ledger, self.accounts.errors)

    def close(self) -> None:
        """Let the monitor know that we leave, and those who look at us."""
        if self._drain is not None:
            self._drain.finish()
        self._inspection.close()
        self._asked.close()
        self._broker.close(over=not (self._listeners or self.given_back))


def _learner() -> Learner:
    from sdtrace.learning import Learner

    return Learner()


def _drain(options: cli.Options) -> Drain | None:
    if options.trace is None and options.pcap is None:
        return None
    from pathlib import Path

    from sdtrace.trace.drain import from_options

    return from_options(options.trace, None if options.pcap is None else Path(options.pcap))


def _out_of_reach() -> None:
    """Programs of our user must not be able to change us, where we stand for a policy. Late: it closes /proc/self."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def main(argv: list[str]) -> int:
    """Run until the tree is gone. Exit status: 0; 1 when there was nothing to supervise."""
    options = cli.parse(argv)
    for fd in (options.keepsake, options.root_pidfd):
        os.set_inheritable(fd, False)
    control = Control(options.control)
    keepsake = Keepsake(options.keepsake)
    syslog.openlog("sdrun", syslog.LOG_PID)
    image: Image | str
    policy, wrong = opening.load_policy(options, control)
    try:
        image = wrong or load_image(abi.const.SD_ABI_VERSION)
    except ImageError as error:
        image = str(error)
    supervisor = Supervisor(options, policy, image, keepsake, control)
    try:
        received = opening.begin(options, control, keepsake, wrong, supervisor.take_over, supervisor.filtered)
    except (KeeperGone, OSError):
        return 1  # the command was never started, or has ended already
    except opening.TakenBack as left:
        control.verdict(0, str(left))
        return 0
    except opening.AttachError as error:
        control.verdict(2 if wrong else _UNABLE, str(error))
        return 1
    gc.freeze()  # what the start has made stays
    gc.enable()
    if supervisor.strict:
        _out_of_reach()
    supervisor.serve(received)
    if supervisor.given_back:
        control.alone()
    supervisor.close()  # first: its descriptors may be the last that we may have
    supervisor.accounts.write_policy()
    supervisor.accounts.write_report(None if supervisor.given_back else supervisor.accounts.exit_status())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
