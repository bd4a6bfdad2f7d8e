# SPDX-License-Identifier: Apache-2.0
"""How long a supervisor waits for a monitor to start (sdtrace/opener.py)."""

from __future__ import annotations

from typing import Any

import pytest

from sdlib.wire import MonitorClient, MonitorUnavailable
from sdtrace import opener


def attempts(made: opener.Opener, clock: list[float], count: int) -> None:
    for _ in range(count):
        clock[0] += 100
        made.prepare()
        assert made.take(wait=True, impatient=True) is None


def test_a_machine_on_which_python_starts_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter is killed when it is late; where each is, the next one needs longer, or none ever starts."""
    limits: list[float] = []
    clock = [0.0]

    def slow(*, timeout_s: float, **_more: Any) -> Any:
        limits.append(timeout_s)
        raise MonitorUnavailable("late")

    monkeypatch.setattr(MonitorClient, "open", slow)
    monkeypatch.setattr("sdtrace.opener.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("sdtrace.opener.syslog.syslog", lambda *_words: None)
    made = opener.Opener()
    attempts(made, clock, 3)
    assert limits == [5, 5, 5], "programs wait for the first one"
    made.works()
    made.again()
    limits.clear()
    made.take(wait=True, impatient=True)
    attempts(made, clock, 4)
    assert limits[-4:] == [10, 20, 40, 40]
