# SPDX-License-Identifier: Apache-2.0
"""Offers of all clients: what the kernel says about them, who belongs together, and how much memory that takes.

Every offer is answered before its client's next message is looked at. The socket that came with it is closed by then.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from monitor import endpoint, journal, segment
from monitor.ledger import Ledger
from monitor.match import Matcher, Offer, Verdict, side_of
from monitor.networks import Networks
from monitor.outbox import Outbox
from monitor.session import TEXTS, Client, Limits
from sdlib.wire import messages
from sdlib.wire.messages import Bell, Code, ProtocolError
from sdlib.wire.segment import check_memfd, counted_bytes, counts_as, ring_of, ring_size_ok, segment_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:  # most monitors know no other host
    from monitor.hosts.hub import Hub


class Pairing:
    """The pairing half of the server."""

    def __init__(self, clients: Mapping[int, Client], outbox: Outbox, limits: Limits,
                 pairs: frozenset[frozenset[int]], networks: Networks) -> None:
        """`pairs`: users whose ends may be paired with each other's; `networks`: and namespaces."""
        self._clients = clients
        self._outbox = outbox
        self._limits = limits
        self._matcher = Matcher(limits.offers_per_client, limits.offers_per_uid, pairs, networks)
        self.ledger = Ledger(limits.memory, limits.memory_per_uid)
        self.counts: Counter[str] = Counter()
        self.hosts: Hub | None = None

    @property
    def offers_open(self) -> int:
        """How many wait for their other end."""
        return len(self._matcher)

    def drop_client(self, number: int) -> int:
        """A client is gone, and what it held; how many offers it had open."""
        self.ledger.drop_client(number)
        if self.hosts is not None:
            self.hosts.client_gone(number)
        return self._matcher.drop_client(number)

    def on_withdraw(self, client: Client, message: messages.Withdraw) -> None:
        """Close an offer; said even if it is closed already, since the two may cross."""
        self._matcher.withdraw(client.number, message.offer_id)
        self._closed(client, message.offer_id)
        self._outbox.say(client, messages.Withdrawn(message.offer_id))

    def on_release(self, client: Client, message: messages.Release) -> None:
        """A segment is no longer in use."""
        self.ledger.release(client.number, message.offer_id)
        self._closed(client, message.offer_id)

    def _closed(self, client: Client, offer_id: int) -> None:
        if self.hosts is not None:
            self.hosts.closed(client.number, offer_id)

    def heard(self, client: Client, message: messages.Nudge | messages.Rang) -> None:
        """About the copy of a connection to another host, or what goes to the other end of one on this host."""
        others = self.ledger.others(client.number, message.offer_id) if isinstance(message, messages.Nudge) else []
        for other, name in others:
            self.ring(other, name, Bell.RECALL)
        if self.hosts is None or others:
            return
        if isinstance(message, messages.Rang) and not endpoint.owns(
            client.uid, message.tid, message.fd, message.cookie
        ):
            message = message._replace(tid=0)
        self.hosts.heard(client.number, message)

    def on_offer(self, client: Client, message: messages.Offer, fd: int) -> None:
        """Answer an offer at once. Owns `fd` (-1: there was none, or not exactly one)."""
        if self._matcher.is_open(client.number, message.offer_id):
            if fd >= 0:
                endpoint.discard(fd)
            raise ProtocolError(f"offer {message.offer_id} is already open")
        if fd < 0:
            self._refuse(client, message.offer_id, Code.DESCRIPTOR)
            return
        try:
            end = endpoint.take(fd)
        except endpoint.Unsuitable as error:
            self._refuse(client, message.offer_id, error.code, str(error))
            return
        if not ring_size_ok(message.ring_bytes):
            self._refuse(client, message.offer_id, Code.RING_SIZE, str(message.ring_bytes))
            return
        ring_bytes = min(message.ring_bytes, self._limits.ring_bytes)
        offer = Offer(client.number, message.offer_id, client.uid, end.cookie, end.key, ring_bytes)
        self._match(client, offer)
        if self.hosts is not None and self.is_open(offer):
            self.hosts.offered(offer, end.shape)

    def _match(self, client: Client, offer: Offer) -> None:
        """Let the matcher decide, and tell everybody concerned."""
        result = self._matcher.offer(offer)
        if result.replaced is not None:
            self._refuse_earlier(result.replaced, Code.REPLACED)
        if result.verdict is Verdict.PAIRED and result.partner is not None:
            self._pair(client, offer, result.partner)
        elif result.verdict is Verdict.WAITING:
            self._outbox.say(client, messages.Pending(offer.offer_id))
        elif result.code is not None:
            self._refuse(client, offer.offer_id, result.code)
            if result.partner is not None:
                self._refuse_earlier(result.partner, result.code)

    def _pair(self, client: Client, offer: Offer, partner: Offer) -> None:
        """Make the segment and hand it to both ends; the one that waits in this moment gets it first."""
        ring_bytes = min(offer.ring_bytes, partner.ring_bytes)
        if code := self.ledger.refuses(counted_bytes(ring_bytes), {offer.uid, partner.uid}):
            self._refuse(client, offer.offer_id, code)
            self._refuse_earlier(partner, code)
            return
        try:
            memfd = segment.make(ring_bytes)
        except OSError as error:
            self._refuse(client, offer.offer_id, Code.RESOURCES, error.strerror or "")
            self._refuse_earlier(partner, Code.RESOURCES, error.strerror or "")
            return
        inode = os.fstat(memfd).st_ino
        for end in (offer, partner):
            self.ledger.hold(end.client, end.offer_id, end.uid, inode, counted_bytes(ring_bytes))
        self.counts["paired"] += 1
        try:
            other = self._clients.get(partner.client)
            for to, end, across in ((client, offer, other), (other, partner, client)):
                tree = 0 if across is None else across.tree
                if to is not None:
                    self._outbox.say(to, messages.Paired(end.offer_id, side_of(end.key), ring_bytes, tree=tree), memfd)
        finally:
            os.close(memfd)
        if journal.tells_details():
            local, peer = endpoint.show(offer.key.local), endpoint.show(offer.key.peer)
            journal.detail("paired", local=local, peer=peer, uid=offer.uid, ring=ring_bytes)

    # ----------------------------------------------------------- other hosts (hosts/hub.py)

    def is_open(self, offer: Offer) -> bool:
        """Whether that offer waits."""
        return self._matcher.is_open(offer.client, offer.offer_id)

    def paired(self, offer: Offer, side: int, ring_bytes: int, memfd: int) -> bool:
        """Its other end is on another host: hand out this host's copy. False: there is no memory for it."""
        client = self._clients.get(offer.client)
        if client is None or self.ledger.refuses(segment_bytes(ring_bytes), {offer.uid}):
            return False
        self._matcher.withdraw(offer.client, offer.offer_id)
        inode = os.fstat(memfd).st_ino
        self.ledger.hold(offer.client, offer.offer_id, offer.uid, inode, segment_bytes(ring_bytes))
        self.counts["paired with other hosts"] += 1
        self._outbox.say(client, messages.Paired(offer.offer_id, side, ring_bytes, far=1), memfd)
        return True

    def ring(self, client: int, offer_id: int, what: Bell, number: int = 0) -> bool:
        """Have the supervisor do something with the program's socket."""
        found = self._clients.get(client)
        if found is not None:
            self._outbox.say(found, messages.Ring(offer_id, what, number))
        return found is not None

    # -------------------------------------------------------------------------------- refusing

    def _refuse(self, client: Client, offer_id: int, code: Code, found: str = "") -> None:
        """REFUSED, with what was found."""
        text = f"{TEXTS[code]} ({found})" if found else TEXTS[code]
        self.counts[f"refused {code.name}"] += 1
        self._outbox.say(client, messages.Refused(offer_id, code, text))
        journal.detail("refused", client=client.number, uid=client.uid, code=code.name, found=found)

    def _refuse_earlier(self, offer: Offer, code: Code, found: str = "") -> None:
        """REFUSED for an offer that had waited; its client may just have been dropped for not listening."""
        client = self._clients.get(offer.client)
        if client is not None:
            self._refuse(client, offer.offer_id, code, found)

    def on_hold(self, client: Client, message: messages.Hold, memfd: int) -> None:
        """A segment of an earlier monitor. `memfd` is looked at, never mapped or kept."""
        ring_bytes = ring_of(memfd)
        wrong = "ring size" if not ring_size_ok(ring_bytes) else check_memfd(memfd, ring_bytes)
        if wrong or self.ledger.held_by(client.number) >= self._limits.offers_per_client:
            raise ProtocolError(f"HOLD of what is no segment: {wrong or 'too many'}")
        inode = os.fstat(memfd).st_ino
        self.ledger.hold(client.number, message.offer_id, client.uid, inode, counts_as(memfd, far=bool(message.far)))
        name = (client.number, message.offer_id)
        if message.far and (self.hosts is None or not self.hosts.hold(*name, memfd, ring_bytes, message.side)):
            self.ring(client.number, message.offer_id, Bell.BACK)
