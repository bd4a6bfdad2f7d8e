# SPDX-License-Identifier: Apache-2.0
"""Until the supervisor serves: policy and verdict, then the listener and what the keeper has received before us."""

from __future__ import annotations

from collections.abc import Callable

import policies
from policies import Policy
from policies.model import Proto
from sdlib.records import dataclass, field
from sdtrace import cli
from sdtrace.control import NOTIF_ANSWERED, VERDICT_DENY, Control, Kind, Record
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Listener, Notification
from sdtrace.syscalls import Deny


class AttachError(Exception):
    """It cannot be attached, and nothing in it has changed; str() says why."""


class TakenBack(Exception):
    """Its supervisor of before has it again, so nothing is left for us; str() says which of its children have not."""


def filtered(options: cli.Options, policy: Policy) -> frozenset[Proto]:
    """Protocols whose calls the filter holds. PolicyError."""
    if options.successor is not None:
        held: list[Proto] = [proto for proto in ("tcp", "udp") if options.successor & VERDICT_DENY[proto]]
        return frozenset(held)
    denied = policies.denied_somewhere(policy, options.sets, options.rules)
    strict = policies.effective(policy, options.command, options.sets, rules=options.rules).strict
    if options.learn or strict or "udp" in denied:
        return frozenset({"tcp", "udp"})
    return frozenset({"tcp"}) if denied else frozenset()


def load_policy(options: cli.Options, control: Control) -> tuple[Policy, str]:
    """The policy, and what is wrong with it ("" if nothing); after the verdict, if one is waited for."""
    policy, wrong = Policy(), ""
    uring_allowed, denied = False, frozenset[str]()
    try:
        policy = policies.load(options.policy)
        settings = policies.effective(policy, options.command, options.sets, rules=options.rules)
        uring_allowed = settings.io_uring == "allow"
        denied = filtered(options, policy)
    except policies.PolicyError as error:
        wrong = str(error)
    if wrong and options.successor is not None:
        return policy, ""  # the files have been broken since; what is on rings shall not suffer
    if options.verdict:
        control.verdict(2 if wrong else 0, wrong, uring_allowed=uring_allowed, denied=denied)
    return policy, wrong


def strictest(protocols: frozenset[Proto]) -> Deny:
    """Of which filter."""
    return "udp" if "udp" in protocols else "tcp" if protocols else ""


@dataclass
class Received:
    """What the keeper hands over."""

    listeners: list[Listener] = field(default_factory=list)
    """One; with --attach one for each process that was there."""
    early: list[tuple[Notification, bool]] = field(default_factory=list)
    """Notifications that came before us, of which some have been answered already."""
    records: list[Record] = field(default_factory=list)
    """What the supervisor before us has left."""

    def listener_of(self, notif: Notification) -> Listener:
        """Where it is to be answered: the numbers are random, so only one listener knows it."""
        return next((listener for listener in self.listeners if listener.valid(notif)), self.listeners[0])


def begin(options: cli.Options, control: Control, keepsake: Keepsake, wrong: str,
          take_over: Callable[[], tuple[list[Listener], str]],
          filtered: frozenset[Proto]) -> Received:
    """AttachError, KeeperGone.

    `wrong` with the policy: only looked at where nothing has been started yet. `take_over` a program that runs.
    """
    if not options.attach:
        control.ready()
        return receive_listeners(control, keepsake)
    if wrong:
        raise AttachError(wrong)
    try:
        listeners, left = take_over()
    except AttachError as error:
        raise AttachError(f"cannot attach to {options.root_pid}: {error}") from None
    control.ready()
    while control.receive().kind != Kind.GO:
        pass  # from then on all notifications are ours
    control.verdict(0, left, denied=filtered)
    return Received(listeners)


def receive_listeners(control: Control, keepsake: Keepsake) -> Received:
    """All that the keeper has for us. KeeperGone when the command was never started."""
    received = Received()
    while True:
        message = control.receive()
        if message.kind == Kind.LISTENER and message.fd is not None:
            received.listeners.append(Listener(message.fd, keepsake))
        elif message.kind == Kind.NOTIF:
            received.early.append((Notification.parse(message.payload), bool(message.flags & NOTIF_ANSWERED)))
        elif message.kind == Kind.KEEP:
            received.records.append(message.record())
        elif message.kind == Kind.GO and received.listeners:
            return received
