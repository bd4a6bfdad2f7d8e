# SPDX-License-Identifier: Apache-2.0
"""A client's socket to its monitor, and what has arrived and waits to be fetched."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from struct import Struct

from sdlib.wire import fds, messages
from sdlib.wire.events import Answered, Event, Paired, Part
from sdlib.wire.states import Conversation, Role

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FAILURES: Final = (OSError, EOFError, messages.ProtocolError)
"""What sending and receiving raise when the conversation is over."""
_UCRED: Final = Struct("3i")


class Channel:
    """Messages by the rules of the conversation (states.py)."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a connected socket."""
        self.sock = sock
        self._talk = Conversation()

    def owner(self) -> tuple[int, int]:
        """Pid and uid of the other end, by the kernel."""
        pid, uid, _ = _UCRED.unpack(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return pid, uid

    def send(self, message: messages.Message, fd: int = -1) -> None:
        """One message, within the socket's time limit; raises one of FAILURES."""
        self._talk.step(Role.CLIENT, messages.TYPE_OF[type(message)])
        fds.send(self.sock, messages.encode(message), fd)

    def receive(self) -> tuple[messages.Message, int]:
        """The next message and its descriptor (-1: none); raises one of FAILURES."""
        try:
            got = fds.receive(self.sock)
        except ConnectionResetError:
            # It hung up with a message of ours unread; the kernel reports that before what it had said (REJECT).
            got = fds.receive(self.sock)
        try:
            if not got.data:
                raise EOFError("it hung up")
            message = messages.decode(got.data)
            kind = messages.TYPE_OF[type(message)]
            if len(got.fds) != messages.LAYOUTS[kind].fds or got.fds_lost:
                raise messages.ProtocolError(f"{kind.name} with {len(got.fds)} descriptors")
            self._talk.step(Role.MONITOR, kind)
        except BaseException:
            fds.close_all(got.fds)
            raise
        return message, got.fds[0] if got.fds else -1


class Inbox:
    """Events that nobody has fetched yet. `fileno`: readable while there are some."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """For poll and epoll."""
        return self._wake

    def push(self, event: Event) -> None:
        """One more."""
        self._events.append(event)
        os.eventfd_write(self._wake, 1)

    def fetch(self) -> list[Event]:
        """All of them; their descriptors are the caller's."""
        events, self._events = self._events, []
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        return events

    def forget(self, offer_id: int) -> None:
        """Drop a pairing that arrived but was not fetched yet."""
        for event in [one for one in self._events if isinstance(one, Paired) and one.offer_id == offer_id]:
            self._events.remove(event)
            os.close(event.memfd)

    def close(self) -> None:
        """Descriptors in events that nobody fetched are closed."""
        for event in self._events:
            if isinstance(event, Paired | Part | Answered):
                os.close(event.memfd)
        self._events = []
        os.close(self._wake)
