# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md says what the behaviours of this session have shown."""

from __future__ import annotations

from tests.differential import table
from tests.differential.runs import Runs
from tests.differential.worlds import BEHAVIOURS


def test_page_is_current(runs: Runs) -> None:
    for name in BEHAVIOURS:
        runs.outcome("native", name)
        runs.outcome("before", name)
    assert table.PAGE.read_text() == table.page(runs), "stale: make table"


def test_no_row_twice() -> None:
    rows = [row for behaviour in BEHAVIOURS.values() for row in behaviour.rows]
    assert len(rows) == len(set(rows)), sorted(row for row in rows if rows.count(row) > 1)
