# SPDX-License-Identifier: Apache-2.0
"""Pairing the two ends of a connection between hosts.

Two hosts see each other's offers (SEEK).  The one whose name sorts first decides: it names the connection (ACCEPT),
the other one tells its program and says RESUME, and only then the first tells its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from hashlib import sha256

from monitor import journal, segment
from monitor.endpoint import Shape
from monitor.hosts import frames
from monitor.hosts.conns import Conn, Connections, Local
from monitor.hosts.contact import Contact
from monitor.hosts.copy import Copy
from monitor.hosts.frames import BadPeer
from monitor.hosts.link import Link
from monitor.hosts.pairs import Candidate, Candidates
from monitor.match import Offer, side_of
from sdlib.wire.left import Left
from sdlib.wire.messages import Bell
from sdlib.wire.segment import ring_size_ok


class Seeking:
    """See above. `name`: our host's; `ring_most`: bytes; `joined` is called when there is one more connection."""

    def __init__(self, name: str, ring_most: int, local: Local, candidates: Candidates, conns: Connections,
                 joined: Callable[[], None]) -> None:
        self._ring_most = ring_most
        self._name, self._local, self._candidates, self._conns = name, local, candidates, conns
        self._joined = joined

    def offered(self, offer: Offer, shape: Shape, contacts: Iterable[Contact]) -> None:
        """An offer stays open; its other end may be on another host."""
        if offer.key.local.scope or offer.key.peer.scope:
            return
        for contact in contacts:
            if contact.peer.owns(offer.key.peer.ip):
                candidate = Candidate(offer, shape, contact.peer.name, min(offer.ring_bytes, self._ring_most))
                self._candidates.add(candidate)
                if contact.usable:
                    contact.guard(lambda link, one=candidate: link.say(one.seek()))  # type: ignore[misc]
                elif contact.steady.hold_s:
                    candidate.held_up = True
                    self._local.ring(offer.client, offer.offer_id, Bell.WHY, Left.UNSTEADY)
                return

    def usable(self, contact: Contact, link: Link) -> None:
        """Its link may be used from here on: seek what waits."""
        for candidate in self._candidates.of(contact.peer.name):
            candidate.answered = False
            if candidate.held_up:
                candidate.held_up = False
                self._local.ring(candidate.offer.client, candidate.offer.offer_id, Bell.WHY, 0)
            link.say(candidate.seek())

    def _candidate(self, contact: Contact, said: frames.Seek | frames.Accept) -> Candidate | None:
        """Our end of what the other host speaks of, if it may."""
        if not contact.peer.owns(said.local.ip) or not contact.usable:
            return None
        candidate = self._candidates.find(said.peer, said.local, contact.peer.name)
        if candidate is None or not self._local.is_open(candidate.offer):
            return None
        return candidate

    def on_seek(self, contact: Contact, said: frames.Seek) -> None:
        """The other host has an end, and asks for ours."""
        candidate = self._candidate(contact, said)
        if candidate is None or contact.link is None:
            return
        if not ring_size_ok(said.ring_bytes):
            raise BadPeer(f"a ring of {said.ring_bytes} bytes")
        if not candidate.fits(said):
            journal.warn("no-one-connection", host=contact.peer.name, ours=candidate.shape, theirs=said[3:])
            return
        if self._name > contact.peer.name:
            if not candidate.answered:
                candidate.answered = True
                contact.link.say(candidate.seek())
            return
        if self._conns.knows(candidate.offer.client, candidate.offer.offer_id):
            return  # the answer to its ACCEPT is on the way
        far_id = self.tag(contact) + os.urandom(8)
        conn = self._make(contact, far_id, candidate, min(candidate.ring_bytes, said.ring_bytes))
        if conn is not None:
            key = candidate.offer.key
            contact.link.say(frames.Accept(far_id, key.local, key.peer, conn.mirror.copy.ring_bytes))

    def _make(self, contact: Contact, far_id: bytes, candidate: Candidate, ring_bytes: int) -> Conn | None:
        """The copy of this host; it is told to nobody yet."""
        try:
            memfd = segment.make(ring_bytes)
        except OSError as error:
            journal.warn("no-copy", why=error.strerror)
            return None
        try:
            copy = Copy(memfd, ring_bytes, side_of(candidate.offer.key))
        except OSError as error:
            os.close(memfd)
            journal.warn("no-copy", why=error.strerror)
            return None
        copy.found(far_id)
        conn = self._conns.add(contact, far_id, copy, candidate.offer.client, candidate.offer.offer_id)
        self._joined()
        conn.waiting = (candidate, memfd)
        return conn

    def on_accept(self, contact: Contact, said: frames.Accept) -> None:
        """The other host has our end's other one, and has named the connection."""
        assert contact.link is not None
        candidate = self._candidate(contact, said)
        name = (-1, -1) if candidate is None else (candidate.offer.client, candidate.offer.offer_id)
        if (candidate is None or self._name < contact.peer.name or self._conns.knows(*name)
                or said.far_id[:8] != self.tag(contact) or said.far_id in contact.by_id
                or not ring_size_ok(said.ring_bytes) or said.ring_bytes > candidate.ring_bytes):
            contact.link.say(frames.Gone(said.far_id))
            return
        conn = self._make(contact, said.far_id, candidate, said.ring_bytes)
        if conn is not None and not self._conns.hand_over(conn):
            self._conns.free(conn)
            conn = None
        if conn is None:
            contact.link.say(frames.Gone(said.far_id))
            return
        contact.link.introduce(conn.mirror, reply=1)

    def tag(self, contact: Contact) -> bytes:
        """The first half of the names of all connections with that host."""
        return sha256("\0".join(sorted((self._name, contact.peer.name))).encode()).digest()[:8]
