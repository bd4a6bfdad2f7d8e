# SPDX-License-Identifier: Apache-2.0
"""One row per TCP socket of programs under sdrun: addresses and states by the kernel, paths and reasons by supervisors.

The two meet at the socket's inode. Of a connection that was never offered to the monitor the supervisor knows no inode;
then it is its process that gives the reason: the only one that its connections without inode have, or all of those.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from sdlib.wire import trees
from tools.observe import diag, sockets
from tools.observe.diag import Carried
from tools.observe.sockets import Address, Socket, User

BYTES: Final = ("bytes_shm_tx", "bytes_shm_rx", "bytes_tcp")
"""What the library counts of each connection, besides trees.CONNECTION_COUNTS."""
_WAITING: Final = {"offered": "peer-not-under-sdrun", "paired": "not-switched-yet", "attached": "not-switched-yet"}


@dataclass
class Row:
    """A connection, or a listener, as one end has it."""

    inode: int
    state: str
    local: Address
    peer: Address
    receive_queue: int
    send_queue: int
    family: int
    path: str
    """"shm", "tcp", or "" for what has no bytes (listeners)."""
    reason: str
    users: list[User]
    peer_users: list[User]
    connection: dict[str, Any] | None = None
    """As the supervisor tells it; None when it was never offered."""
    rates: dict[str, float] = field(default_factory=dict)
    """A second, when asked for: bytes `tx` and `rx`, whatever carries them, the parts that the library counts, and what
    else it does."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        known = self.connection or {}
        return {
            "state": self.state, "local": self.local._asdict(), "peer": self.peer._asdict(),
            "receive_queue": self.receive_queue, "send_queue": self.send_queue,
            "path": self.path, "reason": self.reason, "inode": self.inode,
            "users": [user._asdict() for user in self.users],
            "peer_users": [user._asdict() for user in self.peer_users],
            "bytes": {name: known.get(name) for name in BYTES},
            "counts": {name: known.get(name) for name in trees.CONNECTION_COUNTS},
            "ring": known.get("ring"), "rates": self.rates,
        }  # fmt: skip


@dataclass
class Moment:
    """Everything that was asked at one time."""

    documents: list[dict[str, Any]]
    rows: list[Row]
    at: float
    kernel: dict[int, Carried] = field(default_factory=dict)
    """Bytes of the kernel's TCP, by inode, of our network namespace."""


def _unoffered(document: dict[str, Any]) -> dict[int, set[str]]:
    """Reasons of connections without inode, by process."""
    reasons: dict[int, set[str]] = {}
    for line in document["connections"]:
        if line["inode"] is None:
            reasons.setdefault(line["pid"], set()).add(line["reason"] or "few-operations")
    return reasons


RINGS: Final = {"shm", "rdma"}
"""Paths that are not the kernel's."""


def path_of(line: dict[str, Any], moved_back: Iterable[str]) -> tuple[str, str]:
    """Path and reason of an offered connection; `moved_back`: the reasons that its process has had for that."""
    ways = {line["tx"], line["rx"]}
    for ring in ways & RINGS:
        other = ways - RINGS
        return ring, {"tcp": "one direction so far", "back": "one direction is back"}.get(min(other, default=""), "")
    if "back" in ways:
        return "tcp", "/".join(["moved-back", *moved_back][-1:])
    return "tcp", line["reason"] or _WAITING.get(line["state"], "few-operations")


def _may_speak_of(pid: int, uid: int) -> bool:
    """A supervisor of `uid` is believed about processes of that user; root's about all."""
    if uid == 0:
        return True
    try:
        return os.stat(f"/proc/{pid}").st_uid == uid
    except OSError:
        return False


