# SPDX-License-Identifier: Apache-2.0
"""How long something took, every time."""

from __future__ import annotations

from sdlib.records import dataclass


@dataclass
class Meter:
    """Number, sum and longest."""

    times: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Once more."""
        self.times += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)

    def as_json(self) -> dict[str, float]:
        """For the document."""
        return {"times": self.times, "seconds": round(self.seconds, 6), "longest_s": round(self.longest, 6)}
