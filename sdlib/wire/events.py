# SPDX-License-Identifier: Apache-2.0
"""What `MonitorClient` returns: answers to an offer, and events that come later."""

from __future__ import annotations

from sdlib.records import NamedTuple


class MonitorUnavailable(Exception):
    """No monitor, or none that can be talked to; str() is one line. Connections stay on TCP."""


class Paired(NamedTuple):
    """The other end is there. The caller owns `memfd` (close it); this end is `side` 0 or 1 of the segment."""

    offer_id: int
    side: int
    memfd: int
    far: bool = False
    """It is on another host."""
    tree: int = 0
    """A number of the client at the other end, the same for all of its pairs; 0: unknown."""


class Pending(NamedTuple):
    """The other end isn't there yet (or the monitor is slow): Paired or Lost may follow by events()."""

    offer_id: int


class Refused(NamedTuple):
    """The monitor doesn't want this offer; `code` is a messages.Code."""

    reason: str
    code: int


class Lost(NamedTuple):
    """These open offers will never be paired. If the monitor itself is gone, `MonitorClient.alive` is False."""

    offer_ids: tuple[int, ...]
    reason: str
    code: int = 0
    """A messages.Code; 0: the monitor itself is gone, and another one may pair them."""


class Reload(NamedTuple):
    """Policy files have changed."""


class Asked(NamedTuple):
    """Somebody wants to know about our connections, or counters (`what`: messages.Query): `tell` it."""

    ask_id: int
    what: int


class Ring(NamedTuple):
    """Do what a messages.Bell says to the socket of that far segment, and answer by `rang`."""

    offer_id: int
    what: int
    number: int = 0


class Part(NamedTuple):
    """To a query: what the client `pid` of user `uid` says. The caller owns `memfd`."""

    pid: int
    uid: int
    memfd: int


class Answered(NamedTuple):
    """To a query, the last: `code` 0 or a messages.Code, how many did not tell, and what the monitor says itself."""

    code: int
    missing: int
    memfd: int


Answer = Paired | Pending | Refused
Event = Paired | Lost | Reload | Asked | Part | Answered | Ring
