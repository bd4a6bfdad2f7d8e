# SPDX-License-Identifier: Apache-2.0
"""What the monitor and our programs ask about connections that are held: doorbells, the way back, and questions."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from sdlib import abi
from sdlib.wire.events import Asked, Ring
from sdtrace.far import Far
from sdtrace.held import Held, Key, as_paper
from sdtrace.holdings import Holdings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sdlib.wire.client import MonitorClient


class Errands:
    """Of one broker (offers.py)."""

    def __init__(self, own: Holdings, far: Far, take_back: Callable[[Key, Held, int], bool]) -> None:
        """`take_back`: undo a pairing, if the program has not come to the rings."""
        self._own, self._far, self._take_back = own, far, take_back
        self.recall: Callable[[Key, Held], int] = lambda _key, _held: errno.ENOSYS
        """See sdtrace/recall.py; set where the image is known."""
        self.summary: Callable[[], dict[str, Any]] = dict
        """The tree's counters, for the monitor's metrics: see sdtrace/snapshot.py."""

    def ring(self, client: MonitorClient, event: Ring, open_: Key | None) -> None:
        """Do what the monitor says to a connection, and tell it how that went. `open_`: the offer that it speaks of."""
        from sdlib.wire.messages import Bell

        key = self._own.named.get(event.offer_id)
        held = None if key is None else self._own.all.get(key)
        if event.what == Bell.WHY and open_ is not None:
            from sdlib.wire.left import reason_of

            result = open_.hold_up(reason_of(event.number) if event.number else 0)
        elif key is None or held is None:
            result = errno.ENOENT
        elif event.what == Bell.RECALL:
            result = self.recall(key, held)
        elif held.far and event.what == Bell.BACK and self._take_back(key, held, event.number):
            result = 0
        else:
            result = self._far.act(key, held, event.what, event.number) if held.far else errno.EINVAL
        rung = held is not None and event.what == Bell.BYTE and not result
        client.rang(event.offer_id, result, held.origin.place if held is not None and rung else (0, 0, 0))

    def nudge(self, client: MonitorClient | None, key: Key, leave: int) -> int:
        """The program found the monitor asleep, or needs the other end's supervisor. 0 or -errno.

        `leave`: it cannot use a ring to another host any more, and both ends go back to TCP: `enum sd_reason`.
        """
        held = self._own.all.get(key)
        if held is not None and leave and held.far:
            self._far.leave(key, held, leave if leave < len(abi.REASONS) else abi.const.SD_REASON_call)
            if client is not None:
                client.nudge(held.name)  # it sees that we have taken the ring, and tells the other host
            return 0
        if held is not None and held.left:
            self._far.nudge(key)
            return 0
        if held is None or not held.paired or client is None:
            return -errno.ENOENT
        client.nudge(held.name)
        return 0

    def tell(self, client: MonitorClient, event: Asked, homeless: Mapping[Key, Held]) -> None:
        """Answer sdctl, or whoever reads the monitor's metrics. `homeless`: offers that wait for a monitor."""
        from sdlib.wire import papers
        from sdlib.wire.messages import Query

        if event.what == Query.COUNTERS:
            paper = self.summary()
        else:
            paper = as_paper(itertools.chain(self._own.all.items(), homeless.items()))
        with suppress(OSError):
            memfd = papers.write(paper)
            try:
                client.tell(event.ask_id, memfd)
            finally:
                os.close(memfd)
