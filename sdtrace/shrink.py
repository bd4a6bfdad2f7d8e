# SPDX-License-Identifier: Apache-2.0
"""Memory of idle rings is given back to the system: the ring stays, its pages come again when bytes do.

Only an empty ring whose producer is ours, and only while its producer cannot be in the middle of a message. A hole that
is punched between the copy and the commit of one would turn it into zeroes, and a producer takes no lock that we could
take. But idle programs sleep: so all threads of the process are stopped for a moment, and then each must be

  - outside of the library, with nothing of the library below it (a handler may run on top of a send), or
  - in a bare call of the gate, for which the library keeps nothing, or
  - asleep in one of the calls in which the library waits, with no other operation below.

If one is anywhere else, nothing is done, and the connection's turn comes again. The other end needs no care: a consumer
reads nothing from an empty ring, and one that lies about what it has read harms its own connection alone.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterable

from policies import Settings
from sdlib import abi
from sdlib.records import dataclass
from sdlib.wire.segment import ring_of
from sdtrace import procfs
from sdtrace.halted import Halted
from sdtrace.held import Held, Key
from sdtrace.image import Image
from sdtrace.inject import library_present
from sdtrace.memory import read_memory
from sdtrace.ptrace import Registers, RemoteError, signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LOOK_S: Final = 1.0
"""How often idle connections are looked for, as long as any has memory to give."""
KEEP_BYTES: Final = 32 * 1024
"""A connection that uses no more has nothing worth a stop of its program."""
_AGAIN_S: Final = 30.0
_WAITS: Final = frozenset({
    7, 271, 23, 270, 232, 281, 441,  # poll, ppoll, select, pselect6, epoll_wait, epoll_pwait, epoll_pwait2
    45, 47, 299, 43, 288,  # recvfrom, recvmsg, recvmmsg, accept, accept4
    202, 35, 230, 61, 247,  # futex, nanosleep, clock_nanosleep, wait4, waitid
    34, 130, 128, 219,  # pause, sigsuspend, sigtimedwait; restart_syscall: one of these, after a stop
    438,  # pidfd_getfd: the filter holds it
})  # fmt: skip
_HOLD_NOTHING: Final = (abi.const.SD_HC_SCATTER, abi.const.SD_HC_SHARED)  # pass.c, ep_shared.c
_LEVEL_AT: Final = 8  # offsetof(struct sd_tcb, level), sd.h
_HEADER_BYTES: Final = abi.sizeof("struct sd_seg")
_TAIL, _HEAD, _HELD = ([abi.offsetof("struct sd_seg", "dir") + side * abi.sizeof("struct sd_dir")
                        + abi.offsetof("struct sd_dir", word) for side in (0, 1)] for word in ("tail", "head", "held"))
_MOST: Final = abi.const.SD_RING_MAX
_WORD: Final = struct.Struct("=Q")
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@dataclass
class _Seen:
    """Where a ring's producer was, and since when; whose ring it is."""

    tail: int
    since: float
    tid: int


