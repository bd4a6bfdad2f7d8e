# SPDX-License-Identifier: Apache-2.0
"""Until the supervisor serves: policy and verdict, then the listener and what the keeper has received before us."""

from __future__ import annotations

import policies
from policies import Policy
from policies.model import Proto
from sdtrace import cli
from sdtrace.control import NOTIF_ANSWERED, Control, Kind
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Listener, Notification


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
