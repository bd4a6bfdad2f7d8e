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
import socket
import sys
import syslog
import time
from functools import lru_cache, partial

import policies
from policies import Policy, Settings
from policies.model import Proto
from sdlib import abi
from sdlib.records import replace
from sdtrace import cli, notify, opening, procfs, snapshot, strangers
from sdtrace.accounts import Accounts
from sdtrace.answers import Answers
from sdtrace.control import VERDICT_URING_ALLOWED, Control, KeeperGone
from sdtrace.enforce import Enforcer
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
from sdtrace.requests import ATTACH, ATTACH_ALONE, DETACH, DETACH_ALONE, LIBRARY, STOP, Requests, answer
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

    from sdtrace.detach import Detachment
    from sdtrace.held import Held, Key
    from sdtrace.learning import Learner
    from sdtrace.parting import Parting
    from sdtrace.rejoining import Rejoining
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
        self._policy = policy
        self._keepsake = keepsake
        self._epoll = select.epoll()
        self._listeners: dict[int, Listener] = {}
        self._intake = Intake(keepsake, self._epoll.fileno(), control, served=options.receives)
        self._vault = Vault(control)
        self._broker = Broker(self._watch, self._unwatch, self._settings, self._reload, self._vault)
        reporting_pid = options.root_pid if options.told_at_the_end else 0
        self._drain = _drain(options)
        self._hypercalls = Hypercalls(self._broker, self._settings, accelerate=not options.no_accel,
                                      reporting_pid=reporting_pid, leaving=self._leaving, drain=self._drain,
                                      vault=self._vault)
        self._processes = Processes(self._watch, self._unwatch)
        self._filters = procfs.status(os.getpid()).filters + 1
        self._filtered = opening.filtered(options, policy)
        strict = bool(self._filtered)
        self._routed = False
        """Strict only since a reload."""
        self._learner = _learner() if options.learn else None
        self._workers = Workers(keepsake)
        self._enforcer = Enforcer(self._workers, self._learner)
        self._lineage = Lineage(self._processes, self._settings, options.root_pid, self._filters, _LAUNCHER)
        self.accounts = Accounts(options, self._processes, self._broker, self._hypercalls, self._enforcer,
                                 self._learner, self._guard, self._ended, self._vault)
        command = policies.effective(policy, options.command, options.sets, rules=options.rules)
        self._uring_allowed = command.io_uring == "allow"  # the filter is the whole tree's
        if options.successor is not None:
            self._uring_allowed = bool(options.successor & VERDICT_URING_ALLOWED)
        self._settings_of = lru_cache(maxsize=1024)(self._find_settings)
        self._source = Source(options.root_pid, options.command, strict, self._processes, self._broker,
                              self._hypercalls.areas)
        self._image = image
        self._shrinker = Shrinker(self._broker.held, self._settings, image)
        self._broker.recall = self._recall
        self._broker.summary = lambda: snapshot.summary(self._source, self.accounts.ledger, self.accounts.errors)
        self._inspection = Inspection(self._snapshot)
        self._requests = Requests()
        self._detachment: Detachment | Parting | Rejoining | None = None
        self._strangers = Strangers(image, self._broker, self._hypercalls.areas)
        self._hypercalls.taken = self._strangers.has_taken
        if not isinstance(image, str):
            self._hypercalls.has_library = partial(has_library, image=image)
        self._injector = Injector(options, image, keepsake, self._processes, self._broker, self._settings,
                                  self._filters, self._drain, self._vault)
        self._answers = Answers(self._hypercalls, self._processes, self._injector, self._workers, self._enforcer,
                                self._lineage, self._learner, _LAUNCHER, self._guard, self._leaving,
                                strict=strict, forgetful=strict and options.successor is not None)

    @property
    def given_back(self) -> bool:
        """The programs live on without us."""
        return self._detachment is not None and self._detachment.whole

    @property
    def filtered(self) -> frozenset[Proto]:
        """Protocols whose calls the filter holds."""
        return self._filtered

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
        variant = Variant(not self._uring_allowed, options.told_at_the_end, opening.strictest(self._filtered))
        attacher = Attacher(self._image, variant, self._keepsake, self._settings, self._control.give,
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
        self._requests.open()
        if self._requests.fileno() >= 0:
            self._watch(self._requests.fileno())

    def _given_back(self) -> bool:
        """Is everything the programs' own again?"""
        if self._detachment is None:
            return False
        self._guard(self._detachment.tick)
        done, whole = self._detachment.done, self._detachment.whole
        if self._detachment.failed or (done and not whole):
            self._detachment = None
            if whole:
                self._hypercalls.reconfigure()
        return done and whole

    def _asked(self) -> None:
        request = self._requests.take()
        if request is None:
            return
        client, word, number = request
        if word in (DETACH, DETACH_ALONE):
            self._asked_to_detach(client, number, children=word == DETACH)
        elif word in (ATTACH, ATTACH_ALONE):
            self._asked_to_attach(client, number, children=word == ATTACH)
        elif word == LIBRARY:
            answer(client, self._injector.at_once(number))
        elif word == STOP:
            answer(client, strangers.have_it_stop(number, client))
        else:
            self._strangers.request(number, partial(answer, client))

    def _asked_to_detach(self, client: socket.socket, pid: int, *, children: bool) -> None:
        from sdtrace.detach import Detachment
        from sdtrace.parting import Parting

        if self.strict:
            answer(client, "a policy denies something to its programs, which would be without it then")
        elif self._detachment is not None or isinstance(self._image, str):
            answer(client, "somebody else has asked" if self._detachment is not None else str(self._image))
        else:
            what = self._image, self._keepsake, self._processes, self._broker, self._hypercalls.areas, self._filters
            part = Parting(*what, pid, children=children, taken=self._strangers.note, answer=partial(answer, client))
            self._detachment = part if part.remain() else Detachment(*what, partial(answer, client))

    def _asked_to_attach(self, client: socket.socket, pid: int, *, children: bool) -> None:
        from sdtrace.rejoining import Rejoining

        if self._detachment is not None or isinstance(self._image, str):
            answer(client, "somebody else has asked" if self._detachment is not None else str(self._image))
        else:
            self._detachment = Rejoining(self._image, self._processes, self._filters, pid, children=children,
                                         again=self._injector.again, answer=partial(answer, client))

    def _patience(self, *, lingering: bool) -> float:
        """How long to wait for an event, in seconds."""
        if self._detachment is not None:
            return _DETACHING_POLL_S
        if lingering:
            return _LINGERING_POLL_S
        if self._strangers:
            return strangers.RETRY_S
        if self._workers:
            return POLL_S
        waiting = self._broker.tick()
        idle = self._guard(self._shrinker.tick) and self._shrinker.waiting
        return RETRY_S if waiting else LOOK_S if idle else _ORPHAN_POLL_S

    def _reload(self) -> None:
        """Policy files have changed. What was given on the command line holds as ever; a mistake changes nothing."""
        try:
            policy = policies.load(self._options.policy)
            denied = policies.denied_somewhere(policy, self._options.sets, self._options.rules)
            before, self._policy = self._policy, policy
            self._settings_of.cache_clear()
            try:
                self._hypercalls.reconfigure()
            except policies.PolicyError:
                self._policy = before
                self._settings_of.cache_clear()
                raise
        except policies.PolicyError as error:
            syslog.syslog(syslog.LOG_ERR, f"policies not reloaded: {error}")
            return
        self._restrict(denied)
        moved = self._broker.rejudge(self._goes_back)
        syslog.syslog(syslog.LOG_INFO, f"policies reloaded; connections on their way back to TCP: {moved}")

    def _restrict(self, denied: frozenset[Proto]) -> None:
        """Where the filter was chosen for a policy that denied less: calls come to us by the library's own will."""
        late = denied - self._filtered
        if not late:
            return
        if "udp" in late:
            syslog.syslog(syslog.LOG_WARNING, "denials about UDP begin with the next start: none was possible then")
        if "tcp" in late and self._uring_allowed:
            syslog.syslog(syslog.LOG_WARNING, "denials reach no io_uring, which was allowed when this began")
        if "tcp" in late and not self._routed:
            self._answers.strict = self._routed = self._source.strict = True
            _out_of_reach()
            self._control.verdict(0, denied={"tcp"})  # the keeper's, should we die
            self._hypercalls.begin_performing()
            syslog.syslog(syslog.LOG_INFO, "denials begin; a program that attacks its own library gets around them")

    def _goes_back(self, origin: Origin) -> bool:
        return not self._settings(origin.exe, origin.uid).accelerate or self._hypercalls.stays(origin)

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
        elif fd == self._requests.fileno():
            self._guard(self._asked)

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

    def _settings(self, exe: str, uid: int) -> Settings:
        return self._settings_of(exe, uid)

    def _find_settings(self, exe: str, uid: int) -> Settings:
        settings = policies.effective(self._policy, exe, self._options.sets, uid, self._options.rules)
        if self._uring_allowed:  # submissions pass by the library, on whatever socket: none may leave TCP
            return replace(settings, accelerate=False)
        return settings

    # ---------------------------------------------------------------- looking

    def _snapshot(self) -> dict[str, Any]:
        """For those who look at us. Also sweeps: they may keep the loop from ever being idle."""
        self.accounts.sweep()
        return snapshot.build(self._source, self.accounts.ledger, self.accounts.errors)

    def close(self) -> None:
        """Let the monitor know that we leave, and those who look at us."""
        if self._drain is not None:
            self._drain.finish()
        self._inspection.close()
        self._requests.close()
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
