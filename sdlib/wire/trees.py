# SPDX-License-Identifier: Apache-2.0
"""What a supervisor tells about its tree of processes, and where to ask: docs/observing.md.

Each supervisor listens at `tree-PID.sock` beside its user's monitor. Who connects is sent one JSON document and the
end of the stream; nothing is ever read from him, so there is nothing that he could say.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import UnionType

from sdlib import abi
from sdlib.wire import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

VERSION: Final = 1
_UCRED: Final = struct.Struct("3i")
_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.01
_MAX_BYTES: Final = 64 << 20
_DOCUMENT: Final = {
    "supervisor": dict, "monitor": dict, "counters": dict, "tcp_reasons": dict, "moved_back": dict,
    "processes": list, "connections": list, "connections_left_out": int,
}  # fmt: skip
_SUPERVISOR: Final = {"pid": int, "root_pid": int, "command": str, "errors": int, "notifications": dict}
_PROCESS: Final = {
    "pid": int, "exe": str, "injected": bool, "reason": str, "accelerate": str, "counters": dict, "moved_back": dict,
}  # fmt: skip
_CONNECTION: Final = {
    "inode": int | None, "pid": int, "state": str, "tx": str, "rx": str, "reason": str,
    "bytes_shm_tx": int, "bytes_shm_rx": int, "bytes_tcp": int, "ring": dict | None,
}  # fmt: skip
CONNECTION_COUNTS: Final = ("messages_tx", "messages_rx", "bells_tx", "bells_rx", "parks", "spins", "spins_won")
"""What a connection's line may have besides; supervisors of older versions do not say it."""
_COUNTS: Final = dict.fromkeys(CONNECTION_COUNTS, int)
_NUMBER_MAX: Final = 1e30
_NO_RING: Final = {"bytes": 0, "tx_queued": 0, "rx_queued": 0}


class Unreachable(Exception):
    """No document from there; str() is one line."""


def socket_name(pid: int | str) -> str:
    """File name of the socket of the supervisor `pid`; "*": of all."""
    return f"tree-{pid}.sock"


def request_name(pid: int | str) -> str:
    """Of the one where it can be asked for something (sdtrace/requests.py); "*": of all."""
    return f"detach-{pid}.sock"


def _folders(env: Mapping[str, str], uid: int) -> Iterator[str]:
    """Where supervisors of `uid` may listen; root sees those of all users."""
    import glob  # that compiles expressions

    xdg = env.get("XDG_RUNTIME_DIR", "")
    if xdg.startswith("/"):
        yield f"{xdg}/socksdirect"
    who = "*" if uid == 0 else str(uid)
    yield from glob.glob(f"/run/user/{who}/socksdirect")
    yield from glob.glob(f"/tmp/socksdirect-{who}")
    if uid == 0:
        yield from glob.glob("/tmp/systemd-private-*/tmp/socksdirect-*")  # of services with PrivateTmp=


def find(env: Mapping[str, str], uid: int) -> list[str]:
    """Sockets of all supervisors that `uid` may ask, each once."""
    import glob

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
    """The document of the supervisor at `path`; Unreachable.

    Two members are ours. `uid`: whose supervisor it is. `here`: are its pids those that we know processes by? That is
    so if its own is, which the kernel tells.
    """
    import json

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, _short(path) as name:
            sock.settimeout(timeout_s)
            _connect(sock, paths.checked(name), time.monotonic() + timeout_s)
            pid, uid = peer_of(sock)
            if uid not in (0, os.geteuid()) and os.geteuid() != 0:
                raise Unreachable(f"{path}: served by uid {uid}, which is neither root nor you")
            text = _read_all(sock)
        document = json.loads(text)
    except (OSError, ValueError, paths.UnsafePath) as error:
        raise Unreachable(f"{path}: {error}") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise Unreachable(f"{path}: speaks another version")
    if not well_formed(document):
        raise Unreachable(f"{path}: not what a supervisor says")
    document["here"] = document["supervisor"]["pid"] == pid
    document["uid"] = uid
    return document


def _fits(value: object, shape: Mapping[str, type | UnionType]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in shape.items())


def _numbers(value: Mapping[str, object], names: Iterable[str] = ()) -> bool:
    sane = all(isinstance(number, int | float) and 0 <= number < _NUMBER_MAX for number in value.values())
    return sane and set(names) <= value.keys()


def _sizes(value: object) -> bool:
    """Members that came later may be missing."""
    return isinstance(value, dict) and all(
        isinstance(counts, list) and len(counts) == len(abi.SIZES) + 1
        and all(isinstance(one, int) and 0 <= one < _NUMBER_MAX for one in counts)
        for counts in value.values())


def well_formed(document: dict[str, Any]) -> bool:
    """Root asks other users' supervisors, or what pretends to be one: their words must not trip him up."""
    return (
        _fits(document, _DOCUMENT) and _fits(document["supervisor"], _SUPERVISOR)
        and _fits(document["monitor"], {"offers": dict}) and _numbers(document["counters"], abi.COUNTERS)
        and _numbers(document["tcp_reasons"]) and _numbers(document["moved_back"]) and _sizes(document.get("sizes", {}))
        and isinstance(document.get("open", {}), dict) and _numbers(document.get("open", {}))
        and all(_numbers(meter, ("times", "seconds")) for meter in
                (document["supervisor"]["notifications"], document["monitor"]["offers"]))
        and all(_fits(line, _PROCESS) and _numbers(line["counters"], abi.COUNTERS) and _numbers(line["moved_back"])
                and _sizes(line.get("sizes", {})) for line in document["processes"])
        and all(_fits(line, _CONNECTION) and _numbers(line["ring"] or _NO_RING, _NO_RING)
                and _fits(dict.fromkeys(CONNECTION_COUNTS, 0) | line, _COUNTS)
                for line in document["connections"])
    )  # fmt: skip


@contextmanager
def _short(path: str) -> Iterator[str]:
    """A name that fits into a socket's address."""
    if len(os.fsencode(path)) <= paths.MAX_PATH:
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)


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
