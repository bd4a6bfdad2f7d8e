# SPDX-License-Identifier: Apache-2.0
"""The TCP connection to one other monitor: dialling, the handshake, what waits to be written, silence.

Every failure ends in `fail`: the link is down, and the host whose name sorts first dials again, soon at first.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from monitor import journal
from monitor.hosts.auth import Handshake
from monitor.hosts.config import FOR_TESTS, Config, Peer
from monitor.hosts.frames import BadPeer, Record
from monitor.hosts.link import Link, Port
from monitor.hosts.mirror import Mirror
from monitor.hosts.steady import Steadiness
from sdlib.wire.left import Left

HANDSHAKE_S: Final = 5.0
RDMA_AGAIN_S: Final = 10.0
"""How long the TCP connection may carry the rings before queue pairs are tried again."""
_BACK_OFF_S: Final = (0.0, 0.1, 0.3, 1.0, 3.0)
_READ: Final = 1 << 18


class NotYet(OSError):
    """There are no queue pairs until the device says so."""


class Wire:
    """A non-blocking socket in the monitor's selector, with what waits to be written."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector, handler: Callable[[int], None]) -> None:
        sock.setblocking(False)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._selector, self._handler = selector, handler
        self._mask = selectors.EVENT_READ
        selector.register(sock, self._mask, handler)

    def read(self) -> bytes:
        """What has arrived; b"" when nothing has. Raises OSError, also at its end."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return b""
        if not data:
            raise OSError("it hung up")
        return data

    def write(self, out: bytearray) -> bool:
        """As much as goes. True: something did."""
        sent = 0
        if out:
            with suppress(BlockingIOError):
                sent = self.sock.send(memoryview(out)[:_READ])
            del out[:sent]
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if out else 0)
        if mask != self._mask:
            self._mask = mask
            self._selector.modify(self.sock, mask, self._handler)
        return sent > 0

    def close(self) -> None:
        """Hang up."""
        self._selector.unregister(self.sock)
        self.sock.close()


class Caller:
    """Somebody who has connected and not yet proved who it is."""

    def __init__(
        self, sock: socket.socket, selector: selectors.BaseSelector, handshake: Handshake,
        known: Callable[[Caller], None], gone: Callable[[Caller], None], address: str = "",
    ) -> None:  # fmt: skip
        """`address`: of who has called us."""
        self.since = time.monotonic()
        self.address = address
        self.handshake = handshake
        self.out = bytearray(handshake.begin())
        self._known, self._gone = known, gone
        self.wire = Wire(sock, selector, self.on_ready)
        self.left = b""

    def on_ready(self, _mask: int) -> None:
        """Readable or writable."""
        try:
            self.out += self.handshake.feed(self.wire.read())
            self.wire.write(self.out)
        except (OSError, BadPeer) as error:
            self.fail(str(error))
            return
        if self.handshake.sealer is not None and not self.out:
            self._known(self)

    def fail(self, why: str) -> None:
        """It is nobody."""
        journal.warn("host-refused", host=self.handshake.peer, why=why)
        self.wire.close()
        self._gone(self)


class Contact:
    """One peer, and the link to it if there is one."""

    def __init__(
        self, config: Config, peer: Peer, selector: selectors.BaseSelector, make_port: Callable[[Contact], Port | None],
        asked: Callable[[Contact, Record], None], down: Callable[[Contact], None], stirred: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.peer = peer
        self.mirrors: dict[int, Mirror] = {}
        self.by_id: dict[bytes, Mirror] = {}
        self.unknown: dict[bytes, float] = {}
        """Connections that it holds and we do not, since when: we may hear of them yet."""
        self.link: Link | None = None
        self.down_since = self._without_since = time.monotonic()
        self.links = self.failures = self.left = self.again = 0
        """Conversations so far; calls in vain since the last; connections that have gone back to their own TCP;
        doorbells that were asked for once more."""
        self.dials = config.name < peer.name
        self._broke_without = False
        """Since connections could be on it last it has been there, and broken."""
        self.steady = Steadiness(config.hold_s, config.hold_most_s, config.steady_s)
        self._config, self._selector = config, selector
        self._make_port, self._asked, self._down, self._stirred = make_port, asked, down, stirred
        self._waits = False
        """Our device will say when there may be a queue pair."""
        self._wire: Wire | None = None
        self._caller: Caller | None = None
        self._dial_at = 0.0
        self._heard = self._pinged = self._up_since = 0.0

    @property
    def there(self) -> bool:
        """The link has the transport that it is for."""
        if self.link is None:
            return False
        return self.link.by_rdma or self._config.transport == FOR_TESTS

    @property
    def held_s(self) -> float:
        """So much longer it has to hold, as it has broken too often."""
        return self.steady.left_s(time.monotonic()) if self.there else self.steady.hold_s

    @property
    def usable(self) -> bool:
        """Connections may be on it, and new ones paired."""
        return self.there and not self.held_s

    # ------------------------------------------------------------------ beginning

    def dial(self, now: float) -> None:
        """Call, if it is time to."""
        if not self.dials or self.link is not None or self._caller is not None or now < self._dial_at:
            return
        self._dial_at = now + _BACK_OFF_S[min(self.failures, len(_BACK_OFF_S) - 1)] + 0.05
        self.failures += 1
        family = socket.AF_INET6 if ":" in self.peer.monitor[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._config.listen is not None:
                sock.bind((self._config.listen[0], 0))
            sock.connect(self.peer.monitor)
        except BlockingIOError:
            pass
        except OSError as error:
            journal.detail("host-unreachable", host=self.peer.name, why=error.strerror)
            sock.close()
            return
        handshake = Handshake(self._config.name, lambda _: self.peer.key, self.peer.name)
        self._caller = Caller(sock, self._selector, handshake, self.adopt, self._not_reached)
        with suppress(OSError):  # refused: the selector says so as well
            self._caller.wire.write(self._caller.out)

    def _not_reached(self, _caller: Caller) -> None:
        self._caller = None

    @property
    def without_s(self) -> float:
        """How long what is on rings already has been without the transport that it is for, or a link to be trusted."""
        return 0.0 if self.usable else time.monotonic() - self._without_since

    @property
    def without_why(self) -> Left:
        """What that is called."""
        return Left.UNSTEADY if self.there or self._broke_without else Left.LINK

    def adopt(self, caller: Caller) -> None:
        """It has proved that it is our peer. An older conversation is one that it has given up."""
        self._caller = None
        if self.link is not None:
            self.fail("it has called again")
        sealer = caller.handshake.sealer
        assert sealer is not None
        sock = caller.wire.sock
        self._selector.unregister(sock)
        self._wire = Wire(sock, self._selector, self.on_ready)
        self._heard = self._pinged = time.monotonic()
        self._up_since = self._heard
        port, self._waits = None, False
        try:
            port = self._make_port(self)
        except OSError as error:
            self._waits = isinstance(error, NotYet)
            # What is on rings already is carried by this connection meanwhile.
            journal.warn("no-rdma", host=self.peer.name, why=error.strerror or str(error))
        self.link = Link(self.peer.name, sealer, self.mirrors, self.by_id, port,
                         lambda record: self._asked(self, record), self._stirred)
        self.links += 1
        journal.event("host-up", host=self.peer.name, connections=len(self.mirrors))
        self._guard(lambda link: link.feed(b""))

    # -------------------------------------------------------------------- running

    def on_ready(self, mask: int) -> None:
        """The TCP connection is readable or writable."""
        if mask & selectors.EVENT_READ:
            self._guard(self._read)
        self.flush()

    def _read(self, link: Link) -> None:
        assert self._wire is not None
        data = self._wire.read()
        if data:
            self._heard = time.monotonic()
            link.feed(data)

    def guard(self, step: Callable[[Link], None]) -> None:
        """Do something with the link; what goes wrong is its end."""
        self._guard(step)

    def _guard(self, step: Callable[[Link], None]) -> None:
        if self.link is None:
            return
        try:
            step(self.link)
        except (OSError, BadPeer) as error:
            self.fail(str(error))

    def flush(self) -> bool:
        """Write what waits. True: something was."""
        if self.link is None or self._wire is None:
            return False
        try:
            return self._wire.write(self.link.stream.out)
        except OSError as error:
            self.fail(str(error))
            return False

    def tick(self, now: float) -> None:
        """Silence, dialling."""
        if self._caller is not None and now - self._caller.since > HANDSHAKE_S:
            self._caller.fail("does not answer")
        if self.link is not None:
            if now - self._heard > self._config.dead_s:
                self.fail("says nothing any more")
            elif now - self._pinged > self._config.dead_s / 4:
                self._pinged = now
                self.link.ping()
                self.flush()
            if self.there:
                self.failures = 0
            elif now - self._up_since > RDMA_AGAIN_S and not (self._waits or self.link.alone):
                self.fail("no RDMA yet: once more")
        self.dial(now)

    def fail(self, why: str) -> None:
        """The link is down."""
        usable, there = self.usable, self.there
        if there:
            self.steady.broke(time.monotonic())
        link, self.link = self.link, None
        if link is None:
            return
        journal.warn("host-down", host=self.peer.name, why=why, breaks=self.steady.breaks, hold_s=self.steady.hold_s)
        self.unknown.clear()
        link.close()
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self.down_since = time.monotonic()
        if usable:
            self._without_since = self.down_since
        self._broke_without = not usable and (there or self._broke_without)
        self._dial_at = min(self._dial_at, self.down_since)
        self._down(self)

    def close(self) -> None:
        """We leave."""
        if self._caller is not None:
            self._caller.wire.close()
            self._caller = None
        self.fail("we leave")
