# SPDX-License-Identifier: Apache-2.0
"""A program that is process 1 of its PID namespace, as in a container."""

from __future__ import annotations

import sys

from tests.harness import GUESTS, Runner


def test_it_has_no_children_but_its_own(runner: Runner) -> None:
    """Orphans become its children: had the keeper been one, wait() would never come to an end."""
    runner.before = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    program = runner.run(sys.executable, GUESTS / "waits_for_all.py")
    assert program.stdout == b"1 [(True, 7)]\n"
    runner.check(program, at_least=2, of_bytes=100)