class _Tree:
    """What one supervisor knows, to be looked up."""

    def __init__(self, document: dict[str, Any]) -> None:
        uid = document["uid"]
        self.processes = {line["pid"]: line for line in document["processes"] if _may_speak_of(line["pid"], uid)}
        self.by_inode = {line["inode"]: line for line in document["connections"] if line["inode"] is not None}
        self.unoffered = _unoffered(document)

    def explain(self, found: Socket, users: list[User]) -> tuple[str, str, dict[str, Any] | None]:
        """Path, reason, and the supervisor's line of one socket."""
        if found.state in ("LISTEN", "UNCONN"):
            return "", "", None
        line = self.by_inode.get(found.inode)
        owner = next((self.processes[user.pid] for user in users if user.pid in self.processes), None)
        if line is not None:
            moved = sorted(owner["moved_back"]) if owner else []
            return (*path_of(line, moved if len(moved) == 1 else []), line)
        if owner is None:
            return "tcp", "", None
        if not owner["injected"]:
            return "tcp", owner["reason"], None
        reasons = set().union(*(self.unoffered.get(user.pid, set()) for user in users))
        return "tcp", owner["accelerate"] or "/".join(sorted(reasons)) or "made-before-injection", None


def look() -> Moment:
    """Ask all supervisors and the kernel."""
    documents = trees.ask_all()
    if not documents:
        return Moment([], [], time.monotonic())
    return Moment(documents, rows(documents), time.monotonic(), diag.carried())


def rows(documents: list[dict[str, Any]]) -> list[Row]:
    """All TCP sockets of the trees' processes."""
    known = [_Tree(document) for document in documents if document["here"]]
    users = sockets.users_of_sockets(sockets.all_pids())
    result = []
    for pids in _namespaces(known).values():
        listed = list(sockets.of_namespace(pids[0]))
        by_addresses = {(found.local, found.peer): found for found in listed}
        for found in listed:
            own = users.get(found.inode, [])
            tree = next((tree for tree in known if any(user.pid in tree.processes for user in own)), None)
            if tree is None or not found.inode:
                continue
            other = by_addresses.get((found.peer, found.local)) if found.state != "LISTEN" else None
            path, reason, line = tree.explain(found, own)
            result.append(_row(found, path, reason, line, own, users.get(other.inode, []) if other else []))
    return result


def _namespaces(known: list[_Tree]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for pid in sorted({pid for tree in known for pid in tree.processes}):
        if os.path.exists(f"/proc/{pid}/net"):
            found.setdefault(sockets.network_namespace(pid), []).append(pid)
    return found


def _row(found: Socket, path: str, reason: str, line: dict[str, Any] | None, users: list[User],
         peer_users: list[User]) -> Row:
    ring = (line or {}).get("ring") or {"rx_queued": 0, "tx_queued": 0}
    return Row(found.inode, found.state, found.local, found.peer, found.receive_queue + ring["rx_queued"],
               found.send_queue + ring["tx_queued"], found.family, path, reason, users, peer_users, line)


def since(old: dict[str, Any], new: dict[str, Any]) -> dict[str, int]:
    """What a connection has counted between two of its lines, as far as both say it."""
    return {name: max(new[name] - old[name], 0) for name in (*BYTES, *trees.CONNECTION_COUNTS)
            if name in old and name in new}


def add_rates(before: Moment, now: Moment) -> None:
    """Bytes per second of the connections that were there at both times."""
    seconds = max(now.at - before.at, 1e-3)
    earlier = {row.inode: row for row in before.rows}
    for row in now.rows:
        if row.inode in earlier:
            row.rates = _rates(row, earlier[row.inode].connection, now, before, seconds)


def _rates(row: Row, old: dict[str, Any] | None, now: Moment, before: Moment, seconds: float) -> dict[str, float]:
    rates: dict[str, float] = {}
    if old and row.connection:
        rates = {name.removeprefix("bytes_"): more / seconds for name, more in since(old, row.connection).items()}
    if row.path in RINGS:  # what the kernel still carries are doorbells
        return rates | {"tx": rates.get("shm_tx", 0.0), "rx": rates.get("shm_rx", 0.0)}
    new, then = now.kernel.get(row.inode), before.kernel.get(row.inode)
    if new and then:
        rates |= {"tx": max(new.sent - then.sent, 0) / seconds, "rx": max(new.received - then.received, 0) / seconds}
    return rates
