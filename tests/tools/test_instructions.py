# SPDX-License-Identifier: Apache-2.0
"""No call gets longer unnoticed: instructions from the call site and back, against tools/bench/baseline.json."""

from __future__ import annotations

from collections import Counter

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


def test_the_function_that_grew_is_named() -> None:
    before = {"send8": Count(100, 0, 0, Counter({"sd_tx": 60, "sd_lock": 40}))}
    assert not instructions.complaints({"send8": Count(105, 0, 0, Counter({"sd_tx": 65, "sd_lock": 40}))}, before)
    lines = instructions.complaints({"send8": Count(106, 0, 0, Counter({"sd_tx": 58, "sd_lock": 48}))}, before)
    assert lines == ["send8: 106 instructions, 100 in the baseline (+6%); more in sd_lock 40 -> 48"]


def test_a_system_call_more_is_named() -> None:
    before = {"recv8": Count(100, 0, 0, Counter({"sd_rx": 100}))}
    assert "1 system calls" in instructions.complaints({"recv8": Count(100, 1, 0, Counter({"sd_rx": 100}))}, before)[0]
    assert instructions.complaints({}, before) == ["recv8: not counted any more"]
