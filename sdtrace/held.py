# SPDX-License-Identifier: Apache-2.0
"""What a supervisor keeps of the connections that its programs have offered, and how much each program may have."""

from __future__ import annotations

import errno
import itertools
import os
import resource
from collections.abc import Iterable
from contextlib import suppress

from policies import Settings
from sdlib import abi
from sdlib.records import dataclass, field
from sdlib.wire import Refused
from sdlib.wire.segment import counted_bytes
from sdtrace.areas import Area

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_RING_IN_LITTLE: Final = 256 * 1024


OFFERED_FOR: Final = (abi.const.SD_REASON_unsteady, abi.const.SD_REASON_no_memory)
"""Reasons (`enum sd_reason`) of connections that are offered, and which pair if they cease to be."""


@dataclass(frozen=True)
class Key:
    """A block, by area and place; `generation` tells its successors apart."""

    area: Area
    block: int
    generation: int

    def __hash__(self) -> int:
        """Areas are compared by identity."""
        return hash((id(self.area), self.block, self.generation))

    @property
    def current(self) -> bool:
        """Is it still the connection that it was?"""
        return self.area.block_generation(self.block) == self.generation

    def pin(self, reason: int) -> None:
        """An offered connection stays on TCP."""
        if self.current:
            self.area.view.block[self.block].reason = reason
            self.area.exchange_state(self.block, abi.const.SD_BLOCK_OFFERED, abi.const.SD_BLOCK_PINNED)

    def hold_up(self, reason: int) -> int:
        """What keeps an open offer from being paired with another host (`OFFERED_FOR`); 0: nothing. 0 or an errno."""
        if not self.current:
            return errno.ENOENT
        block = self.area.view.block[self.block]
        if reason in OFFERED_FOR or (not reason and block.reason in OFFERED_FOR):
            block.reason = reason
        return 0


@dataclass
class Origin:
    """How a connection came to us: enough to find its socket again, and to judge it anew. `cookie`: SO_COOKIE."""

    tid: int
    fd: int
    cookie: int
    direction: str
    local: tuple[str, int]
    peer: tuple[str, int]
    exe: str
    uid: int
    carriers: tuple[str, ...] = ("shm", "rdma")
    """What a rule lets carry it instead of TCP."""

    @property
    def place(self) -> tuple[int, int, int]:
        """For the monitor."""
        return self.tid, self.cookie, self.fd


def forbidden(origin: Origin, far: bool) -> bool:
    """A rule does not let it be carried that way."""
    return ("rdma" if far else "shm") not in origin.carriers


def ring_wanted(key: Key, origin: Origin) -> int:
    """Bytes of one direction. A program whose address space is limited shall not miss what large rings would take."""
    with suppress(OSError, ValueError):  # it has ended, or is another user's
        if resource.prlimit(origin.tid, resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return min(key.area.ring_bytes, _RING_IN_LITTLE)
    return key.area.ring_bytes


@dataclass
class Held:
    """A connection that was offered. `segment` -1: not paired yet, or no descriptor was left to keep a copy."""

    name: int
    """Offer id, by which the monitor knows it."""
    origin: Origin
    segment: int = -1
    bytes: int = 0
    """Memory that it counts as: what it is likely to use, or what it was seen to use if that is more."""
    at_least: int = 0
    attached: bool = False
    paired: bool = False
    side: int = 0
    far: bool = False
    """The other end is on another host."""
    left: bool = False
    """Its monitor has given it up: it goes back to TCP (pump.py)."""


@dataclass
class Use:
    """Of one program."""

    bytes: int = 0
    connections: int = 0


@dataclass
class Quotas:
    """What all programs of the tree use."""

    used: dict[tuple[str, int], Use] = field(default_factory=dict)

    def exceeded(self, exe: str, uid: int, settings: Settings, ring_bytes: int) -> bool:
        """Would one more connection be too many for the program?"""
        use = self.used.get((exe, uid), Use())
        more = use.bytes + counted_bytes(ring_bytes) > settings.total_bytes
        return more or use.connections + 1 > settings.connections

    def add(self, held: Held) -> None:
        """It is paired."""
        use = self.used.setdefault((held.origin.exe, held.origin.uid), Use())
        use.bytes += held.bytes
        use.connections += 1

    def measured(self, held: Held, memory: int) -> None:
        """How much a paired one was seen to use."""
        memory = max(memory, held.at_least)
        if memory != held.bytes:
            self.used[held.origin.exe, held.origin.uid].bytes += memory - held.bytes
            held.bytes = memory

    def remove(self, held: Held) -> None:
        """It is over."""
        use = self.used[held.origin.exe, held.origin.uid]
        use.bytes -= held.bytes
        use.connections -= 1


_LISTED_MAX: Final = 5000
STATES: Final = {
    abi.const.SD_BLOCK_TCP: "tcp", abi.const.SD_BLOCK_OFFERED: "offered", abi.const.SD_BLOCK_PAIRED: "paired",
    abi.const.SD_BLOCK_ATTACHED: "shm", abi.const.SD_BLOCK_PINNED: "pinned",
}  # fmt: skip


def row(key: Key, held: Held) -> dict[str, Any]:
    """A connection as sdctl shows it."""
    block, origin = key.area.view.block[key.block], held.origin
    reason = abi.REASONS[block.reason] if 0 < block.reason < len(abi.REASONS) else ""
    return {
        "exe": origin.exe, "uid": origin.uid, "tid": origin.tid, "fd": origin.fd, "dir": origin.direction,
        "local": list(origin.local), "peer": list(origin.peer), "state": STATES.get(int(block.state), "?"),
        "reason": reason, "shm_tx": int(block.bytes_shm_tx), "shm_rx": int(block.bytes_shm_rx),
        "tcp": int(block.bytes_tcp), "ring": held.bytes,
        "resident": os.fstat(held.segment).st_blocks * 512 if held.segment >= 0 else 0,
    }  # fmt: skip


def as_paper(known: Iterable[tuple[Key, Held]]) -> dict[str, Any]:
    """What sdctl is told of these connections."""
    rows = [row(key, held) for key, held in itertools.islice(known, _LISTED_MAX) if key.current]
    return {"supervisor": os.getpid(), "connections": rows}


def reason_of(answer: Refused) -> int:
    """`enum sd_reason` of a refusal; a connection that has ended by then is nobody's fault."""
    from sdlib.wire.messages import Code  # known by then

    if answer.code == Code.NOT_ESTABLISHED:
        return int(abi.const.SD_REASON_not_switched)
    quota = answer.code in (Code.QUOTA, Code.MEMORY)
    return int(abi.const.SD_REASON_quota if quota else abi.const.SD_REASON_refused)
