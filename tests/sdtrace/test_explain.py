# SPDX-License-Identifier: Apache-2.0
"""The report for people."""

from __future__ import annotations

from typing import Any

import pytest

from sdtrace import explain


def test_killed_while_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """The report is printed before the parent hears of the end. Who is killed then ends otherwise: that is one line."""
    report: dict[str, Any] = {
        "exit_status": 0, "processes": [], "calls": {"library": 1, "kernel": 2}, "bytes": {"shm": 3, "tcp": 4},
        "connections": {"total": 1, "shm": 1, "rdma": 0, "tcp": 0, "tcp_reasons": {}, "moved_back": {}},
        "denied": [], "supervisor_errors": 0, "counters": {"faults_inside": 0},
    }  # fmt: skip
    explain.show(report)
    told = capsys.readouterr().err
    assert "exit status 0" in told and "mistake" not in told
    explain.show({**report, "counters": {"faults_inside": 3}})
    assert "mistake of the library (EFAULT): 3" in capsys.readouterr().err
    explain.show({**report, "exit_status": -9}, report)
    assert capsys.readouterr().err == "sdrun: exit status -9 after all\n"
    explain.show({**report, "calls": {"library": 7, "kernel": 2}}, report)
    assert "answered in the library" in capsys.readouterr().err
