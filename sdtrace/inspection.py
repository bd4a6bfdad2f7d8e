# SPDX-License-Identifier: Apache-2.0
"""What goes on in the tree, for sdss, sdstat and others: the interface of docs/observing.md.

A client is sent one document and then hung up on; nothing is read. It must be the tree's own user or root, by the
kernel's word. A document is sent to everybody who asks until it is 50 ms old, or twenty times as old as it took to
build: however often they ask, a twentieth of the supervisor's time is all that they get: it belongs to the programs.
The first document is not counted: it takes long for what it imports.
Sending never waits; a client that does not read is dropped.

The name appears by rename, after listen(): a name that refuses a connection is dead, and may be removed by anybody.
"""

from __future__ import annotations

import os
import select
import socket
import syslog
import time
from collections.abc import Callable
from contextlib import suppress

from sdlib.wire import paths, trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_FRESH_S: Final = 0.05
_SHARE: Final = 20
_PATIENCE_S: Final = 5.0
_CLIENTS_MAX: Final = 16
_BACKLOG: Final = 16


class Inspection:
    """The listening socket and those who are being answered."""

    def __init__(self, document: Callable[[], dict[str, Any]]) -> None:
        """`document` gives the content of an answer."""
        self._document = document
        self._epoll = select.epoll()
        self._listener: socket.socket | None = None
        self._path = ""
        self._clients: dict[int, tuple[socket.socket, memoryview, float]] = {}
        self._text = b""
        self._stale_at = 0.0

    def fileno(self) -> int:
        """Readable when events() has something to do."""
        return self._epoll.fileno()

    def open(self) -> None:
        """Listen. Without a place for the socket the tree simply cannot be looked at."""
        try:
            folder = paths.runtime_dir(os.environ, os.geteuid())
            self._listen(folder, paths.checked(f"{folder}/{trees.socket_name(os.getpid())}"))
            remove_dead(folder, trees.socket_name("*"), socket.SOCK_STREAM, self._path)
        except (OSError, paths.UnsafePath) as error:
            syslog.syslog(syslog.LOG_WARNING, f"cannot be looked at: {error}")

    def _listen(self, folder: str, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        beginning = f"{folder}/.{os.getpid()}.new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(beginning)
            listener.bind(beginning)  # umask is 077 (launch/spawn.c), the directory the user's own
            listener.listen(_BACKLOG)
            os.rename(beginning, path)
        except OSError:
            listener.close()
            raise
        self._listener, self._path = listener, path
        self._epoll.register(listener, select.EPOLLIN)

    def events(self) -> None:
        """Whatever can be done at once."""
        for fd, _ in self._epoll.poll(0):
            if self._listener is not None and fd == self._listener.fileno():
                for _ in range(_BACKLOG):
                    if not self._accept(self._listener):
                        break
            else:
                self._send(fd)

    def _accept(self, listener: socket.socket) -> bool:
        """Answer one client; False: there is none."""
        try:
            client, _ = listener.accept()
        except OSError:
            return False
        client.setblocking(False)
        self._drop_slow()
        if trees.peer_of(client)[1] not in (0, os.geteuid()) or len(self._clients) >= _CLIENTS_MAX:
            client.close()
        else:
            self._clients[client.fileno()] = (client, memoryview(self._current()), time.monotonic())
            self._send(client.fileno())
        return True

    def _current(self) -> bytes:
        begin = time.monotonic()
        if not self._text or begin >= self._stale_at:
            import json

            share = _SHARE if self._text else 0  # the first one takes long for what it imports
            self._text = json.dumps(self._document(), separators=(",", ":")).encode() + b"\n"
            end = time.monotonic()
            self._stale_at = end + max(_FRESH_S, share * (end - begin))
        return self._text

    def _send(self, fd: int) -> None:
        client, rest, since = self._clients[fd]
        try:
            rest = rest[client.send(rest):]
        except BlockingIOError:
            pass
        except OSError:
            rest = rest[len(rest):]
        if not rest:
            self._drop(fd)
            return
        self._clients[fd] = (client, rest, since)
        with suppress(FileExistsError):
            self._epoll.register(fd, select.EPOLLOUT)

    def _drop_slow(self) -> None:
        for fd, (_, _, since) in list(self._clients.items()):
            if time.monotonic() - since > _PATIENCE_S:
                self._drop(fd)

    def _drop(self, fd: int) -> None:
        client, _, _ = self._clients.pop(fd)
        client.close()  # also takes it out of the epoll set

    def close(self) -> None:
        """Nobody can ask any more; the name goes."""
        for fd in list(self._clients):
            self._drop(fd)
        if self._listener is not None:
            with suppress(OSError):
                os.unlink(self._path)
            self._listener.close()
            self._listener = None
        self._epoll.close()


def remove_dead(folder: str, names: str, kind: socket.SocketKind, own: str) -> None:
    """Names, all but `own`, of sockets that supervisors have left which were killed."""
    before, after = names.split("*")
    try:
        found = os.listdir(folder)
    except OSError:
        return
    for name in found:
        path = f"{folder}/{name}"
        if path == own or not (name.startswith(before) and name.endswith(after)):
            continue
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                with suppress(OSError):
                    os.unlink(path)
            except OSError:
                pass
