# SPDX-License-Identifier: Apache-2.0
"""One line of the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any


class Level(IntEnum):
    """How grave; also the exit status, where 2 is left to wrong usage."""

    OK = 0
    WITHOUT = 1
    """sdrun works, without something."""
    STOPS = 3
    """sdrun cannot accelerate anything here."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and the command that mends it ("" when nothing has to be, or nothing can)."""

    name: str
    level: Level
    text: str
    mend: str = ""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "level": self.level.name.lower()}


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, Level.OK, text)


def without(name: str, text: str, mend: str = "") -> Finding:
    """Works, but not everything."""
    return Finding(name, Level.WITHOUT, text, mend)


def stops(name: str, text: str, mend: str = "") -> Finding:
    """Nothing will be accelerated."""
    return Finding(name, Level.STOPS, text, mend)


def worst(findings: list[Finding]) -> Level:
    """Of all; OK when there is none."""
    return max((finding.level for finding in findings), default=Level.OK)
