# SPDX-License-Identifier: Apache-2.0
"""All connections to other hosts: pairing them, and keeping their copies equal.

The monitor's loop calls `turn` before it waits (vigil.py).  It looks at the connections that are active (conns.py), and
now and then at all those for which something may be due.  A copy whose supervisor is gone has nobody to nudge: then we
look every DEAF_S.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

from monitor import journal
from monitor.endpoint import Shape
from monitor.hosts import frames
from monitor.hosts.adapter import LOOK_S, Adapter, Device
from monitor.hosts.auth import Handshake
from monitor.hosts.config import FOR_TESTS, Config
from monitor.hosts.conns import Conn, Connections, Local
from monitor.hosts.contact import HANDSHAKE_S, Caller, Contact
from monitor.hosts.copy import Copy
from monitor.hosts.discover import find
from monitor.hosts.frames import Record
from monitor.hosts.link import Link, Port
from monitor.hosts.mirror import Mirror
from monitor.hosts.pairs import Candidates
from monitor.hosts.seek import Seeking
from monitor.hosts.vigil import Threads, Vigil, spin_s
from monitor.match import Offer
from monitor.session import OUT_OF
from sdlib.wire.left import Left
from sdlib.wire.messages import Nudge, Rang

DEAF_S: Final = 0.002
CREDIT_S: Final = 0.01
"""How long small credits may wait: a sender with a small SO_SNDBUF may wait for them."""
HELD_S: Final = 0.02
"""So often is looked whether bytes have been held back for long enough."""
_CALLERS_MAX: Final = 64
_UNKNOWN_MAX: Final = 65536
_TICK_S: Final = 0.5


def open_device(config: Config) -> Device:
    """The device that the other hosts reach; OSError."""
    from monitor.hosts import loop, verbs

    found = find(config)
    if config.device.loop == "python":
        return verbs.Device(found)
    device = loop.Device(found, config.device.library)
    device.start(spin_s(config.spin_us))
    return device


class Hub:
    """See above."""

    def __init__(self, config: Config, selector: selectors.BaseSelector, local: Local,
                 make: Callable[[], Device] | None) -> None:
        """`make` the device, as soon as there is one; None: only if the configuration says that this is a test."""
        assert make is not None or config.transport == FOR_TESTS
        self._config, self._selector, self._local = config, selector, local
        self._candidates = Candidates()
        self._conns = Connections(local, self._candidates, config.lost_s, config.unused_s)
        self._callers: set[Caller] = set()
        self._device = None if make is None else Adapter(selector, make, partial(find, config), self._lost, self._came)
        self._vigil = self._make_vigil()
        self._seeking = Seeking(config.name, config.ring, local, self._candidates, self._conns, self._joined)
        self._ticked = 0.0
        self._credit_at: float | None = None
        self._looks = self._looked_at = 0
        self._ready: set[str] = set()
        self._looks_away = False
        """We are out of descriptors, and accept nobody."""
        self.contacts = {
            name: Contact(config, peer, selector, self._port, self._asked, self._down, self._stirred)
            for name, peer in config.peers.items()
        }
        self._listener: socket.socket | None = None
        self._listened, self._deaf_why = float("-inf"), ""
        self._tick(time.monotonic(), dial=False)

    # ---------------------------------------------------------------- conversations

    def _listen(self, now: float) -> None:
        """If we can: the address may come with the device."""
        address = self._config.listen
        if address is None or self._listener is not None or now - self._listened < LOOK_S:
            return
        self._listened = now
        try:
            listener = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        except OSError as error:
            why = f"{address[0]}:{address[1]}: {os.strerror(error.errno or 0)}"
            if why != self._deaf_why:
                journal.warn("cannot-listen", why=why)
            self._deaf_why = why
            return
        self._deaf_why = ""
        listener.setblocking(False)
        self._listener = listener
        self._look_at(listener)

    def _look_at(self, listener: socket.socket) -> None:
        self._looks_away = False
        self._selector.register(listener, selectors.EVENT_READ, lambda _mask: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in OUT_OF:  # who waits would wake us for ever: until the next tick
                journal.warn("cannot-accept", error=error.strerror, callers=len(self._callers))
                self._selector.unregister(listener)
                self._looks_away = True
            return
        if len(self._callers) >= _CALLERS_MAX:
            self._make_room()
        handshake = Handshake(self._config.name, self._key_of, None)
        self._callers.add(Caller(sock, self._selector, handshake, self._known, self._callers.discard, address[0]))

    def _make_room(self) -> None:
        """Among callers: who has most of them loses its oldest. Another host has few, and an address of its own."""
        many = Counter(caller.address for caller in self._callers)
        min(self._callers, key=lambda one: (-many[one.address], one.since)).fail("too many callers")

    def _key_of(self, name: str) -> bytes | None:
        peer = self._config.peers.get(name)
        return None if peer is None else peer.key

    def _known(self, caller: Caller) -> None:
        self._callers.discard(caller)
        self.contacts[caller.handshake.peer].adopt(caller)

    def _port(self, contact: Contact) -> Port | None:
        return None if self._device is None else self._device.port(contact)

    # ------------------------------------------------------------------------ device

    def _make_vigil(self) -> Threads | Vigil:
        """Who looks, with the device that there is now."""
        if self._device is not None and self._device.threads:
            return Threads()
        return Vigil(self._device, spin_s(self._config.spin_us))

    def _joined(self) -> None:
        self._vigil.joined()

    def _lost(self, why: str, queue: int) -> int:
        """The device has said so of one queue pair, or (0) of all."""
        ended = 0
        for contact in self.contacts.values():
            port = None if contact.link is None else contact.link.port
            if port is not None and queue in (0, port.number):
                contact.fail(why)
                ended += 1
        return ended

    def _came(self) -> None:
        """There may be queue pairs again: links without one begin anew."""
        self._vigil = self._make_vigil()
        for contact in self.contacts.values():
            if contact.link is not None and contact.link.port is None:
                contact.fail("there is RDMA now")

    @property
    def _is_gone(self) -> bool:
        """There is no device: what is on rings does not wait `back_s` for another one."""
        return self._device is not None and self._device.device is None

    def _look_for_device(self, now: float) -> None:
        if self._device is None:
            return
        threads = self._device.threads
        self._device.look(now)
        if self._device.threads != threads:
            self._vigil = self._make_vigil()

    def _down(self, contact: Contact) -> None:
        self._ready.discard(contact.peer.name)
        for conn in self._conns.of(contact):
            conn.said_gone = False  # nobody knows whether it was heard
            if conn.waiting is not None or conn.left:
                self._conns.free(conn)
            elif conn.mirror.copy.frozen:
                self._conns.stir(conn.mirror.slot)  # it waits for what the other host was about to say

    # ----------------------------------------------------------------------- pairing

    def offered(self, offer: Offer, shape: Shape) -> None:
        """An offer stays open; its other end may be on another host."""
        self._seeking.offered(offer, shape, self.contacts.values())

    def _asked(self, contact: Contact, record: Record) -> None:
        match record:
            case frames.Seek():
                self._seeking.on_seek(contact, record)
            case frames.Accept():
                self._seeking.on_accept(contact, record)
            case frames.Gone():
                self._conns.on_gone(contact, record)
            case frames.Resume() if len(contact.unknown) < _UNKNOWN_MAX:
                contact.unknown.setdefault(record.far_id, time.monotonic())

    def _stirred(self, slot: int) -> None:
        """The other host has said something about it."""
        self._conns.stir(slot)

    # ------------------------------------------------------------------ supervisors

    def closed(self, client: int, name: int) -> None:
        """The supervisor has released it, or withdrawn the offer."""
        self._candidates.drop(client, name)
        self._conns.closed(client, name)

    def client_gone(self, client: int) -> None:
        """A supervisor is gone; its programs may live."""
        self._candidates.drop_client(client)
        self._conns.client_gone(client)

    def hold(self, client: int, name: int, memfd: int, ring_bytes: int, side: int) -> bool:
        """A supervisor has a copy that an earlier monitor made. False: of a host that we do not know, say."""
        if self._conns.knows(client, name):
            return False
        try:
            copy = Copy(memfd, ring_bytes, side & 1)
        except OSError as error:
            journal.warn("no-copy", why=error.strerror)
            return False
        copy.held()
        far_id = copy.far_id()
        contact = next((one for one in self.contacts.values() if self._seeking.tag(one) == far_id[:8]), None)
        if contact is None or far_id in contact.by_id:
            copy.close()
            return contact is not None
        contact.unknown.pop(far_id, None)
        conn = self._conns.add(contact, far_id, copy, client, name)
        self._vigil.joined()
        contact.guard(lambda link: link.introduce(conn.mirror, reply=1))
        return True

    def heard(self, client: int, message: Nudge | Rang) -> None:
        """A program has news, which `turn` looks for; or a supervisor has rung, or not."""
        if isinstance(message, Nudge):
            self._conns.stir_named(client, message.offer_id)
            self._vigil.stirred()
        else:
            self._conns.rang(client, message)

    # ------------------------------------------------------------------------- turns

    def away(self) -> AbstractContextManager[None]:
        """While the monitor's loop waits."""
        return nullcontext() if self._device is None else self._device.away()

    def turn(self) -> float:
        """Everything that can be done now; how long the loop may sleep then, in seconds."""
        self._looks += 1
        now = time.monotonic()
        due = now - self._ticked >= _TICK_S
        if due or any(one.link is None and one.dials for one in self.contacts.values()):
            self._tick(now)
        credit = self._credit_at is not None and now >= self._credit_at
        if due:
            self._conns.stir_due(now)
        if due or credit:
            self._credit_at = None
            self._conns.stir_owing()
        found, active = self._pass(idle=due or credit)
        moved = self._conns.count(active)
        mirrors = [conn.mirror for conn in active]
        again = self._vigil.looked(found or moved > 0, moved, mirrors)
        if again == 0.0 and self._vigil.armed and not self._news(mirrors):
            again = self._vigil.looked(False, 0, mirrors)
        self._conns.rest(active, all_armed=again is None)
        if self._conns.owing and self._credit_at is None:
            self._credit_at = now + CREDIT_S
        if again is not None or self._conns.stirred_since(active):
            return again or 0.0
        nap = self._nap()
        return nap if self._credit_at is None else min(nap, max(0.0, self._credit_at - now))

    def _news(self, mirrors: list[Mirror]) -> bool:
        """The look behind arming [W1], without a pass: it is in vain, nearly always."""
        return (self._device is not None and self._device.poll()) or any(mirror.news() for mirror in mirrors)

    def _nap(self) -> float:
        if any(conn.deaf for conn in self._conns.active.values()):
            return DEAF_S
        if any(conn.mirror.holds for conn in self._conns.active.values()):
            return HELD_S
        if any(one.link is None and one.dials for one in self.contacts.values()):
            return 0.05
        return _TICK_S

    def _pass(self, *, idle: bool) -> tuple[bool, list[Conn]]:
        """Whether there was anything, and which connections were looked at."""
        busy = self._device.poll() if self._device is not None else False
        active = list(self._conns.active.values())
        self._looked_at += len(active)
        mirrors: dict[str, list[Mirror]] = {}
        for conn in active:
            self._conns.ring(conn)  # a program over there sleeps until then
            mirrors.setdefault(conn.contact.peer.name, []).append(conn.mirror)
        for name, contact in self.contacts.items():
            if contact.link is not None:
                busy |= self._serve(contact, contact.link, mirrors.get(name, []), idle)
        for conn in active:
            self._conns.look_after(conn)
        return busy, self._conns.alive(active)

    def _serve(self, contact: Contact, link: Link, mirrors: list[Mirror], idle: bool) -> bool:
        if contact.usable and contact.peer.name not in self._ready:
            self._ready.add(contact.peer.name)
            self._seeking.usable(contact, link)
        busy = False

        def pump(link: Link) -> None:
            nonlocal busy
            busy, broken = link.pump(mirrors, idle=idle)
            for mirror in broken:
                self._conns.lose(self._conns.at(mirror.slot))
                self._conns.say_gone(self._conns.at(mirror.slot))

        contact.guard(pump)
        return contact.flush() or busy

    def _tick(self, now: float, *, dial: bool = True) -> None:
        self._ticked = now
        self._listen(now)
        self._look_for_device(now)
        if not dial:
            return
        if self._looks_away and self._listener is not None:
            self._look_at(self._listener)
        for contact in self.contacts.values():
            contact.tick(now)
            if contact.without_s > self._config.back_s or (self._is_gone and not contact.usable):
                for conn in self._conns.of(contact):
                    self._conns.leave(conn, contact.without_why)
            for far_id in [one for one, since in contact.unknown.items() if now - since > self._config.back_s]:
                del contact.unknown[far_id]
                contact.guard(lambda link, one=far_id: link.say(frames.Gone(one, Left.LINK)))  # type: ignore[misc]
            if contact.link is None and now - contact.down_since > self._config.lost_s:
                for conn in self._conns.of(contact):
                    self._conns.give_up(conn)
        for caller in [late for late in self._callers if now - late.since > HANDSHAKE_S]:
            caller.fail("does not say who it is")

    # ---------------------------------------------------------------------- the rest

    def status(self) -> dict[str, Any]:
        """For sdctl."""
        return {
            "name": self._config.name, "transport": self._config.transport,
            "device": None if self._device is None else self._device.status(),
            "rdma": {} if self._device is None else self._device.status_beside(), "deaf": self._deaf_why,
            "peers": [self._peer(contact) for contact in self.contacts.values()],
            "connections": [self._conns.status(conn) for conn in self._conns],
            "candidates": len(self._candidates), "looks": self._looks,
            "looked_at": self._looked_at, "active": len(self._conns.active),
        }  # fmt: skip

    @staticmethod
    def _peer(contact: Contact) -> dict[str, Any]:
        link = contact.link
        return {
            "name": contact.peer.name, "up": link is not None, "rdma": link is not None and link.by_rdma,
            "links": contact.links, "left": contact.left, "again": contact.again,
            "breaks": contact.steady.breaks, "held_s": round(contact.held_s, 1),
            "queued": 0 if link is None else len(link.stream.out),
            "port": None if link is None or link.port is None else link.port.status(),
        }  # fmt: skip

    def _sockets(self) -> Iterator[Callable[[], None]]:
        for contact in self.contacts.values():
            yield contact.close
        for caller in list(self._callers):
            yield caller.wire.close
        if self._listener is not None:
            yield self._listener.close

    def close(self) -> None:
        """We leave; copies stay as they are, for the next monitor."""
        if self._device is not None:
            self._device.stop()
        for close in self._sockets():
            close()
        self._conns.close()
