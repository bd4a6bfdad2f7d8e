# SPDX-License-Identifier: Apache-2.0
"""The library's folders include each other one way, as ARCHITECTURE.md says."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "sdlib/src"


def layers() -> dict[str, int]:
    """Folder to height, by the line of ARCHITECTURE.md."""
    line = re.search(r"In C: `(.*?)`", (ROOT / "ARCHITECTURE.md").read_text())
    assert line, "ARCHITECTURE.md does not say"
    return {name: height for height, names in enumerate(line[1].split(" <- ")) for name in re.findall(r"\w+", names)}


def test_includes_point_one_way() -> None:
    height = layers()
    wrong, seen = [], 0
    for file in sorted(SRC.glob("*/**/*.[chS]")):
        folder = file.relative_to(SRC).parts[0]
        for included in re.findall(r'#include "(\w+)/', file.read_text()):
            if folder in height and included in height:
                seen += 1
                if height[included] > height[folder]:
                    wrong.append(f"{file.relative_to(SRC)} includes {included}/")
    assert seen > 100 and not wrong
