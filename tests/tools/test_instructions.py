# SPDX-License-Identifier: Apache-2.0
"""No call gets longer unnoticed: instructions from the call site and back, against tools/bench/baseline.json."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tests.harness import ROOT
from tests.monitor.support import wait_for
from tools import instructions
from tools.instructions import Count


def test_no_call_has_grown() -> None:
    lines = instructions.complaints(instructions.measure(), instructions.load(instructions.BASELINE))
    assert not lines, "\n".join([*lines, "if this is meant: make baseline"])


def test_fast_paths_make_no_system_call() -> None:
    baseline = instructions.load(instructions.BASELINE)
    for name in ("send8", "recv8", "write8", "read8", "epoll_ready"):
        for variant in (name, f"{name}, with threads"):
            assert baseline[variant].system_calls == 0, variant


RECORD, SHORT = 300, 1000
"""What a record may take, and a small message that goes the long way to get one: under 100 ns, at one instruction a
cycle of 3 GHz and at three."""


def test_what_a_trace_costs(tmp_path: Path) -> None:
    """In the program: no system call more, and as many instructions as docs/observing.md says."""
    plain = instructions.load(instructions.BASELINE)
    traced = instructions.measure(("alone",), (f"--trace={tmp_path / 'trace'}",))
    for name in ("epoll_ready", "poll_ready"):
        assert 100 < traced[name].total - plain[name].total <= RECORD, (name, traced[name].total, plain[name].total)
    for name in ("send8", "recv8", "write8", "read8", "recv_empty"):
        assert 100 < traced[name].total - plain[name].total <= SHORT, (name, traced[name].total, plain[name].total)
    page = (ROOT / "docs" / "observing.md").read_text()
    for said, name in re.findall(r"(\d+) (?:instructions )?to (send|receive)\b", page):
        counted = traced["send8" if name == "send" else "recv8"].total
        assert abs(int(said) - counted) < 0.15 * counted, (said, name, counted)
    assert all(count.system_calls == plain[name].system_calls for name, count in traced.items())
    wait_for(lambda: "sendto(" in (tmp_path / "trace").read_text(), "it is traced", limit_s=60)


def test_the_readme_says_what_is_counted() -> None:
    counts = instructions.load(instructions.BASELINE)
    [said] = re.findall(r"sending or receiving 8 bytes is some (\d+) instructions", (ROOT / "README.md").read_text())
    assert all(abs(int(said) - counts[name].total) < 0.15 * int(said) for name in ("send8", "recv8"))


def test_the_function_that_grew_is_named() -> None:
    before = {"send8": Count(100, 0, 0, Counter({"sd_tx": 60, "sd_lock": 40}))}
    assert not instructions.complaints({"send8": Count(105, 0, 0, Counter({"sd_tx": 65, "sd_lock": 40}))}, before)
    lines = instructions.complaints({"send8": Count(106, 0, 0, Counter({"sd_tx": 58, "sd_lock": 48}))}, before)
    assert lines == ["send8: 106 instructions, 100 in the baseline (+6%); more in sd_lock 40 -> 48"]


def test_a_system_call_more_is_named() -> None:
    before = {"recv8": Count(100, 0, 0, Counter({"sd_rx": 100}))}
    assert "1 system calls" in instructions.complaints({"recv8": Count(100, 1, 0, Counter({"sd_rx": 100}))}, before)[0]
    assert instructions.complaints({}, before) == ["recv8: not counted any more"]
