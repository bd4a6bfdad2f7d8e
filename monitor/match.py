# SPDX-License-Identifier: Apache-2.0
"""Which two offers are the two ends of one connection. Pure: no I/O, no clock; the only place that matches.

An end is named by (network namespace, local address, peer address), as the kernel reports them for the socket that
the client held up; its other end has the two addresses exchanged. Within one network namespace at most one live TCP
connection has that name (endpoint.py refuses the exceptions: sockets bound to a device); across two, only where an
administrator says so (networks.py). Invariants:

  - an open offer is in `_open` under its key and in `_ids` under (client, offer id): both or neither;
  - no two open offers ever have mirrored keys and users that may be paired: they would have been;
  - an offer leaves by being paired, refused, replaced, withdrawn, or by its client going: exactly one of them.

A newer offer for the same key replaces the older one: addresses are used again after a connection is gone, and the
socket that can be held up now is the one that exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum, auto

from sdlib.records import NamedTuple
from sdlib.wire.messages import Code


class Address(NamedTuple):
    """`ip`: 16 bytes, IPv4 as ::ffff:a.b.c.d. `scope`: interface index of a link-local address, else 0."""

    ip: bytes
    scope: int
    port: int


class Key(NamedTuple):
    """One end of a connection."""

    netns: int
    local: Address
    peer: Address

    def mirrored(self) -> Key:
        """The same connection seen from its other end."""
        return Key(self.netns, self.peer, self.local)


class Offer(NamedTuple):
    """An end that somebody wants to be paired. `cookie`: SO_COOKIE of the socket; `uid`: of the client."""

    client: int
    offer_id: int
    uid: int
    cookie: int
    key: Key
    ring_bytes: int


class Verdict(Enum):
    """What becomes of a new offer."""

    WAITING = auto()
    PAIRED = auto()
    REFUSED = auto()


class Result(NamedTuple):
    """`partner`: the end that had waited, paired too, or refused too when `code` is OTHER_USER.

    `replaced`: a stale offer that had to go, whatever the verdict.
    """

    verdict: Verdict
    code: Code | None = None
    partner: Offer | None = None
    replaced: Offer | None = None


class Matcher:
    """The open offers of all clients, with a limit of them per client and per user."""

    def __init__(
        self, max_per_client: int, max_per_uid: int, pairs: frozenset[frozenset[int]] = frozenset(),
        networks: Callable[[int], Iterable[int]] = lambda _: (),
    ) -> None:  # fmt: skip
        """`pairs`: users that may be paired with each other, too; `networks`: other namespaces where an end may be."""
        self._pairs = pairs
        self._networks = networks
        self.max_per_client = max_per_client
        self.max_per_uid = max_per_uid
        self._open: dict[Key, Offer] = {}
        self._ids: dict[tuple[int, int], Key] = {}
        self._of_client: dict[int, set[int]] = {}
        self._of_uid: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def is_open(self, client: int, offer_id: int) -> bool:
        """Whether that client has an open offer of that name."""
        return (client, offer_id) in self._ids

    def offer(self, new: Offer) -> Result:
        """Match a new offer, whose (client, offer_id) must not be open, or keep it open."""
        assert not self.is_open(new.client, new.offer_id)
        mirrored = new.key.mirrored()
        if mirrored == new.key:
            return Result(Verdict.REFUSED, Code.SELF_CONNECTED)
        replaced = self._open.get(new.key)
        if replaced is not None:
            self._remove(replaced)
        partner = self._partner(mirrored)
        if partner is not None and partner.cookie == new.cookie:
            # One socket was at both ends at different times: the older offer's connection is gone.
            self._remove(partner)
            return self._keep(new, replaced or partner)
        if partner is None:
            return self._keep(new, replaced)
        self._remove(partner)
        if partner.uid != new.uid and frozenset((partner.uid, new.uid)) not in self._pairs:
            return Result(Verdict.REFUSED, Code.OTHER_USER, partner, replaced)
        return Result(Verdict.PAIRED, None, partner, replaced)

    def _partner(self, mirrored: Key) -> Offer | None:
        """The open offer of the other end: in the same namespace, else in one that may be paired with it."""
        if (found := self._open.get(mirrored)) is not None:
            return found
        for netns in self._networks(mirrored.netns):
            if (found := self._open.get(mirrored._replace(netns=netns))) is not None:
                return found
        return None

    def withdraw(self, client: int, offer_id: int) -> bool:
        """Close an offer; False if it was not open (paired meanwhile, or never made)."""
        key = self._ids.get((client, offer_id))
        if key is None:
            return False
        self._remove(self._open[key])
        return True

    def drop_client(self, client: int) -> int:
        """Close all offers of a client that is gone; returns how many."""
        ids = tuple(self._of_client.get(client, ()))
        for offer_id in ids:
            self.withdraw(client, offer_id)
        return len(ids)

    def _keep(self, new: Offer, replaced: Offer | None) -> Result:
        """Leave the offer open, within the limits."""
        if len(self._of_client.get(new.client, ())) >= self.max_per_client or self._of_uid[new.uid] >= self.max_per_uid:
            return Result(Verdict.REFUSED, Code.QUOTA, None, replaced)
        self._open[new.key] = new
        self._ids[new.client, new.offer_id] = new.key
        self._of_client.setdefault(new.client, set()).add(new.offer_id)
        self._of_uid[new.uid] += 1
        return Result(Verdict.WAITING, None, None, replaced)

    def _remove(self, old: Offer) -> None:
        """Take an open offer out of all indices."""
        del self._open[old.key]
        del self._ids[old.client, old.offer_id]
        ids = self._of_client[old.client]
        ids.discard(old.offer_id)
        if not ids:
            del self._of_client[old.client]
        self._of_uid[old.uid] -= 1
        if not self._of_uid[old.uid]:
            del self._of_uid[old.uid]


def side_of(key: Key) -> int:
    """0 for the end whose own (address, port) sorts first, 1 for the other: both ends' keys agree on it."""
    return 0 if key.local < key.peer else 1
