# SPDX-License-Identifier: Apache-2.0
"""How many programs that run one supervisor takes over: as many as its keeper holds listeners of."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from sdtrace import family, procfs
from sdtrace.family import FAMILY_MAX, Family
from tests.harness import ROOT

ROOT_PID, CHILDREN = 1000, range(1001, 1001 + FAMILY_MAX + 3)


class Attacher:
    """Each process gives a listener; the first `dormant` ones have theirs from a keeper of before."""

    def __init__(self, dormant: int) -> None:
        self.left = dormant
        self.dormant = SimpleNamespace(taken=[])

    def process(self, pid: int) -> Any:
        was, self.left = self.left > 0, max(self.left - 1, 0)
        if was:
            self.dormant.taken.append(pid)
        return SimpleNamespace(status=pid, listener=None if was else pid)

    def was_given_back(self, _pid: int) -> bool:
        return True


@pytest.mark.parametrize("dormant", [0, 1, FAMILY_MAX - 1, FAMILY_MAX])
def test_no_more_than_the_keeper_holds(dormant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are given back by one keeper and those that are new count together."""
    processes: Any = SimpleNamespace(find=lambda _status: SimpleNamespace(program=SimpleNamespace()))
    attacher: Any = Attacher(dormant)
    monkeypatch.setattr(family, "_descendants", lambda _pid: iter(CHILDREN))
    monkeypatch.setattr(procfs, "running", lambda _pid: True)
    monkeypatch.setattr(Family, "_born_ours", lambda _self, _pid: False)
    listeners, told = Family(attacher, processes, 1).take_over(ROOT_PID, children=True)
    assert len(listeners) == FAMILY_MAX
    assert told.count(f"more than {FAMILY_MAX} processes") == len(CHILDREN) + 1 - FAMILY_MAX
    header = (ROOT / "sdtrace" / "launch" / "keeper.h").read_text()
    assert re.search(r"#define LISTENERS_MAX (\d+)", header)[1] == str(FAMILY_MAX)  # type: ignore[index]
