# SPDX-License-Identifier: Apache-2.0
"""Command line of the supervisor; only the keeper uses it (launch/spawn.c), passing on the user's options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What the keeper passes."""

    @property
    def told_at_the_end(self) -> bool:
        """Is something to be found by the program's parent when it has ended?"""
        return bool(self.report or self.explain or self.pcap) or self.trace is not None

    control: int
    keepsake: int
    root_pidfd: int
    root_pid: int
    command: str
    report: Path | None
    policy: str | None
    sets: list[str]
    rules: list[str]
    learn: Path | None
    trace: str | None
    """A file; "": standard error."""
    pcap: Path | None
    explain: bool
    no_accel: bool
    named: bool
    """Every process has to name our parent, the keeper, or we may not trace it (launch/yama.c)."""
    verdict: bool
    attach: str
    """The root process has been running: it "alone", or its "family"; "": it is about to start."""
    successor: int | None
    """VERDICT_* bits of the tree's filter, for who comes after a supervisor that died."""


def parse(argv: list[str]) -> Options:
    """Options from `argv`; exits with a usage line when a person calls it by hand."""
    parser = argparse.ArgumentParser(prog="sdtrace.supervisor", description="Started by sdrun; run that instead.")
    for descriptor in ("--control", "--keepsake", "--root-pidfd", "--root-pid"):
        parser.add_argument(descriptor, type=int, required=True)
    parser.add_argument("--successor", type=int)
    parser.add_argument("--command", required=True)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--policy")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--rule", dest="rules", action="append", default=[])
    parser.add_argument("--learn", type=Path)
    parser.add_argument("--trace")
    parser.add_argument("--pcap", type=Path)
    for flag in ("--explain", "--no-accel", "--named", "--verdict"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--attach", default="", choices=("", "alone", "family"))
    return Options(**vars(parser.parse_args(argv)))
