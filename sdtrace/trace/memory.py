# SPDX-License-Identifier: Apache-2.0
"""The memory that a family of processes writes records into (sd_trace.h, struct sd_trace), and how they are taken out.

The words in it are the programs': a tail that no honest one could have written is counted as loss and skipped.
Nobody maps it any more when its memfd can be sealed against writing (areas.py says why).
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Final

from sdlib import abi
from sdtrace.sealed import last_look
from sdtrace.trace import stream
from sdtrace.trace.stream import Kind

BYTES: Final = abi.sizeof("struct sd_trace")
_CHANNELS: Final = abi.const.SD_TRACE_CHANNELS
_SLOTS: Final = abi.const.SD_TRACE_RECORDS
_LINE: Final = abi.sizeof("struct sd_trace_record")
_RECORDS_AT: Final = abi.offsetof("struct sd_trace", "record")
_CHANNELS_AT: Final = abi.offsetof("struct sd_trace", "channel")
_CHANNEL_WORDS: Final = abi.sizeof("struct sd_trace_channel") // 8
_serials: Final = itertools.count()


class Memory:
    """One memfd, mapped. Only the drain's thread uses it, once it is made."""

    def __init__(self, pid: int, *, host_pids: bool) -> None:
        """For process `pid`, in its own namespace; OSError: no memory, no descriptor."""
        self.pid = pid
        self.host_pids = host_pids
        self._serial = next(_serials) * _CHANNELS
        self._heads = [0] * _CHANNELS
        self._dropped = [0] * _CHANNELS
        self._homeless = 0
        self.fd = os.memfd_create("sd-trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, BYTES)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._map()
        except OSError:
            os.close(self.fd)
            raise
        self._view.magic, self._view.version = abi.const.SD_TRACE_MAGIC, abi.const.SD_ABI_VERSION
        self._view.bytes = BYTES

    def _map(self) -> None:
        self._memory = mmap.mmap(self.fd, BYTES)
        self._view = abi.view("struct sd_trace", self._memory)

    def _tails(self) -> list[int]:
        """All at once: a look at each would be most of the drain's work."""
        end = _CHANNELS_AT + _CHANNELS * _CHANNEL_WORDS * 8
        with (memoryview(self._memory) as whole, whole[_CHANNELS_AT:end] as part, part.cast("Q") as words,
              words[::_CHANNEL_WORDS] as tails):
            return tails.tolist()

    def has_news(self) -> bool:
        """Is there anything to take out?"""
        return self._tails() != self._heads

    def drain(self, write: Callable[[bytes], None]) -> None:
        """Write what is new as chunks."""
        tails = self._tails()  # acquires: [T1]
        for number, (head, tail) in enumerate(zip(self._heads, tails, strict=True)):
            count = (tail - head) % (1 << 64)
            if not count:
                continue
            source = self._serial + number
            if count > _SLOTS:
                write(stream.lost(source, 1))
            else:
                write(stream.chunk(Kind.RECORDS, source, self._copy(number, head, count)))
            self._heads[number] = tail
            self._view.channel[number].head = tail  # releases: [T2]
        self._losses(write)

    def _copy(self, number: int, head: int, count: int) -> bytes:
        ring = _RECORDS_AT + number * _SLOTS * _LINE
        at = head % _SLOTS
        first = min(count, _SLOTS - at)
        data = self._memory[ring + at * _LINE:ring + (at + first) * _LINE]
        return data + self._memory[ring:ring + (count - first) * _LINE] if first < count else data

    def _losses(self, write: Callable[[bytes], None]) -> None:
        for number in range(_CHANNELS):
            if not self._heads[number]:
                continue
            dropped = int(self._view.channel[number].dropped)
            if dropped > self._dropped[number]:
                write(stream.lost(self._serial + number, dropped - self._dropped[number]))
                self._dropped[number] = dropped
        homeless = int(self._view.homeless)
        if homeless > self._homeless:
            write(stream.lost(self._serial, homeless - self._homeless))
            self._homeless = homeless

    def owners(self) -> Iterator[tuple[int, int, int]]:
        """Channel number, process and thread of channels that somebody has."""
        for number, head in enumerate(self._heads):
            channel = self._view.channel[number]
            if head and channel.owner:
                yield number, int(channel.pid), int(channel.owner)

    def free(self, number: int) -> None:
        """Its thread is no more."""
        self._view.channel[number].owner = 0

    def unused(self) -> bool:
        """Does nobody map it any more? Then nobody can ever again; drain it once more, and close it."""
        private = None
        try:
            private = last_look(self.fd, BYTES, self._unmap)
        finally:
            if private is None:
                self._map()
        if private is None:
            return False
        self._memory = private
        self._view = abi.view("struct sd_trace", private)
        return True

    def _unmap(self) -> None:
        self._view = None
        self._memory.close()

    def close(self) -> None:
        """Forget it."""
        self._unmap()
        os.close(self.fd)
