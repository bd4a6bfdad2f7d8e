# SPDX-License-Identifier: Apache-2.0
"""One host's copy of a segment, mapped: the words of the program, and its two rings (sdlib/src/py/copy.c)."""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from sdlib import abi
from sdlib.wire.segment import segment_bytes


class Program(NamedTuple):
    """What the program has said. Nothing here is believed before it was compared with what is possible."""

    tail: int
    base: int
    head: int
    sw_ring: int
    hint: int
    go_back: int
    attached: int
    settle_ask: int
    heard: int
    """1: it knows that the other program has switched."""


class Copy:
    """The monitor's mapping. `side` is the program's."""

    def __init__(self, memfd: int, ring_bytes: int, side: int) -> None:
        """Maps `memfd`, which stays the caller's; OSError."""
        self.ring_bytes = ring_bytes
        self.side = side
        self.memory = mmap.mmap(memfd, segment_bytes(ring_bytes))
        self.inode = os.fstat(memfd).st_ino
        self._whole: abi.CData = abi.ffi.from_buffer(self.memory, require_writable=True)
        self._at: abi.CData = abi.ffi.cast("void *", self._whole)
        self._seg: abi.CData = abi.ffi.cast("struct sd_seg *", self._whole)
        self._words: abi.CData = abi.ffi.new("struct sd_copy_words *")
        self._told: abi.CData = abi.ffi.new("struct sd_copy_words *")

    @property
    def pointer(self) -> abi.CData:
        """The mapping, for C."""
        return self._at

    @property
    def address(self) -> int:
        """Of the mapping."""
        return int(abi.ffi.cast("uintptr_t", self._whole))

    def ring_at(self, out: bool) -> int:
        """Where the ring begins that the program writes (`out`) or reads, from the start of the mapping."""
        direction = self.side if out else 1 - self.side
        return int(abi.const.SD_SEG_HDR_BYTES) + direction * self.ring_bytes

    def found(self, far_id: bytes) -> None:
        """A new connection."""
        first, second = int.from_bytes(far_id[:8], "little"), int.from_bytes(far_id[8:], "little")
        abi.lib.sd_copy_init(self._at, self.side, first, second)

    def held(self) -> None:
        """It is of an earlier monitor."""
        abi.lib.sd_copy_hold(self._at)

    def far_id(self) -> bytes:
        """Of a copy that an earlier monitor has made; zeros: of none."""
        return b"".join(int(word).to_bytes(8, "little") for word in self._seg.far_id)

    def read(self) -> Program:
        """The program's words, in an order in which they can be told on."""
        words = self._words
        abi.lib.sd_copy_read(self._at, self.side, words)
        return Program(words.tail, words.base, words.head, words.sw_ring, words.hint, words.go_back,
                       words.attached, words.settle_ask, words.heard)

    def tell(self, *, sw_ring: int, hint: int, go_back: int, attached: int, heard: int) -> None:
        """The other program's words; 0 leaves one as it is."""
        told = self._told
        told.sw_ring, told.heard = sw_ring, heard
        told.hint, told.go_back, told.attached = hint, go_back, attached
        abi.lib.sd_copy_tell(self._at, self.side, told)

    def landed(self) -> int:
        """Where the bytes end that the program was told of."""
        return int(self._seg.dir[1 - self.side].tail)

    def head(self) -> int:
        """Up to where the program has read."""
        return int(self._seg.dir[1 - self.side].head)

    def credited(self) -> int:
        """Up to where the program has been told that its bytes were read."""
        return int(self._seg.dir[self.side].head)

    def land(self, tail: int) -> bool:
        """More bytes stand there. True: the program sleeps."""
        return abi.lib.sd_copy_land(self._at, self.side, tail)

    def credit(self, head: int) -> bool:
        """Bytes of the program were read. True: it waits for room."""
        return abi.lib.sd_copy_credit(self._at, self.side, head)

    def settle(self, answer: int) -> None:
        """The program's question about the end is answered."""
        abi.lib.sd_copy_settle(self._at, answer)

    def lose(self) -> None:
        """The other host is gone for good."""
        abi.lib.sd_copy_lose(self._at)

    def told(self) -> None:
        """The other host is about to hear that the program has switched."""
        abi.lib.sd_copy_told(self._at)

    @property
    def frozen(self) -> bool:
        """The program has read the other one's mark: what that sends goes on by TCP."""
        return bool(self._seg.frozen)

    @property
    def pumped_for(self) -> int:
        """The supervisor takes the program's bytes to TCP: `enum sd_reason`; 0: it does not."""
        return int(self._seg.lost or abi.const.SD_REASON_call) if self._seg.pumped else 0

    @property
    def attached(self) -> bool:
        """Our program has come to its rings."""
        return bool(self._seg.attached[self.side])

    @property
    def heard(self) -> bool:
        """The other host knows that our program sends by its ring."""
        return bool(self._seg.heard)

    @property
    def may_leave(self) -> bool:
        """Whether a mark in the TCP stream would be understood over there, or none is needed."""
        return self.heard or not self._seg.told

    @property
    def is_back(self) -> bool:
        """The other program has gone back to TCP, and ours knows."""
        return bool(self._seg.dir[1 - self.side].sw_back)

    @property
    def switched(self) -> bool:
        """Our program sends by its ring."""
        return bool(self._seg.dir[self.side].sw_ring)

    def take_bell(self) -> bool:
        """True: the program has heard all doorbells so far, and one more is to be sent."""
        return abi.lib.sd_copy_bell_take(self._at, self.side)

    def bells(self) -> tuple[int, int]:
        """How many were asked for on behalf of this program, and how many the other host's was sent from here."""
        return int(self._seg.bells_asked), int(self._seg.bells_rung)

    def set_asked(self, asked: int) -> None:
        """The first of them, to outlive us."""
        self._seg.bells_asked = asked

    def count_bell(self) -> None:
        """The second. A supervisor does this (sdtrace/far.py); tests have none."""
        self._seg.bells_rung = (self._seg.bells_rung + 1) & 0xFFFFFFFF

    @property
    def unheard(self) -> bool:
        """A doorbell is under way, or lost, and the program waits for what it was asked for."""
        return abi.lib.sd_copy_unheard(self._at, self.side)

    def arm(self, data: bool, room: bool) -> None:
        """Be told of new bytes of the program, of bytes that it has read."""
        abi.lib.sd_copy_arm(self._at, self.side, data, room)

    def bytes_at(self, at: int, base: int, size: int) -> bytes:
        """Bytes of the program's ring; they lie in one piece (`contiguous`)."""
        start = self.ring_at(True) + ((at - base) & (self.ring_bytes - 1))
        return bytes(self.memory[start:start + size])

    def contiguous(self, at: int, base: int, size: int) -> int:
        """So many of them lie in one piece here as well as over there, where counter 0 is at the ring's start."""
        mask = self.ring_bytes - 1
        return min(size, self.ring_bytes - ((at - base) & mask), self.ring_bytes - (at & mask))

    def put(self, at: int, data: bytes | memoryview) -> None:
        """Bytes for the program, in one piece."""
        start = self.ring_at(False) + (at & (self.ring_bytes - 1))
        self.memory[start:start + len(data)] = bytes(data)

    def close(self) -> None:
        """Unmap."""
        self._seg = self._at = None
        abi.ffi.release(self._whole)
        self.memory.close()
