# SPDX-License-Identifier: Apache-2.0
"""The monitor's event loop: one thread, non-blocking sockets, every offer answered before the next is read.

A client is whoever connects, its identity is SO_PEERCRED and nothing else, and it is assumed to be hostile:

  - it may say only what the table in sdlib/wire/states.py lets it; anything else ends it with REJECT;
  - it gets at most `_TURN` messages per round, so that a flood cannot starve the others;
  - answers that it does not read are queued in bounds, and nothing is read from it meanwhile (outbox.py);
  - descriptors that it sends are closed before its next message is looked at, on every path.

SIGHUP (or sdctl reload) has all clients read their policies again. SIGTERM (or sdctl drain) ends us in order:
nothing more is read, answers that wait are sent, and everybody is told to come again, to whoever serves the path next.

A client that goes (or is dropped) takes its open offers with it and nothing else: pairs that were made live without us.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence

from monitor import endpoint, journal, service
from monitor.answers import Answers
from monitor.networks import Networks, Pair
from monitor.outbox import Outbox
from monitor.pairing import Pairing
from monitor.session import OUT_OF, TEXTS, Client, Limits, Name
from sdlib import abi
from sdlib.wire import fds, messages
from sdlib.wire.messages import Code, ProtocolError, Query
from sdlib.wire.states import Role, State

TYPE_CHECKING = False
if TYPE_CHECKING:  # most monitors know no other host
    from typing import Any, Final

    from monitor.hosts.hub import Hub
    from monitor.metrics import Metrics

_TURN: Final = 32
_GREETING_LIMIT_S: Final = 5.0
_ACCEPT_PAUSE_S: Final = 0.1
_DRAIN_LIMIT_S: Final = 2.0


class Server:
    """Serves one listening socket until told to stop, or until idle for long enough."""

    def __init__(
        self, listener: socket.socket, name: Name, limits: Limits, idle_exit_s: float | None,
        pairs: frozenset[frozenset[int]] = frozenset(), networks: Sequence[Pair] = (),
        hosts: Callable[[Server], Hub | None] | None = None,
    ) -> None:  # fmt: skip
        """`hosts` makes what talks to other hosts' monitors."""
        self._listener = listener
        self._name = name
        self._limits = limits
        self._idle_exit_s = idle_exit_s
        self._check_s = max(name.check_s, 0.05)
        self._clients: dict[int, Client] = {}
        self._per_uid: Counter[int] = Counter()
        self._greeting: dict[int, Client] = {}
        self._numbers = 0
        self._started = time.time()
        self._reload = False
        self.selector = selectors.DefaultSelector()
        self._outbox = Outbox(self.selector, self._drop, self._reject)
        self._networks = Networks(networks)
        self.pairing = Pairing(self._clients, self._outbox, limits, pairs, self._networks)
        orders = {Query.RELOAD: self.reload, Query.DRAIN: self._drain_soon}
        self._answers = Answers(self._clients, self._outbox, self._drop, self.status, orders)
        self.gather = self._answers.gather
        self._stop = ""
        self._accept_again: float | None = None
        self._idle_since = self._checked = time.monotonic()
        self.metrics: Metrics | None = None
        self._hosts = self.pairing.hosts = None if hosts is None else hosts(self)

    # --------------------------------------------------------------------- loop

    def run(self) -> str:
        """Serve; returns why it ended: "signal", "idle" or "socket-lost"."""
        wake_r, wake_w = socket.socketpair()
        wake_r.setblocking(False)
        wake_w.setblocking(False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whoever started us may have blocked what we rely on
        signal.set_wakeup_fd(wake_w.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_hangup)
        endpoint.install_close_timer()
        self._listener.setblocking(False)
        self.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self.selector.register(wake_r, selectors.EVENT_READ, lambda _mask: _drain(wake_r))
        service.notify("READY=1")
        while not self._stop:
            pause = self._timeout() if self._hosts is None else min(self._hosts.turn(), self._timeout())
            for key, mask in self._wait(pause):
                if isinstance(key.data, Client):
                    self._serve(key.data, mask)
                else:
                    key.data(mask)
            self._periodic()
        self._leave()
        return self._stop

    def _wait(self, pause: float) -> list[tuple[selectors.SelectorKey, int]]:
        if self._hosts is None:
            return self.selector.select(pause)
        with self._hosts.away():
            return self.selector.select(pause)

    def _on_hangup(self, _number: int, _frame: object) -> None:
        self._reload = True

    def reload(self) -> None:
        """Have all clients read their policies again, and look anew where namespaces are."""
        self._networks.refresh()
        service.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        ready = [client for client in self._clients.values() if client.talk.state is State.READY]
        for client in ready:
            self._outbox.say(client, messages.Reload())
        journal.event("reload", clients=len(ready))
        service.notify("READY=1")

    def _drain_soon(self) -> None:
        self._stop = self._stop or "drained"

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stop = "signal"

    def _timeout(self) -> float:
        """Seconds until something is due without anybody speaking."""
        now = time.monotonic()
        due = self._checked + self._check_s
        if self._idle_exit_s is not None and not self._clients:
            due = min(due, self._idle_since + self._idle_exit_s)
        if self._greeting:
            due = min(due, min(client.since for client in self._greeting.values()) + _GREETING_LIMIT_S)
        if self._accept_again is not None:
            due = min(due, self._accept_again)
        if (asked := self._answers.due()) is not None:
            due = min(due, asked)
        return max(due - now, 0.0)

    def _periodic(self) -> None:
        """What is due: reloading, greetings overdue, accepting again, our socket's name, idleness."""
        now = time.monotonic()
        if self._reload:
            self._reload = False
            self.reload()
        self._answers.finish(now)
        for client in [late for late in self._greeting.values() if now - late.since >= _GREETING_LIMIT_S]:
            self._reject(client, Code.PROTOCOL, "no HELLO")
        if self._accept_again is not None and now >= self._accept_again:
            self._accept_again = None
            self.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        if now - self._checked >= self._check_s:
            self._checked = now
            if not self._name.is_ours():
                self._stop = self._stop or "socket-lost"
        if self._idle_exit_s is not None and not self._clients and now - self._idle_since >= self._idle_exit_s:
            self._accept()  # somebody may have come at this very moment
            if not self._clients:
                self._stop = self._stop or "idle"

    def _leave(self) -> None:
        """Take the name away, then tell those who came before that was seen: they will come again, to a new monitor."""
        if self._hosts is not None:
            self._hosts.close()
        if self.metrics is not None:
            self.metrics.close()
        service.notify("STOPPING=1")
        if self._name.is_ours():
            os.unlink(self._name.path)
        data = messages.encode(messages.Reject(Code.CLOSING, 0, TEXTS[Code.CLOSING]))
        while True:
            try:
                late, _ = self._listener.accept()
            except OSError:
                break
            with contextlib.suppress(OSError):
                fds.send(late, data)
            late.close()
        self._listener.close()
        self._drain_answers()
        for client in tuple(self._clients.values()):
            self._reject(client, Code.CLOSING, TEXTS[Code.CLOSING])

    def _drain_answers(self) -> None:
        """Send what waits to be read: an end that has been told of its pairing must not be left by the other."""
        deadline = time.monotonic() + _DRAIN_LIMIT_S
        poll = select.poll()
        while (left := deadline - time.monotonic()) > 0:
            behind = [client for client in self._clients.values() if client.queued]
            if not behind:
                return
            for client in behind:
                poll.register(client.sock, select.POLLOUT)
            poll.poll(left * 1000)
            for client in behind:
                poll.unregister(client.sock)
                self._outbox.flush(client)

    # ------------------------------------------------------------------ clients

    def _accept(self, _mask: int = 0) -> None:
        """Take new clients in."""
        for _ in range(_TURN):
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno in OUT_OF:
                    self._pause_accepting(error)
                return
            sock.setblocking(False)
            self._numbers += 1
            client = Client(self._numbers, sock)
            self._clients[client.number] = self._greeting[client.number] = client
            self._per_uid[client.uid] += 1
            self.selector.register(sock, selectors.EVENT_READ, client)
            full = len(self._clients) > self._limits.clients or self._per_uid[client.uid] > self._limits.clients_per_uid
            if full:
                self._reject(client, Code.TOO_MANY_CLIENTS, TEXTS[Code.TOO_MANY_CLIENTS])

    def _pause_accepting(self, error: OSError) -> None:
        """Out of descriptors: those who wait in the backlog would wake us for ever, so look away for a moment."""
        if self._accept_again is None:
            journal.warn("cannot-accept", error=error.strerror, clients=len(self._clients))
            self.selector.unregister(self._listener)
            self._accept_again = time.monotonic() + _ACCEPT_PAUSE_S

    def _drop(self, client: Client, reason: str) -> None:
        """Forget a client and its offers; harmless if it is gone already."""
        if client.gone:
            return
        client.gone = True
        self.selector.unregister(client.sock)
        client.sock.close()
        fds.close_all(tuple(fd for _, fd in client.queued if fd >= 0))
        client.queued.clear()
        del self._clients[client.number]
        self._greeting.pop(client.number, None)
        self._per_uid[client.uid] -= 1
        if not self._per_uid[client.uid]:
            del self._per_uid[client.uid]
        offers = self.pairing.drop_client(client.number)
        self._answers.drop_client(client.number)
        self._idle_since = time.monotonic()
        journal.detail("client-gone", client=client.number, pid=client.pid, uid=client.uid, why=reason, offers=offers)

    def _reject(self, client: Client, code: Code, text: str, detail: int = 0) -> None:
        """Say why, if it can still hear it, and hang up."""
        if code is not Code.CLOSING:
            journal.warn("client-rejected", pid=client.pid, uid=client.uid, code=code.name, why=text)
        with contextlib.suppress(OSError):
            fds.send(client.sock, messages.encode(messages.Reject(code, detail, text)))
        self._drop(client, text)

    # ----------------------------------------------------------------- messages

    def _serve(self, client: Client, mask: int) -> None:
        """Its turn: first what we owe it, then up to `_TURN` messages."""
        if mask & selectors.EVENT_WRITE and not client.gone:
            self._outbox.flush(client)
        for _ in range(_TURN):
            if client.gone or client.queued:
                return
            try:
                datagram = fds.receive(client.sock)
            except BlockingIOError:
                return
            except OSError as error:
                self._drop(client, error.strerror or "receive failed")
                return
            if not datagram.data and not datagram.fds:
                self._drop(client, "hung up")
                return
            self._heed(client, datagram)

    def _heed(self, client: Client, datagram: fds.Datagram) -> None:
        """One datagram; its descriptors are closed when this returns."""
        left = list(datagram.fds)
        try:
            message = messages.decode(datagram.data)
            kind = messages.TYPE_OF[type(message)]
            client.talk.step(Role.CLIENT, kind)
            if isinstance(message, messages.Offer):
                fd = left.pop() if len(left) == 1 and not datagram.fds_lost else -1
                self.pairing.on_offer(client, message, fd)
            elif len(left) != messages.LAYOUTS[kind].fds or datagram.fds_lost:
                raise ProtocolError("another number of descriptors than the message has")
            else:
                self._act(client, message, left)
        except ProtocolError as error:
            self._reject(client, Code.PROTOCOL, str(error))
        finally:
            for fd in left:
                endpoint.discard(fd)

    def _act(self, client: Client, message: messages.Message, left: list[int]) -> None:
        """What a client may say beside offers; the descriptors in `left` are closed afterwards."""
        match message:
            case messages.Hello():
                self._on_hello(client, message)
            case messages.Withdraw():
                self.pairing.on_withdraw(client, message)
            case messages.Hold():
                self.pairing.on_hold(client, message, left[0])
            case messages.Release():
                self.pairing.on_release(client, message)
            case messages.Nudge() | messages.Rang():
                self.pairing.heard(client, message)
            case messages.Tell():
                self._answers.on_tell(client, message, left[0])
            case messages.Question():
                self._answers.on_query(client, message)

    def _on_hello(self, client: Client, hello: messages.Hello) -> None:
        """Versions must be the same; the refusal names both."""
        self._greeting.pop(client.number, None)
        for what, ours, theirs in (
            ("protocol", messages.PROTOCOL_VERSION, hello.protocol),
            ("ABI", abi.const.SD_ABI_VERSION, hello.abi),
        ):
            if ours != theirs:
                text = f"this monitor speaks {what} version {ours}, the client {theirs}; restart the older one"
                self._reject(client, Code.VERSION, text, ours)
                return
        limits = self._limits
        version = (messages.PROTOCOL_VERSION, abi.const.SD_ABI_VERSION)
        self._outbox.say(client, messages.Welcome(*version, limits.offers_per_client, limits.ring_bytes))

    def status(self, uid: int | None) -> dict[str, Any]:
        """About one user's clients (None: all)."""
        clients = [client for client in self._clients.values() if uid in (None, client.uid)]
        ledger = self.pairing.ledger
        memory = {str(owner): size for owner, size in ledger.of_uid.items() if size and uid in (None, owner)}
        return {
            "pid": os.getpid(), "uid": os.geteuid(), "socket": self._name.path, "started": round(self._started, 3),
            "protocol": messages.PROTOCOL_VERSION, "abi": abi.const.SD_ABI_VERSION, "limits": self._limits._asdict(),
            "clients": [{"pid": client.pid, "uid": client.uid} for client in clients],
            "offers_open": self.pairing.offers_open, "segments": len(ledger), "memory": ledger.total,
            "memory_by_user": memory, "counts": dict(self.pairing.counts),
            "hosts": None if self._hosts is None else self._hosts.status(),
        }  # fmt: skip


def _drain(sock: socket.socket) -> None:
    """Eat the wake-up bytes of signals; their handlers have run."""
    with contextlib.suppress(BlockingIOError):
        sock.recv(256)
