# SPDX-License-Identifier: Apache-2.0
"""What may be accelerated, and how: policy files, `--set`, and the decision for one program.

    policy = policies.load(path_of_option_or_None)                  # reads and checks files; PolicyError
    settings = policies.effective(policy, "/usr/sbin/nginx", ["upgrade=eager"])

    model      the values                                            pure
    engine     decide(): the only place that decides                 pure
    values     values as people write them
    loader     finding and reading files; yamlfile, validate: places and the schema
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from policies.engine import decide
from policies.loader import load, packaged_layers
from policies.model import Policy, PolicyError, Settings
from policies.values import parse_sets

__all__ = ["Policy", "PolicyError", "Settings", "effective", "load"]


def effective(policy: Policy, exe: str, sets: Sequence[str], uid: int | None = None) -> Settings:
    """What holds for the program at path `exe` run by `uid` (default: the caller's).

    `sets` are the KEY=VALUE of `--set`, the last of a kind counts; a wrong one raises PolicyError.
    """
    overrides = parse_sets(sets)
    layers = policy.layers + (packaged_layers(exe) if policy.packaged else ())
    return decide(layers, overrides, exe, os.geteuid() if uid is None else uid)
