# SPDX-License-Identifier: Apache-2.0
"""Every test that docs/threat-model.md names exists."""

from __future__ import annotations

import re

from tests.harness import ROOT
from tests.sdtrace.test_enforce import TCP_WAYS

DOCUMENT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


def test_named_tests_exist() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(test_[a-z_]+)(?:\[[^`]*\])?`", DOCUMENT))
    assert len(names) > 20
    assert {name for name in names if f"def {name}(" not in sources} == set()
    for path in re.findall(r"`(tests/[a-z_0-9/]+\.py)`", DOCUMENT):
        assert (ROOT / path).is_file(), path
    ways = re.findall(r"`(?:test_no_way_around_a_denied_port)?\[([a-z0-9_]+)\]`", DOCUMENT)
    assert set(ways) == set(TCP_WAYS)
