# SPDX-License-Identifier: Apache-2.0
"""Which offers may have their other end on another host, and whether two ends are of one connection. Pure: no I/O.

A host may speak of connections only whose end over there is one of its own addresses, and only if exactly one open
offer here has the two addresses mirrored: in another network namespace the same pair may exist a second time, and
then nothing tells which is meant. Beyond that both kernels have to agree in what the two ends of a connection have
agreed in when it was made (options and window scales), so that a connection that some box between the hosts has cut
in two is not taken for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitor.endpoint import Shape
from monitor.hosts.frames import Seek
from monitor.match import Address, Offer


@dataclass
class Candidate:
    """An open offer whose peer's address belongs to the host `peer`."""

    offer: Offer
    shape: Shape
    peer: str
    ring_bytes: int
    """At most."""
    answered: bool = False
    held_up: bool = False
    """Its client was told that the link has to hold first."""

    def seek(self) -> Seek:
        """How to ask for its other end."""
        key = self.offer.key
        return Seek(key.local, key.peer, self.ring_bytes, self.shape.options, self.shape.send_scale,
                    self.shape.receive_scale)

    def fits(self, said: Seek) -> bool:
        """Whether the kernels agree."""
        mine = self.shape
        theirs = Shape(said.options, said.send_scale, said.receive_scale)
        return theirs == Shape(mine.options, mine.receive_scale, mine.send_scale)


class Candidates:
    """By addresses and by client."""

    def __init__(self) -> None:
        self._by_addresses: dict[tuple[Address, Address], list[Candidate]] = {}
        self._by_name: dict[tuple[int, int], Candidate] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, candidate: Candidate) -> None:
        """A newer offer of the same name replaces the older one."""
        offer = candidate.offer
        self.drop(offer.client, offer.offer_id)
        self._by_name[offer.client, offer.offer_id] = candidate
        self._by_addresses.setdefault((offer.key.local, offer.key.peer), []).append(candidate)

    def drop(self, client: int, offer_id: int) -> None:
        """It is closed."""
        candidate = self._by_name.pop((client, offer_id), None)
        if candidate is not None:
            addresses = (candidate.offer.key.local, candidate.offer.key.peer)
            self._by_addresses[addresses].remove(candidate)
            if not self._by_addresses[addresses]:
                del self._by_addresses[addresses]

    def drop_client(self, client: int) -> None:
        """All of one client's."""
        for name in [name for name in self._by_name if name[0] == client]:
            self.drop(*name)

    def of(self, peer: str) -> list[Candidate]:
        """Those whose other end is on that host."""
        return [candidate for candidate in self._by_name.values() if candidate.peer == peer]

    def find(self, local: Address, far: Address, peer: str) -> Candidate | None:
        """The one whose own address is `local`; None if there is none, or more."""
        found = [one for one in self._by_addresses.get((local, far), ()) if one.peer == peer]
        return found[0] if len(found) == 1 else None
