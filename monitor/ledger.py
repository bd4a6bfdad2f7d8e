# SPDX-License-Identifier: Apache-2.0
"""How much ring memory is in use, by whom. Pure bookkeeping: no descriptor is kept.

A segment is named by its memfd's inode, so that both ends, and a client that declares it to a new monitor (HOLD),
mean the same one. It is in use while any client holds it: until RELEASE, or until the client goes. A client can lie
about its own segments only; memory that it does not declare is limited by its own memory cgroup, like any memory of
its programs.
"""

from __future__ import annotations

from collections import Counter

from sdlib.records import dataclass, field
from sdlib.wire.messages import Code


@dataclass
class Segment:
    """`owners`: users whose memory it counts as, each in full."""

    bytes: int
    owners: Counter[int] = field(default_factory=Counter)


class Ledger:
    """All segments in use, with a limit for each user and for all together."""

    def __init__(self, max_bytes: int, max_per_uid: int) -> None:
        self.max_bytes = max_bytes
        self.max_per_uid = max_per_uid
        self.total = 0
        self.of_uid: Counter[int] = Counter()
        self._segments: dict[int, Segment] = {}
        self._held: dict[int, dict[int, tuple[int, int]]] = {}  # client -> name -> (inode, uid)

    def __len__(self) -> int:
        return len(self._segments)

    def held_by(self, client: int) -> int:
        """How many segments a client holds."""
        return len(self._held.get(client, ()))

    def refuses(self, bytes_: int, uids: set[int]) -> Code | None:
        """Why a new segment of `bytes_` for these users cannot be made; None if it can."""
        if self.total + bytes_ > self.max_bytes or any(self.of_uid[uid] + bytes_ > self.max_per_uid for uid in uids):
            return Code.MEMORY
        return None

    def hold(self, client: int, name: int, uid: int, inode: int, bytes_: int) -> None:
        """A client holds a segment, under a name of its own that is free."""
        names = self._held.setdefault(client, {})
        if name in names:
            self.release(client, name)
        names[name] = (inode, uid)
        segment = self._segments.get(inode)
        if segment is None:
            segment = self._segments[inode] = Segment(bytes_)
            self.total += bytes_
        segment.owners[uid] += 1
        if segment.owners[uid] == 1:
            self.of_uid[uid] += segment.bytes

    def others(self, client: int, name: int) -> list[tuple[int, int]]:
        """Who else holds that segment, and under which names: (client, name)."""
        held = self._held.get(client, {}).get(name)
        return [] if held is None else [
            (other, its) for other, names in self._held.items() for its, (inode, _) in names.items()
            if inode == held[0] and (other, its) != (client, name)
        ]

    def release(self, client: int, name: int) -> None:
        """It does no longer; unknown names are ignored."""
        inode, uid = self._held.get(client, {}).pop(name, (0, 0))
        segment = self._segments.get(inode)
        if segment is None:
            return
        segment.owners[uid] -= 1
        if not segment.owners[uid]:
            del segment.owners[uid]
            self.of_uid[uid] -= segment.bytes
        if not segment.owners:
            del self._segments[inode]
            self.total -= segment.bytes

    def drop_client(self, client: int) -> None:
        """It has gone, and all that it held with it, as far as we can know."""
        for name in list(self._held.get(client, ())):
            self.release(client, name)
        self._held.pop(client, None)
