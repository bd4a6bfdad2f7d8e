# SPDX-License-Identifier: Apache-2.0
"""What may be accelerated, and how: policy files, `--set`, and the decision for one program.

    policy = policies.load(path_of_option_or_None)                  # reads and checks files; PolicyError
    settings = policies.effective(policy, "/usr/sbin/nginx", ["upgrade=eager"], rules=["out tcp *:25 deny"])
    policies.judge(settings, "out", "tcp", b"\x7f\0\0\1", 80)     # what holds for one connection

    model      the values                                            pure
    engine     decide(), judge(): the only place that decides        pure
    values     values as people write them; rules the same for rules
    loader     finding and reading files; yamlfile, validate: places and the schema
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from policies.engine import decide, judge, judge_port
from policies.loader import load, packaged_layers
from policies.model import Override, Policy, PolicyError, Proto, Settings, Verdict
from policies.rules import parse_lines
from policies.values import parse_sets

__all__ = [
    "Policy", "PolicyError", "Settings", "Verdict", "denied_somewhere", "effective", "judge", "judge_port", "load",
]  # fmt: skip


def effective(
    policy: Policy, exe: str, sets: Sequence[str], uid: int | None = None, rules: Sequence[str] = ()
) -> Settings:
    """What holds for the program at path `exe` run by `uid` (default: the caller's).

    `sets` are the KEY=VALUE of `--set`, the last of a kind counts, `rules` the lines of `-r`; a wrong one raises
    PolicyError.
    """
    layers = policy.layers + (packaged_layers(exe) if policy.packaged else ())
    overrides = (Override("-r", {}, parse_lines(rules, "-r")), Override("--set", parse_sets(sets)), *policy.overrides)
    settings = decide(layers, overrides, exe, os.geteuid() if uid is None else uid)
    if (settings.denies or settings.strict) and settings.io_uring == "allow":
        where = "where something is denied" if settings.denies else f"with strict ({settings.source['strict']})"
        raise PolicyError(f"io_uring is allowed ({settings.source['io_uring']}) {where}; "
                          "it must be deny: what a ring submits passes by every check")
    return settings


def denied_somewhere(policy: Policy, sets: Sequence[str], rules: Sequence[str]) -> frozenset[Proto]:
    """Protocols of which something is denied to some program: a tree may come to execute it."""
    given = (*parse_lines(rules, "-r"), *(rule for override in policy.overrides for rule in override.rules))
    apps = [app for layer in policy.layers for app in layer.apps]
    found = {rule.proto for rule in (*given, *(rule for app in apps for rule in app.rules)) if rule.action == "deny"}
    actions = [parse_sets(sets).get("action"), *(override.values.get("action") for override in policy.overrides)]
    actions += [layer.default for layer in policy.layers] + [app.values.get("action") for app in apps]
    return frozenset({"tcp", "udp"} if "deny" in actions else found)
