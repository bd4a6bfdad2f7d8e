# SPDX-License-Identifier: Apache-2.0
"""A stream that another process makes something of, at its own pace: the disk holds what it has not come to yet.

The supervisor writes to a file without a name beside the result, and a byte to a socket; the other process follows the
file, and sleeps on the socket when it has come to its end. Nothing is lost however slow it is, and neither has to be
there at the end of the other. On the socket:

    "+"  there is more in the file           (supervisor; lost if there are many already, which does no harm)
    "?"  tell when you have come so far      (supervisor)
    "."  so far                              (the other process)
    end  that was all                        (supervisor)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from sdlib.wire.ready import readable

_BUFFER: Final = 1 << 16
_PIECE: Final = 1 << 20
_SETTLE_S: Final = 5.0
_CLOSE_S: Final = 60.0


def _unnamed(folder: Path) -> BinaryIO:
    """A file there, or where temporary files are if that is not ours: the folder of a device, say. OSError."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        fd, name = tempfile.mkstemp()
        os.unlink(name)
    return os.fdopen(fd, "r+b", _BUFFER)


class SpoolSink:
    """The supervisor's side."""

    def __init__(self, path: Path, *words: str) -> None:
        """`words`: of `python -m sdtrace.trace`, which makes the file at `path`. OSError."""
        self._file = _unnamed(path.parent)
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            handed = (self._file.fileno(), theirs.fileno())
            words = (*words, str(path), *map(str, handed))
            self._child = subprocess.Popen([sys.executable, "-I", "-m", "sdtrace.trace", *words], pass_fds=handed,
                                           stdin=subprocess.DEVNULL)  # fmt: skip

    def write(self, data: bytes) -> None:
        """Buffered."""
        self._file.write(data)

    def _say(self, what: bytes) -> None:
        self._file.flush()
        with suppress(OSError):  # full: it has enough to do; gone: nobody wants to know
            self._socket.send(what)

    def flush(self) -> None:
        """What was given is on its way."""
        self._say(b"+")

    def settle(self) -> None:
        """Wait until it is where others find it, for a while."""
        with suppress(OSError):
            self._socket.recv(64)  # an answer that came too late the last time
        self._say(b"?")
        if readable(self._socket, _SETTLE_S):
            with suppress(OSError):
                self._socket.recv(64)

    def close(self) -> None:
        """No more comes. It writes the rest, also if that takes longer than we wait for it."""
        self._file.close()
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_CLOSE_S)


class Follower:
    """The other process's side: a file to read from, which waits for more instead of ending too early."""

    def __init__(self, spool: int, line: int, settled: Callable[[], None]) -> None:
        """Takes over both descriptors. `settled`: put what was made so far where others find it."""
        self._spool, self._at = spool, 0  # the writer has an offset of its own
        self._data = bytearray()
        self._socket = socket.socket(fileno=line)
        self._settled = settled
        self._asked = self._over = False

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer only at the very end."""
        while len(self._data) < size:
            piece = os.pread(self._spool, _PIECE, self._at)
            self._at += len(piece)
            self._data += piece
            if not piece:
                if self._over:
                    break
                self._wait()
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def _wait(self) -> None:
        """At the end of what is there."""
        self._settled()
        if self._asked:
            with suppress(OSError):
                self._socket.send(b".")
        said = self._socket.recv(4096)
        self._asked, self._over = b"?" in said, not said
