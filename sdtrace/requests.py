# SPDX-License-Identifier: Apache-2.0
"""Requests to a supervisor: `detach-PID.sock` beside the socket by which it is looked at.

One word, with what it is about, and one line as the answer, "" for done, then the end.  Only the
tree's user and root are heard.
"""

from __future__ import annotations

import os
import socket
import syslog
from contextlib import suppress

from sdlib.wire import paths, trees
from sdtrace.inspection import remove_dead

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

DETACH: Final = b"detach"
"""And a process: give it back, with those that it has started."""
DETACH_ALONE: Final = b"detach-alone"
"""And a process: give back that one."""
ATTACH: Final = b"attach"
"""And a process that was given back: take it again, with those that it has started. Answered by DONE, and what of it
stays as it is; or why not."""
ATTACH_ALONE: Final = b"attach-alone"
"""And a process that was given back: take that one."""
DONE: Final = "done "
PASS: Final = b"pass"
"""And the inode of a socket, which somebody is about to take who cannot see its ring (strangers.py)."""
SET: Final = b"set"
"""And an epoll set, as process << 32 | descriptor, which somebody is about to take who knows none of our tags."""
LIBRARY: Final = b"library"
"""And a process that is about to be sent a connection (kin.py): if it is of the tree, it gets the library."""
STOP: Final = b"stop"
"""And a thread that waits for us, and that whoever asks has told to stop, as its tracer (notify.let_stop)."""
_WORDS: Final = (DETACH, DETACH_ALONE, ATTACH, ATTACH_ALONE, PASS, SET, LIBRARY, STOP)
_BACKLOG: Final = 16
_LONGEST: Final = 64


class Requests:
    """The listening socket."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._path = ""

    def fileno(self) -> int:
        """Readable when somebody asks; -1: nobody can."""
        return -1 if self._listener is None else self._listener.fileno()

    def open(self) -> None:
        """Listen, if there is a place for the socket."""
        try:
            folder = paths.runtime_dir(os.environ, os.geteuid())
            path = paths.checked(f"{folder}/{trees.request_name(os.getpid())}")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            with suppress(FileNotFoundError):
                os.unlink(path)
            listener.bind(path)  # umask is 077, the directory the user's own
            listener.listen(_BACKLOG)
            remove_dead(folder, trees.request_name("*"), socket.SOCK_SEQPACKET, path)
        except (OSError, paths.UnsafePath) as error:
            syslog.syslog(syslog.LOG_WARNING, f"cannot be asked: {error}")
            return
        self._listener, self._path = listener, path

    def take(self) -> tuple[socket.socket, bytes, int] | None:
        """Who asks, for what, and the number that it is about."""
        if self._listener is None:
            return None
        with suppress(OSError):
            client, _ = self._listener.accept()
            client.settimeout(1.0)
            word, _, number = client.recv(_LONGEST).partition(b" ")
            heard = trees.peer_of(client)[1] in (0, os.geteuid())
            if heard and word in _WORDS and (number.isdigit() or not number):
                return client, word, int(number or b"0")
            client.close()
        return None

    def close(self) -> None:
        """The name goes."""
        if self._listener is not None:
            with suppress(OSError):
                os.unlink(self._path)
            self._listener.close()
            self._listener = None


def answer(client: socket.socket, text: str) -> None:
    """And the end."""
    with client, suppress(OSError):
        client.send(text.encode() or b"\n")