class Shrinker:
    """Looks after the segments of one supervisor."""

    def __init__(self, held: Callable[[], Iterable[tuple[Key, Held]]], settings: Callable[[str, int], Settings],
                 image: Image | str, measured: Callable[[Key, int], None]) -> None:
        """`held` lists the connections; without an image there are none. `measured`: told what each uses (bytes)."""
        self._held, self._measured = held, measured
        self._settings = settings
        self._image = image
        self._seen: dict[Key, _Seen] = {}
        self._looked = 0.0
        self._not_before: dict[int, float] = {}
        self.given_back = 0
        """Bytes, since the beginning."""

    @property
    def waiting(self) -> bool:
        """May there be something to give back soon?"""
        return bool(self._seen)

    def tick(self) -> None:
        """Now and then."""
        now = time.monotonic()
        if now >= self._looked + LOOK_S:
            self._looked = now
            self._look(now)

    def _look(self, now: float) -> None:
        seen, self._seen = self._seen, {}
        ripe: dict[int, list[tuple[Key, Held]]] = {}
        for key, held in self._held():
            if held.far or not held.attached or held.segment < 0:  # an RDMA device has its pages by their addresses
                continue
            memory = resident(held.segment)
            self._measured(key, memory)
            idle_s = self._settings(held.origin.exe, held.origin.uid).idle_s
            if not idle_s or memory <= KEEP_BYTES:
                continue
            tail, empty = _producer(held.segment, int(key.area.view.block[key.block].side))
            before = seen.get(key)
            if before is None or before.tail != tail:
                before = _Seen(tail, now, held.origin.tid)
            self._seen[key] = before
            if empty and now - before.since >= idle_s:
                ripe.setdefault(held.origin.tid, []).append((key, held))
        self._not_before = {tid: at for tid, at in self._not_before.items() if at > now}
        for tid, connections in ripe.items():
            if tid not in self._not_before:
                self._shrink(tid, connections, now)

    def _shrink(self, tid: int, connections: list[tuple[Key, Held]], now: float) -> None:
        """Give back what one process's idle connections use."""
        done = 0
        try:
            status = procfs.status(tid)
            alone = [pair for pair in connections if int(pair[0].area.view.block[pair[0].block].users) == 1]
            if alone and not status.tracer and not isinstance(self._image, str):
                with Halted(status.tgid) as halted:
                    if is_quiet(self._image, halted):
                        done = sum(punch(held.segment, int(key.area.view.block[key.block].side))
                                   for key, held in alone)
        except (OSError, RemoteError):
            pass  # it goes, or somebody debugs it
        self.given_back += done
        if not done:  # the other end has the rest, or it was a bad moment
            self._not_before[tid] = now + _AGAIN_S


def is_quiet(image: Image, halted: Halted) -> bool:
    """Is no thread in an operation of the library but waiting? RemoteError: it has none that we know."""
    return library_present(halted.pid, image) and all(
        _is_quiet(image, halted.pid, registers) for registers in halted.registers())


def _is_quiet(image: Image, pid: int, registers: Registers) -> bool:
    symbols, rip = image.symbols, int(registers.rip)
    block = image.thread_block(registers.gs_base)
    level = int.from_bytes(read_memory(pid, block + _LEVEL_AT, 4), "little") if block else 0
    in_library = abi.const.SD_LIB_BASE <= rip < max(seg.vaddr + seg.memsz for seg in image.segments)
    in_gate = symbols["sd_gate_start"] <= rip <= symbols["sd_gate_end"]
    if level == 0:
        return in_gate or not in_library
    if signed(registers.orig_rax) == abi.const.SD_HC_NR:
        return level == 1 and in_gate and int(registers.rdi) in _HOLD_NOTHING
    return level == 1 and in_gate and signed(registers.orig_rax) in _WAITS


def resident(segment: int) -> int:
    """Bytes of memory that a segment uses."""
    return os.fstat(segment).st_blocks * 512


def _producer(segment: int, side: int) -> tuple[int, bool]:
    """How much this side has ever written, and whether all of it has been read."""
    header = os.pread(segment, _HEADER_BYTES, 0)
    if side not in (0, 1) or len(header) < _HEADER_BYTES:
        return 0, False
    tail, head, held = (_WORD.unpack_from(header, at[side])[0] for at in (_TAIL, _HEAD, _HELD))
    return tail, tail == head and (held - tail - 1) % (1 << 64) >= _MOST  # none held back: ring/cork.h


def punch(segment: int, side: int) -> int:
    """Give back the ring that `side` writes, if it is empty; how many bytes that was. Its writer has to be stopped."""
    if not _producer(segment, side)[1]:
        return 0
    before = resident(segment)
    ring_bytes = ring_of(segment)
    at = abi.const.SD_SEG_HDR_BYTES + side * ring_bytes
    if _libc.fallocate(segment, _KEEP_SIZE | _PUNCH_HOLE, at, ring_bytes) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")
    return max(before - resident(segment), 0)
