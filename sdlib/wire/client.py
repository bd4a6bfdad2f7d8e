# SPDX-License-Identifier: Apache-2.0
"""`MonitorClient`: how the supervisor offers the ends of connections to the monitor.

Synchronous where it is cheap: the monitor answers every OFFER at once, so the second of two ends learns in that very
call that it is paired, and the first one through `events()`. Nothing the monitor says is trusted: an answer out of
order, an unsealed memfd or a wrong side ends the conversation (fail open), never the caller.

Life of an instance: open() -> offer()/withdraw()/events() ... -> `alive` turns False, all open offers come back in a
Lost -> close(), and open() a new one later. Not for use by several threads at a time.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Mapping
from contextlib import suppress

from sdlib.wire import messages, segment
from sdlib.wire.channel import FAILURES, Inbox
from sdlib.wire.events import (
    Answer,
    Answered,
    Asked,
    Event,
    Lost,
    MonitorUnavailable,
    Paired,
    Part,
    Pending,
    Refused,
    Reload,
    Ring,
)
from sdlib.wire.reach import HOST_AWAY_S, Reached, left, reach
from sdlib.wire.states import OfferState, offer_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OPEN_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.005
_SEND_LIMIT_S: Final = 1.0


def _as_event(
    message: messages.Reload | messages.Ask | messages.Part | messages.Answer | messages.Ring, fd: int
) -> Event:
    """What is not about an offer."""
    if isinstance(message, messages.Ask):
        return Asked(message.ask_id, message.what)
    if isinstance(message, messages.Part):
        return Part(message.pid, message.uid, fd)
    if isinstance(message, messages.Answer):
        return Answered(message.code, message.missing, fd)
    if isinstance(message, messages.Ring):
        return Ring(message.offer_id, message.what, message.number)
    return Reload()


class MonitorClient:
    """One conversation with a monitor."""

    def __init__(self, reached: Reached) -> None:
        """Takes over a conversation that has begun; use `open`."""
        self.path, self.pid = reached.path, reached.pid
        self.alive = True
        self.max_offers, self.max_ring_bytes = reached.max_offers, reached.max_ring_bytes
        self._channel = reached.channel
        self._sock = reached.channel.sock
        self._sock.setblocking(False)
        self._arrived = select.poll()
        self._arrived.register(self._sock, select.POLLIN)
        self._offers: dict[int, tuple[OfferState, int]] = {}  # offer id -> state, ring bytes asked for
        # Events that arrive while offer() waits must make fileno() readable too, hence a second descriptor
        # behind one epoll: the caller needs no rule about when to call events().
        self._inbox = Inbox()
        self._epoll = select.epoll()
        self._epoll.register(self._sock, select.EPOLLIN)
        self._epoll.register(self._inbox.fileno(), select.EPOLLIN)

    # ------------------------------------------------------------------ opening

    @classmethod
    def open(
        cls,
        path: str | None = None,
        *,
        spawn: bool = True,
        timeout_s: float = OPEN_TIMEOUT_S,
        host_away_s: float = HOST_AWAY_S,
        env: Mapping[str, str] = os.environ,
    ) -> MonitorClient:
        """Connect to the monitor at `path`, or to the system-wide or the user's own, which is started if need be.

        Retries for up to `timeout_s` seconds, because a monitor may leave when idle at this very moment. Raises
        MonitorUnavailable: none there (and `spawn` is False), other version, somebody else's, cannot be started.
        """
        return cls(reach(path, spawn, time.monotonic() + timeout_s, host_away_s, env))

    # -------------------------------------------------------------------- using

    def fileno(self) -> int:
        """Readable (level-triggered, for poll and epoll) when events() has something to say."""
        return self._epoll.fileno()

    def offer(self, sock_fd: int, offer_id: int, ring_bytes: int, timeout_s: float) -> Answer:
        """Offer the connection that `sock_fd` (a TCP socket; it stays the caller's) is one end of.

        `offer_id` is any u64 that names no open offer, `sock_fd` an open descriptor (else ValueError). Waits at most
        `timeout_s` seconds for the answer, Pending after that. Raises MonitorUnavailable when the monitor is gone; a
        Lost with the earlier offers follows by events().
        """
        if offer_id in self._offers or not 0 <= offer_id < 1 << 64:
            raise ValueError(f"offer {offer_id} is still open or no u64")
        if not self.alive:
            raise MonitorUnavailable("the monitor is gone")
        deadline = time.monotonic() + timeout_s
        try:
            self._send_and_listen(messages.Offer(offer_id, ring_bytes), sock_fd)
            self._offers[offer_id] = (OfferState.ASKED, ring_bytes)
            return self._await(offer_id, deadline)
        except FAILURES as error:
            if isinstance(error, OSError) and error.errno == errno.EBADF:
                raise ValueError(f"{sock_fd} is no open descriptor") from None
            if isinstance(error, OSError) and error.errno == errno.ETOOMANYREFS:  # see unix(7)
                return Refused("too many descriptors of this user are in flight", messages.Code.RESOURCES)
            self._offers.pop(offer_id, None)
            self._die(str(error))
            raise MonitorUnavailable(f"the monitor is gone: {error}") from None

    def answered(self, offer_id: int) -> bool:
        """Has the monitor answered that offer, if only with Pending? Until then it may not even have read it."""
        state, _ = self._offers.get(offer_id, (None, 0))
        return state is not OfferState.ASKED

    def withdraw(self, offer_id: int) -> None:
        """Close an open offer; nothing more is heard of it, also if its pairing is on the way. Unknown ids are ignored.

        Its id may be used again once the monitor has confirmed, so better never.
        """
        self._inbox.forget(offer_id)
        if offer_id not in self._offers or not self.alive:
            return
        try:
            self._advance(offer_id, messages.Type.WITHDRAW)
            self._send_and_listen(messages.Withdraw(offer_id))
        except FAILURES as error:
            self._die(str(error))

    def hold(self, offer_id: int, memfd: int, side: int = 0, *, far: bool = False) -> None:
        """Say that a segment of an earlier monitor is still in use; `memfd` stays the caller's."""
        self._say(messages.Hold(offer_id, side, int(far)), memfd)

    def nudge(self, offer_id: int) -> None:
        """Say that there is news in a far segment."""
        self._say(messages.Nudge(offer_id))

    def rang(self, offer_id: int, result: int, place: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Answer a Ring: 0 or an errno, and where the socket is: whose, its cookie, which descriptor."""
        self._say(messages.Rang(offer_id, result, *place))

    def release(self, offer_id: int) -> None:
        """Say that the segment of this offer is no longer in use."""
        self._say(messages.Release(offer_id))

    def tell(self, ask_id: int, memfd: int) -> None:
        """Answer an Asked with a memfd of JSON, which stays the caller's."""
        self._say(messages.Tell(ask_id), memfd)

    def query(self, what: messages.Query) -> None:
        """Ask the monitor; Parts and one Answered follow by events()."""
        self._say(messages.Question(what))

    def _say(self, message: messages.Message, fd: int = -1) -> None:
        """Send something that has no answer; a monitor that is gone misses it."""
        if not self.alive:
            return
        try:
            self._send_and_listen(message, fd)
        except FAILURES as error:
            self._die(str(error))

    def events(self) -> list[Event]:
        """What happened to earlier offers, and what is asked of us; never blocks."""
        try:
            if self.alive:
                self._drain()
        except FAILURES as error:
            self._die(str(error))
        return self._inbox.fetch()

    def close(self) -> None:
        """Hang up; the monitor forgets the open offers. Memfds in events that nobody fetched are closed."""
        self.alive = False
        if not self._epoll.closed:
            self._sock.close()
            self._epoll.close()
            self._inbox.close()

    # ----------------------------------------------------------------- messages

    def _send_and_listen(self, message: messages.Message, fd: int = -1) -> None:
        """Send; while there is no room, read: the monitor reads nothing from a client that doesn't read its answers."""
        deadline = 0.0
        while True:
            try:
                self._channel.send(message, fd)
                return
            except BlockingIOError:
                deadline = deadline or time.monotonic() + _SEND_LIMIT_S
                if time.monotonic() >= deadline:
                    raise TimeoutError("it does not read") from None
            self._drain()
            ready = select.poll()
            ready.register(self._sock, select.POLLIN | select.POLLOUT)
            ready.poll(_RETRY_S * 1000)

    def _drain(self) -> None:
        """Take in all that has arrived; raises one of FAILURES."""
        with suppress(BlockingIOError):
            while True:
                self._enqueue(self._take(*self._channel.receive()))

    def _await(self, offer_id: int, deadline: float) -> Answer:
        """Receive until the answer to `offer_id` or the deadline; all else is queued for events()."""
        while True:
            if not self._arrived.poll(left(deadline) * 1000):
                return Pending(offer_id)
            try:
                answer = self._take(*self._channel.receive())
            except BlockingIOError:
                continue
            if answer is not None and answer[0] == offer_id:
                return answer[1]
            self._enqueue(answer)

    def _advance(self, offer_id: int, kind: messages.Type) -> OfferState | None:
        """Move an offer by one message; returns the state it was in."""
        before, ring_bytes = self._offers.get(offer_id, (None, 0))
        after = offer_step(before, kind)
        if after is None:
            del self._offers[offer_id]
        else:
            self._offers[offer_id] = (after, ring_bytes)
        return before

    def _take(self, message: messages.Message, fd: int) -> tuple[int, Answer] | None:
        """What a message means for its offer; None if for nothing. Owns `fd`. Raises ProtocolError."""
        if isinstance(message, messages.Paired):
            return self._take_paired(message, fd)
        if isinstance(message, messages.Reload | messages.Ask | messages.Part | messages.Answer | messages.Ring):
            self._inbox.push(_as_event(message, fd))
            return None
        if isinstance(message, messages.Reject):
            raise messages.ProtocolError(f"it threw us out: {message.text}")
        assert isinstance(message, messages.Pending | messages.Refused | messages.Withdrawn)  # by the table of states
        before = self._advance(message.offer_id, messages.TYPE_OF[type(message)])
        if before is OfferState.LEAVING:
            return None
        if isinstance(message, messages.Refused):
            return message.offer_id, Refused(message.text, message.code)
        return message.offer_id, Pending(message.offer_id)

    def _take_paired(self, message: messages.Paired, fd: int) -> tuple[int, Answer] | None:
        """A pairing: the memfd is looked at before anybody maps it."""
        _, asked = self._offers.get(message.offer_id, (None, 0))
        try:
            before = self._advance(message.offer_id, messages.Type.PAIRED)
            if before is not OfferState.LEAVING:
                wrong = "an impossible place" if message.far > 1 else None
                wrong = wrong or segment.wrong_numbers(message.side, message.ring_bytes, asked)
                wrong = wrong or segment.check_memfd(fd, message.ring_bytes)
                if wrong:
                    raise messages.ProtocolError(wrong)
        except messages.ProtocolError:
            os.close(fd)
            raise
        if before is OfferState.LEAVING:
            os.close(fd)
            return None
        return message.offer_id, Paired(message.offer_id, message.side, fd, bool(message.far), message.tree)

    # ------------------------------------------------------------------- events

    def _enqueue(self, answer: tuple[int, Answer] | None) -> None:
        """Keep an answer that nobody waits for; a late Pending is no news."""
        if answer is None or isinstance(answer[1], Pending):
            return
        if isinstance(answer[1], Refused):
            self._inbox.push(Lost((answer[0],), answer[1].reason, answer[1].code))
        else:
            self._inbox.push(answer[1])

    def _die(self, reason: str) -> None:
        """The monitor is gone or not to be believed: hang up, and say what is lost (once)."""
        if not self.alive:
            return
        self.alive = False
        self._epoll.unregister(self._sock)
        self._sock.close()
        waiting = tuple(key for key, (state, _) in self._offers.items() if state is not OfferState.LEAVING)
        self._offers.clear()
        self._inbox.push(Lost(waiting, reason))
