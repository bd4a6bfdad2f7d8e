# SPDX-License-Identifier: Apache-2.0
"""Sending to clients that may not read: at once if there is room, else queued, in bounds.

Nothing is read from a client while something is queued for it, so what we hold for it is bounded; who lets the queue
grow to `_MAX_QUEUED` is dropped.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable

from monitor.session import TEXTS, Client
from sdlib.wire import fds, messages
from sdlib.wire.messages import Code
from sdlib.wire.states import Role

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MAX_QUEUED: Final = 256


class Outbox:
    """The sending half of the server."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        drop: Callable[[Client, str], None],
        reject: Callable[[Client, Code, str], None],
    ) -> None:
        """`drop` and `reject` end a client."""
        self._selector = selector
        self._drop = drop
        self._reject = reject

    def say(self, client: Client, message: messages.Message, fd: int = -1) -> None:
        """Send, or queue a duplicate; a client that is gone misses it. `fd` stays the caller's."""
        if client.gone:
            return
        client.talk.step(Role.MONITOR, messages.TYPE_OF[type(message)])
        data = messages.encode(message)
        if client.queued or not self._send_now(client, data, fd):
            self._enqueue(client, data, fd)

    def _send_now(self, client: Client, data: bytes, fd: int) -> bool:
        """Whether it is settled: sent, or it can't be and the client is dropped; False: no room now."""
        try:
            fds.send(client.sock, data, fd)
        except BlockingIOError:
            return False
        except OSError as error:  # ECONNRESET, EPIPE; ETOOMANYREFS, ENOBUFS: it could not be told that it is paired
            self._drop(client, error.strerror or "send failed")
        return True

    def _enqueue(self, client: Client, data: bytes, fd: int) -> None:
        """Keep a message until the client reads; nothing is read from it meanwhile."""
        if client.gone:
            return
        if len(client.queued) >= _MAX_QUEUED:
            self._reject(client, Code.TOO_SLOW, TEXTS[Code.TOO_SLOW])
            return
        try:
            copy = os.dup(fd) if fd >= 0 else -1
        except OSError as error:
            self._drop(client, error.strerror or "dup failed")
            return
        client.queued.append((data, copy))
        self._selector.modify(client.sock, selectors.EVENT_WRITE, client)

    def flush(self, client: Client) -> None:
        """Send what is queued, as far as there is room."""
        while client.queued:
            data, fd = client.queued[0]
            if not self._send_now(client, data, fd) or client.gone:
                return
            client.queued.popleft()
            if fd >= 0:
                os.close(fd)
        self._selector.modify(client.sock, selectors.EVENT_READ, client)
