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
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

from sdlib import abi
from sdlib.wire import messages, paths, segment, spawn
from sdlib.wire.channel import FAILURES, Channel, Inbox
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
from sdlib.wire.states import OfferState, offer_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OPEN_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.005
HOST_AWAY_S: Final = 0.5
"""How long to look for the host's monitor where there is nothing but its directory: it may be restarting."""
HOST_RESTARTS_S: Final = 3.0
"""The same for who has had it: systemd's 100 ms, and the start of Python on a busy host."""
_LOOK_S: Final = 0.02
_SEND_LIMIT_S: Final = 1.0


class _Retry(Exception):
    """Nobody serves at this path at this moment; a new monitor may."""


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

    def __init__(self, sock: socket.socket, path: str) -> None:
        """Takes over a connected socket; use `open`, which also greets."""
        self.path = path
        self.pid = 0
        self.alive = True
        self.max_offers = 0
        self.max_ring_bytes = 0
        self._sock = sock
        self._channel = Channel(sock)
        self._offers: dict[int, tuple[OfferState, int]] = {}  # offer id -> state, ring bytes asked for
        # Events that arrive while offer() waits must make fileno() readable too, hence a second descriptor
        # behind one epoll: the caller needs no rule about when to call events().
        self._inbox = Inbox()
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)
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
        deadline = time.monotonic() + timeout_s
        chosen = path or env.get(paths.ENV_SOCKET)
        client = cls._of_the_host(deadline, host_away_s) if chosen is None else None
        if client is not None:
            return client
        try:
            return cls._connect_or_spawn(paths.checked(chosen or paths.user_socket(env, os.geteuid())), spawn, deadline)
        except paths.UnsafePath as error:
            raise MonitorUnavailable(str(error)) from None

    @classmethod
    def _of_the_host(cls, deadline: float, away_s: float) -> MonitorClient | None:
        """The host's monitor; None: there is none, or one of another version, so the user's own has to do.

        Its directory says that there is one, even while it is restarted (the unit preserves it then). Whoever went
        to the user's own in such a moment would stay there, and meet nobody who came before or after.
        """
        patience = min(deadline, time.monotonic() + away_s)
        while os.path.isdir(os.path.dirname(paths.SYSTEM_SOCKET)):
            try:
                return cls._connect(paths.SYSTEM_SOCKET, deadline)
            except MonitorUnavailable:
                return None
            except _Retry:
                if time.monotonic() >= patience:
                    return None
            time.sleep(_LOOK_S)
        return None

    @classmethod
    def _connect_or_spawn(cls, path: str, may_spawn: bool, deadline: float) -> MonitorClient:
        """Connect; start a monitor if none answers; and so on until the deadline."""
        while True:
            try:
                return cls._connect(path, deadline)
            except _Retry as error:
                left = deadline - time.monotonic()
                if not may_spawn or left <= 0:
                    raise MonitorUnavailable(f"no monitor at {path}: {error}") from None
            try:
                spawn.spawn_monitor(path, left)
            except spawn.SpawnFailed as error:
                raise MonitorUnavailable(str(error)) from None
            time.sleep(_RETRY_S)

    @classmethod
    def _connect(cls, path: str, deadline: float) -> MonitorClient:
        """One attempt; raises _Retry when nobody serves there, MonitorUnavailable when asking again is no use."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(path)
        except (FileNotFoundError, ConnectionError) as error:
            sock.close()
            raise _Retry(error.strerror) from None
        except OSError as error:
            sock.close()
            raise MonitorUnavailable(f"{path}: {error.strerror or error}") from None
        client = cls(sock, path)
        try:
            client._check_owner()
            client._greet(deadline)
        except BaseException:
            client.close()
            raise
        return client

    def _check_owner(self) -> None:
        """Only root's or the user's own process is believed to be a monitor."""
        self.pid, uid = self._channel.owner()
        if uid not in (0, os.geteuid()):
            raise MonitorUnavailable(f"{self.path}: served by uid {uid}, which is neither root nor you")

    def _greet(self, deadline: float) -> None:
        """HELLO, WELCOME."""
        with suppress(OSError):  # a monitor that is full or leaving has said REJECT and hung up: hear it
            self._channel.send(messages.Hello(messages.PROTOCOL_VERSION, abi.const.SD_ABI_VERSION))
        try:
            self._sock.settimeout(_left(deadline))
            answer, _ = self._channel.receive()
        except (ConnectionError, EOFError) as error:
            raise _Retry(str(error)) from None  # it left as we came
        except TimeoutError:
            raise MonitorUnavailable(f"the monitor at {self.path} does not answer") from None
        except (OSError, messages.ProtocolError) as error:
            raise MonitorUnavailable(f"{self.path}: {error}") from None
        if isinstance(answer, messages.Reject):
            if answer.code == messages.Code.CLOSING:
                raise _Retry(answer.text)
            raise MonitorUnavailable(f"the monitor at {self.path} refuses us: {answer.text}")
        assert isinstance(answer, messages.Welcome)  # the table of states lets nothing else through
        self.max_offers, self.max_ring_bytes = answer.max_offers, answer.max_ring_bytes

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
        self._sock.setblocking(False)
        deadline = time.monotonic() + _SEND_LIMIT_S
        ready = select.poll()
        ready.register(self._sock, select.POLLIN | select.POLLOUT)
        while True:
            try:
                self._channel.send(message, fd)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError("it does not read") from None
            self._drain()
            ready.poll(_RETRY_S * 1000)

    def _drain(self) -> None:
        """Take in all that has arrived; raises one of FAILURES."""
        self._sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._enqueue(self._take(*self._channel.receive()))

    def _await(self, offer_id: int, deadline: float) -> Answer:
        """Receive until the answer to `offer_id` or the deadline; all else is queued for events()."""
        while True:
            self._sock.settimeout(_left(deadline))
            try:
                answer = self._take(*self._channel.receive())
            except TimeoutError:
                return Pending(offer_id)
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


def _left(deadline: float) -> float:
    """Seconds until `deadline`, but never 0, which would mean non-blocking to a Python socket."""
    return max(deadline - time.monotonic(), 0.001)
