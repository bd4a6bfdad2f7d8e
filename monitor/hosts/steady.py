# SPDX-License-Identifier: Apache-2.0
"""A link that breaks again and again: how long it has to hold until connections use it once more. No I/O.

Its first break costs nothing: it is used again as soon as it is there.  From the second one on it has to hold for
`hold_s` first, after each further one for twice as long, at most for `most_s`.  Until then it counts as not being there
(contact.py): no new connection is put on it, and those that are go back to their own TCP after `back_s`, as if there
were none.  Once it has held for `steady_s` more, all is forgotten.

Each host counts what it sees; a connection is on the link only if both trust it.
"""

from __future__ import annotations

from typing import Final

_DOUBLED_MOST: Final = 30


class Steadiness:
    """Of one link."""

    def __init__(self, hold_s: float, most_s: float, steady_s: float) -> None:
        """`hold_s` 0: whatever it does, it is used as soon as it is there."""
        self._hold_s, self._most_s, self._steady_s = hold_s, most_s, steady_s
        self._since: float | None = None
        self.breaks = 0
        """Without `steady_s` between one and the next."""

    @property
    def hold_s(self) -> float:
        """For so long it has to hold, from when it is there."""
        if self.breaks < 2:
            return 0.0
        return float(min(self._hold_s * 2 ** min(self.breaks - 2, _DOUBLED_MOST), self._most_s))

    def left_s(self, now: float) -> float:
        """The link is there. How much longer it has to hold; it counts from the first time that this is asked."""
        if self._since is None:
            self._since = now
        held = now - self._since
        if self.breaks and held >= self.hold_s + self._steady_s:
            self.breaks = 0
        return max(0.0, self.hold_s - held)

    def broke(self, now: float) -> None:
        """It was there, and is down."""
        self.left_s(now)
        self._since = None
        self.breaks += 1
