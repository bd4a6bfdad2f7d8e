# SPDX-License-Identifier: Apache-2.0
"""The connections to other hosts that a monitor holds: whose they are, their bells, and their ends.

*Active* are those that the next pass looks at (vigil.py says when one ceases to be).  Whatever happens to one stirs it:
its supervisor's words, a record or a completion of the other host, something that it has not been able to send.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from errno import EAGAIN
from typing import Any, Protocol

from monitor import journal
from monitor.hosts import frames
from monitor.hosts.contact import Contact
from monitor.hosts.copy import Copy
from monitor.hosts.mirror import Mirror
from monitor.hosts.pairs import Candidate, Candidates
from monitor.hosts.vigil import QUIET
from monitor.match import Offer
from sdlib import abi
from sdlib.wire.left import Left, left_for
from sdlib.wire.messages import Bell, Rang


class Local(Protocol):
    """What is needed of the monitor."""

    def is_open(self, offer: Offer) -> bool: ...
    def paired(self, offer: Offer, side: int, ring_bytes: int, memfd: int) -> bool: ...
    def ring(self, client: int, offer_id: int, what: Bell, number: int = 0) -> bool: ...


@dataclass
class Conn:
    """One connection. `client`, `name`: whose it is on this host, None when its supervisor is gone."""

    contact: Contact
    mirror: Mirror
    client: int | None
    name: int
    waiting: tuple[Candidate, int] | None = None
    """The memfd, until the other side has said that it has it, too."""
    ringing: bool = False
    number: int = 0
    """Of the doorbell that its supervisor is at."""
    full: bool = False
    """Its socket took no doorbell."""
    local_gone: float = 0.0
    """Since when; 0: it is there."""
    peer_gone: bool = False
    said_gone: bool = False
    lost: bool = False
    left: int = 0
    """It has gone back to TCP (`Left` says why); until the other host has heard so, what that sends goes on
    arriving."""
    unused_since: float | None = field(default_factory=time.monotonic)
    """None: both programs have come to their rings."""

    @property
    def deaf(self) -> bool:
        """Nobody tells us when its program has news."""
        return self.client is None

    @property
    def unsettled(self) -> bool:
        """Something is due for it by and by, whether or not anything happens."""
        return bool(self.waiting or self.client is None or self.local_gone or self.peer_gone or self.mirror.untold)


class Connections:
    """By slot, our name for each, and by the name that its supervisor knows."""

    def __init__(self, local: Local, candidates: Candidates, lost_s: float, unused_s: float) -> None:
        self._local, self._candidates, self._lost_s, self._unused_s = local, candidates, lost_s, unused_s
        self._conns: dict[int, Conn] = {}
        self._named: dict[tuple[int, int], Conn] = {}
        self._slots = 0
        self.active: dict[int, Conn] = {}
        self._owing: dict[int, Conn] = {}
        """With small credits that have not been told, or a doorbell that found no room."""

    def __len__(self) -> int:
        return len(self._conns)

    def __iter__(self) -> Iterator[Conn]:
        return iter(list(self._conns.values()))

    def of(self, contact: Contact) -> list[Conn]:
        """Those with that host."""
        return [conn for conn in self if conn.contact is contact]

    def at(self, slot: int) -> Conn:
        """By slot."""
        return self._conns[slot]

    # ------------------------------------------------------------------------ active

    def stir(self, slot: int) -> None:
        """The next pass looks at it."""
        conn = self._conns.get(slot)
        if conn is not None and slot not in self.active:
            conn.mirror.quiet = 0
            conn.mirror.watch(True)
            self.active[slot] = conn

    def stir_named(self, client: int, name: int) -> None:
        """The same, by what its supervisor calls it."""
        conn = self._named.get((client, name))
        if conn is not None:
            self.stir(conn.mirror.slot)

    def stir_due(self, now: float) -> None:
        """Now and then: those for which something may be due by now."""
        for conn in self._conns.values():
            again = conn.mirror.ring_again(now)
            if again:
                conn.contact.again += 1
                journal.detail("doorbell-again", host=conn.contact.peer.name, slot=conn.mirror.slot)
            if again or conn.unsettled or self._is_unused(conn, now):
                self.stir(conn.mirror.slot)

    def _is_unused(self, conn: Conn, now: float) -> bool:
        """One of its programs does not come: it shares the connection with another process, say, or says nothing.

        The memory of rings is pinned, so it is not kept for that.  Each end is offered anew by its program's next call.
        """
        if conn.unused_since is not None and conn.mirror.used:
            conn.unused_since = None
        return conn.unused_since is not None and now - conn.unused_since > self._unused_s

    def stir_owing(self) -> None:
        """Those whose small credits are to go out."""
        owing, self._owing = self._owing, {}
        for slot, conn in owing.items():
            conn.full = False
            self.stir(slot)

    @property
    def owing(self) -> bool:
        """Small credits wait."""
        return bool(self._owing)

    def alive(self, looked_at: Iterable[Conn]) -> list[Conn]:
        """Those that are still there."""
        return [conn for conn in looked_at if conn.mirror.slot in self._conns]

    def stirred_since(self, looked_at: Iterable[Conn]) -> bool:
        """Whether some have become active that were not looked at."""
        slots = {conn.mirror.slot for conn in looked_at}
        return any(slot not in slots for slot in self.active)

    def count(self, looked_at: Iterable[Conn]) -> int:
        """Bytes that have moved since the last pass; who has moved none grows quiet."""
        sum_of = 0
        for conn in looked_at:
            moved = conn.mirror.moved()
            sum_of += moved
            conn.mirror.quiet = 0 if moved or conn.mirror.said_something else conn.mirror.quiet + 1
        return sum_of

    def rest(self, looked_at: Iterable[Conn], *, all_armed: bool) -> None:
        """Those that were armed and then looked at in vain need not be looked at again. `all_armed`: we sleep."""
        for conn in looked_at:
            mirror = conn.mirror
            if mirror.behind or mirror.holds or conn.deaf or not mirror.armed:
                continue
            if all_armed or mirror.quiet > QUIET:
                self.active.pop(mirror.slot, None)
                mirror.watch(False)
                if mirror.owes:
                    self._owing[mirror.slot] = conn

    # ------------------------------------------------------------------------- names

    def knows(self, client: int, name: int) -> bool:
        """Whether that offer is a connection already."""
        return (client, name) in self._named

    def add(self, contact: Contact, far_id: bytes, copy: Copy, client: int, name: int) -> Conn:
        """A copy of this host."""
        mirror = Mirror(far_id, copy, self._free_slot())
        conn = Conn(contact, mirror, client, name)
        self._conns[mirror.slot] = conn
        self._named[client, name] = conn
        contact.mirrors[mirror.slot] = mirror
        contact.by_id[far_id] = mirror
        mirror.awake()
        self.stir(mirror.slot)
        return conn

    def _free_slot(self) -> int:
        """An immediate has room for so many; those that were given back are used again as late as possible."""
        while True:
            self._slots = (self._slots + 1) % int(abi.const.SD_MIRRORED_MOST)
            if self._slots and self._slots not in self._conns:
                return self._slots

    def hand_over(self, conn: Conn) -> bool:
        """Tell the program's supervisor. False: it does not want it any more; the connection is forgotten."""
        assert conn.waiting is not None
        candidate, memfd = conn.waiting
        copy = conn.mirror.copy
        self._candidates.drop(candidate.offer.client, candidate.offer.offer_id)
        offer = candidate.offer
        done = self._local.is_open(offer) and self._local.paired(offer, copy.side, copy.ring_bytes, memfd)
        conn.waiting = None
        os.close(memfd)
        return done

    # ------------------------------------------------------------------------- bells

    def rang(self, client: int, message: Rang) -> None:
        """A supervisor has rung, or not."""
        conn = self._named.get((client, message.offer_id))
        if conn is None or not conn.ringing:
            return
        conn.ringing = conn.mirror.ringing = False
        if message.result == EAGAIN:  # there was no room for a byte: once more, with the credits
            conn.full = True
            self._owing[conn.mirror.slot] = conn
            return
        conn.mirror.rang(conn.number)
        conn.mirror.place(message.tid, message.fd, message.cookie)
        if conn.mirror.owes_bell:
            self.stir(conn.mirror.slot)

    def ring(self, conn: Conn) -> None:
        """Have its supervisor send the doorbell that the other host asks for, if it does."""
        if not conn.mirror.linked and not conn.peer_gone:
            return
        if conn.mirror.owes_bell and not conn.ringing and not conn.full and conn.client is not None:
            conn.number = conn.mirror.next_bell
            conn.ringing = self._local.ring(conn.client, conn.name, Bell.BYTE, conn.number)
            conn.mirror.ringing = conn.ringing

    # --------------------------------------------------------------------- its end

    def closed(self, client: int, name: int) -> None:
        """The supervisor has released it."""
        conn = self._named.get((client, name))
        if conn is not None:
            self._ends(conn)

    def _ends(self, conn: Conn) -> None:
        conn.local_gone = conn.local_gone or time.monotonic()
        conn.mirror.ends = True
        self.stir(conn.mirror.slot)

    def client_gone(self, client: int) -> None:
        """A supervisor is gone; its programs may live."""
        for key in [key for key in self._named if key[0] == client]:
            conn = self._named.pop(key)
            conn.client = None
            self.stir(conn.mirror.slot)
            if conn.waiting is not None:
                self._ends(conn)

    def on_gone(self, contact: Contact, said: frames.Gone) -> None:
        """The other monitor sends nothing more for it."""
        mirror = contact.by_id.get(said.far_id)
        conn = None if mirror is None else self._conns.get(mirror.slot)
        if mirror is None or conn is None:
            return
        self.stir(mirror.slot)
        if conn.waiting is not None:
            if said.left and conn.client is not None:
                self._local.ring(conn.client, conn.name, Bell.WHY, said.left)
            self.free(conn)
            return
        if said.left:
            self.leave(conn, said.left)
            if not conn.left:
                self.lose(conn)
            self.say_gone(conn)
            if mirror.slot in self._conns:  # one that was never linked is forgotten already
                self.free(conn)
            return
        if conn.left:
            self.free(conn)
            return
        conn.peer_gone = True
        self.say_gone(conn)
        conn.mirror.unlink()

    def free(self, conn: Conn) -> None:
        """Forget it."""
        if conn.waiting is not None:
            os.close(conn.waiting[1])
            conn.waiting = None
        mirror = conn.mirror
        del self._conns[mirror.slot]
        self.active.pop(mirror.slot, None)
        self._owing.pop(mirror.slot, None)
        del conn.contact.mirrors[mirror.slot]
        del conn.contact.by_id[mirror.far_id]
        if conn.client is not None:
            self._named.pop((conn.client, conn.name), None)
        if conn.contact.link is not None and conn.contact.link.port is not None:
            conn.contact.link.port.forget(mirror)
        mirror.copy.close()

    def leave(self, conn: Conn, why: int) -> None:
        """Back to its own TCP connection: its supervisor takes there what the other host has not got of the ring.

        `why`: `Left`. Not without a supervisor, nor while nobody knows whether the other program has heard that ours
        has switched.
        """
        if conn.left or conn.lost or conn.waiting is not None or conn.client is None or not conn.mirror.copy.may_leave:
            return
        conn.left = why
        conn.mirror.stop()
        conn.contact.left += 1
        journal.event("connection-left", host=conn.contact.peer.name, slot=conn.mirror.slot, why=Left(why).name.lower())
        self._local.ring(conn.client, conn.name, Bell.BACK, why)
        self.say_gone(conn)
        if not conn.mirror.linked:
            self.free(conn)

    def _why_back(self, conn: Conn) -> int:
        """A ring is out of our hands, or has no use: `Left`; 0: neither.

        A program that has read the other one's mark knows no reason. Where the supervisor over there has sent that,
        its monitor is about to say why (GONE); a program that goes back by itself has only its words to say so.
        """
        mirror = conn.mirror
        pumped, theirs = mirror.copy.pumped_for, mirror.theirs
        if pumped:
            return left_for(pumped)
        if mirror.copy.frozen:
            by_itself = theirs is not None and theirs.hint & abi.const.SD_HINT_LEAVING
            return Left.CALL if by_itself else 0 if mirror.linked else conn.contact.without_why
        return Left.UNUSED if mirror.linked and self._is_unused(conn, time.monotonic()) else 0

    def give_up(self, conn: Conn) -> None:
        """The other host is not coming back: who can go on by TCP does so now, whatever `back_s` says."""
        self.leave(conn, conn.contact.without_why)
        if not conn.left and not conn.peer_gone:
            self.lose(conn)

    def lose(self, conn: Conn) -> None:
        """Neither can it go back to TCP, or a program has broken its own copy: the connection ends."""
        if not conn.lost:
            conn.lost = True
            conn.mirror.stop()
            conn.mirror.lose()
            journal.warn("connection-lost", host=conn.contact.peer.name, slot=conn.mirror.slot)
            if conn.client is not None:
                self._local.ring(conn.client, conn.name, Bell.BREAK)

    def look_after(self, conn: Conn) -> None:
        """What is due for one connection, apart from its bytes."""
        mirror = conn.mirror
        if mirror.slot not in self._conns or conn.left:
            return
        why = self._why_back(conn)
        if why:
            self.leave(conn, why)
            return
        if conn.waiting is not None and mirror.linked and not self.hand_over(conn):
            self._ends(conn)
        self.ring(conn)
        if conn.peer_gone:
            mirror.settle_alone()
        if conn.local_gone and mirror.linked and mirror.all_told():
            self.say_gone(conn)
        late = conn.local_gone and not mirror.linked and time.monotonic() - conn.local_gone > self._lost_s
        if late or (conn.peer_gone and (conn.local_gone or conn.client is None)):
            self.free(conn)

    def say_gone(self, conn: Conn) -> None:
        """We send nothing more for it. The other side answers with the same, and only then its memory may go."""
        if not conn.said_gone and conn.mirror.linked and conn.contact.link is not None:
            conn.said_gone = True
            conn.contact.link.say(frames.Gone(conn.mirror.far_id, conn.left))

    @staticmethod
    def status(conn: Conn) -> dict[str, Any]:
        mirror = conn.mirror
        return {
            "peer": conn.contact.peer.name, "client": conn.client, "name": conn.name, "linked": mirror.linked,
            "out": mirror.bytes_out, "in": mirror.bytes_in, "unread": mirror.unread(),
            "credits": mirror.copy.ring_bytes - mirror.unread(), "resumes": mirror.resumes,
            "bells": list(mirror.copy.bells()), "lost": conn.lost, "heard": mirror.copy.heard,
        }  # fmt: skip

    def close(self) -> None:
        """We leave; copies stay as they are, for the next monitor."""
        for conn in self:
            self.free(conn)
