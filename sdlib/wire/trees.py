# SPDX-License-Identifier: Apache-2.0
"""What a supervisor tells about its tree of processes, and where to ask: docs/observing.md.

Each supervisor listens at `tree-PID.sock` beside its user's monitor. Who connects is sent one JSON document and the
end of the stream; nothing is ever read from him, so there is nothing that he could say.
"""

from __future__ import annotations

import glob
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from sdlib.wire import paths

VERSION: Final = 1
_UCRED: Final = struct.Struct("3i")
_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.01
_MAX_BYTES: Final = 64 << 20


class Unreachable(Exception):
    """No document from there; str() is one line."""


def socket_name(pid: int) -> str:
    """File name of the socket of the supervisor `pid`."""
    return f"tree-{pid}.sock"


def _folders(env: Mapping[str, str], uid: int) -> Iterator[str]:
    """Where supervisors of `uid` may listen; root sees those of all users."""
    xdg = env.get("XDG_RUNTIME_DIR", "")
    if xdg.startswith("/"):
        yield f"{xdg}/socksdirect"
    who = "*" if uid == 0 else str(uid)
    yield from glob.glob(f"/run/user/{who}/socksdirect")
    yield from glob.glob(f"/tmp/socksdirect-{who}")


def find(env: Mapping[str, str], uid: int) -> list[str]:
    """Sockets of all supervisors that `uid` may ask, each once."""
    found: dict[tuple[int, int], str] = {}
    for folder in _folders(env, uid):
        for path in sorted(glob.glob(f"{glob.escape(folder)}/{socket_name(0).replace('0', '*')}")):
            with suppress(OSError):
                status = os.lstat(path)
                found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Pid and uid of the other end of a unix socket, by the kernel."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def ask(path: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
    """The document of the supervisor at `path`; Unreachable."""
    try:
        paths.checked(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            _connect(sock, path, time.monotonic() + timeout_s)
            _, uid = peer_of(sock)
            if uid not in (0, os.geteuid()) and os.geteuid() != 0:
                raise Unreachable(f"{path}: served by uid {uid}, which is neither root nor you")
            text = _read_all(sock)
        document = json.loads(text)
    except (OSError, ValueError, paths.UnsafePath) as error:
        raise Unreachable(f"{path}: {error}") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise Unreachable(f"{path}: speaks another version")
    return document


def _connect(sock: socket.socket, path: str, deadline: float) -> None:
    """A full backlog says EAGAIN at once, whatever the time-out; it is a matter of milliseconds."""
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def _read_all(sock: socket.socket) -> bytes:
    parts, total = [], 0
    while part := sock.recv(1 << 18):
        parts.append(part)
        total += len(part)
        if total > _MAX_BYTES:
            raise ValueError("the document has no end")
    return b"".join(parts)


def ask_all(env: Mapping[str, str] = os.environ) -> list[dict[str, Any]]:
    """Documents of all supervisors that can be reached; those that are just leaving are left out."""
    documents = []
    for path in find(env, os.geteuid()):
        with suppress(Unreachable):
            documents.append(ask(path))
    return documents
