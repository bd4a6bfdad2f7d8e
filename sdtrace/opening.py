# SPDX-License-Identifier: Apache-2.0
"""Until the supervisor serves: policy and verdict, then the listener and what the keeper has received before us."""

from __future__ import annotations

from collections.abc import Callable

import policies
from policies import Policy
from policies.model import Proto
from sdtrace import cli
from sdtrace.attach import AttachError
from sdtrace.control import NOTIF_ANSWERED, Control, Kind
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Listener, Notification
from sdtrace.syscalls import Deny


def filtered(options: cli.Options, policy: Policy) -> frozenset[Proto]:
    """Protocols whose calls the filter holds. PolicyError."""
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
    if options.verdict:
        control.verdict(2 if wrong else 0, wrong, uring_allowed=uring_allowed, denied=denied)
    return policy, wrong


def strictest(protocols: frozenset[Proto]) -> Deny:
    """Of which filter."""
    return "udp" if "udp" in protocols else "tcp" if protocols else ""


def begin(options: cli.Options, control: Control, keepsake: Keepsake, wrong: str,
          take_over: Callable[[], tuple[list[Listener], str]],
          filtered: frozenset[Proto]) -> tuple[list[Listener], list[tuple[Notification, bool]]]:
    """Listeners, and what the keeper has received of the first; AttachError, KeeperGone.

    `wrong` with the policy: only looked at where nothing has been started yet. `take_over` a program that runs.
    """
    if not options.attach:
        control.ready()
        listener, early = receive_listener(control, keepsake)
        return [listener], early
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
    return listeners, []


def receive_listener(control: Control, keepsake: Keepsake) -> tuple[Listener, list[tuple[Notification, bool]]]:
    """The listener, and what the keeper has received before us. KeeperGone when the command was never started."""
    listener: Listener | None = None
    early: list[tuple[Notification, bool]] = []
    while True:
        message = control.receive()
        if message.kind == Kind.LISTENER and message.fd is not None:
            listener = Listener(message.fd, keepsake)
        elif message.kind == Kind.NOTIF:
            early.append((Notification.parse(message.payload), bool(message.flags & NOTIF_ANSWERED)))
        elif message.kind == Kind.GO and listener is not None:
            return listener, early
