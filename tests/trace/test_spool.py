# SPDX-License-Identifier: Apache-2.0
"""The spool of a supervisor that has many descriptors."""

from __future__ import annotations

from pathlib import Path

from sdtrace.trace.spool import SpoolSink
from tests.monitor.support import descriptors_open


def test_it_settles_whatever_the_number_of_its_descriptors(tmp_path: Path) -> None:
    """select(2) refuses those above 1023."""
    with descriptors_open(1100):
        sink = SpoolSink(tmp_path / "trace.txt", "text")
        sink.settle()
        sink.close()
    assert (tmp_path / "trace.txt").exists()
