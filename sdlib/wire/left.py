# SPDX-License-Identifier: Apache-2.0
"""Why a connection between hosts goes back to its own TCP, as monitors tell each other and their supervisors.

Reports show `enum sd_reason`.  Of what a program does that rings cannot carry, the other end hears that it did: which
it was its own end's report says.
"""

from __future__ import annotations

from enum import IntEnum

from sdlib import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class Left(IntEnum):
    """`left` of a GONE between monitors, `number` of RING with BACK. 0: it has not gone back."""

    LINK = 1  # there is no link, or the other monitor does not know the connection
    UNSTEADY = 2  # there is one, which breaks too often
    PASSED = 3  # one of its programs gives the socket to another one
    CALL = 4  # one of its programs does what rings cannot carry
    MEMORY = 5  # its rings cannot be registered
    UNUSED = 6  # one of its programs does not come to its rings


REASONS: Final[dict[int, int]] = {
    Left.LINK: abi.const.SD_REASON_link_lost, Left.UNSTEADY: abi.const.SD_REASON_unsteady,
    Left.PASSED: abi.const.SD_REASON_passed, Left.CALL: abi.const.SD_REASON_call,
    Left.MEMORY: abi.const.SD_REASON_no_memory, Left.UNUSED: abi.const.SD_REASON_not_switched,
}  # fmt: skip
_LEFT: Final = {reason: Left(left) for left, reason in REASONS.items()}


def reason_of(left: int) -> int:
    """`enum sd_reason`."""
    return REASONS.get(left, abi.const.SD_REASON_link_lost)


def left_for(reason: int) -> Left:
    """What the other host is told where a program, or its supervisor, has taken a connection back for that reason."""
    if reason == abi.const.SD_REASON_no_monitor:
        return Left.LINK  # over there it is the link that has been missing
    return _LEFT.get(reason, Left.CALL)
