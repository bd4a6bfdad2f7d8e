# SPDX-License-Identifier: Apache-2.0
"""Threads of a stopped program that have the same alternate signal stack when the library comes.

A program may give all its threads one, for a handler that ends it anyway (Varnish's child).  Two threads whose calls
trap at the same time would meet on it.  So, as the library does for those that set it later
(sdlib/src/gate/altstack.c), the kernel is told of one of ours for each of them, and the library of what the program
has: `sd_boot.alts` is `nalts` stacks, behind which lies for each the beginning and the end of the program's.
"""

from __future__ import annotations

import contextlib
import struct

from sdlib import abi
from sdtrace.image import PAGE, Image
from sdtrace.memory import read_memory, write_memory
from sdtrace.ptrace import RemoteError
from sdtrace.remote import Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sdtrace.halted import Thread

_MMAP, _SIGALTSTACK = 9, 131
_MAP: Final = 2 | 0x20 | 0x4000
"""MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE."""
_READ_WRITE: Final = 3
_ONSTACK, _DISABLE, _AUTODISARM = 1, 2, 1 << 31
OWN_BYTES: Final = 65536
"""SD_OWN_ALT."""
_STACK: Final = struct.Struct("=QIxxxxQ")
_SPAN: Final = struct.Struct("=2Q")
_BOOT: Final = struct.Struct("=IQ")
_BOOT_AT: Final = abi.offsetof("struct sd_boot", "nalts")
_SCRATCH: Final = 64
"""Below the top of the stack on which the library has been started, and which nobody uses now."""


class Stacks:
    """Of one stopped process, in which the library has been started and calls do not trap yet."""

    def __init__(self, stopped: Stopped, image: Image) -> None:
        self._stopped, self._boot = stopped, image.symbols["sd_boot"]
        self._scratch = image.symbols["sd_boot_stack_top"] - _SCRATCH
        self._given: list[tuple[Thread, tuple[int, int]]] = []

    def part(self) -> None:
        """One for each thread that has its own with others. RemoteError."""
        if self._stopped.thread_count < 2:
            return
        self._stopped.end_calls()
        shared = self._shared()
        if not shared:
            return
        base = self._map(len(shared))
        spans = b"".join(_SPAN.pack(*span) for _, span in shared)
        write_memory(self._stopped.pid, base + len(shared) * OWN_BYTES, spans)
        write_memory(self._stopped.pid, self._boot + _BOOT_AT, _BOOT.pack(len(shared), base))
        for at, (thread, span) in enumerate(shared):
            self.set(thread, base + at * OWN_BYTES, base + (at + 1) * OWN_BYTES)
            self._given.append((thread, span))

    def undo(self) -> None:
        """The library goes again."""
        for thread, span in self._given:
            with contextlib.suppress(RemoteError, OSError):
                self.set(thread, *span)

    def had(self, thread: Thread) -> tuple[int, int] | None:
        """What the program has for a thread that was given another one and has made no call since; None otherwise."""
        count, base = self._all()
        if not count:
            return None
        start, _, _ = self._ask(thread)
        at, offset = divmod(start - base, OWN_BYTES)
        if offset or not 0 <= at < count:
            return None
        table = base + count * OWN_BYTES
        begin, end = _SPAN.unpack(read_memory(self._stopped.pid, table + at * _SPAN.size, _SPAN.size))
        return begin, end

    def is_on_given(self, rsp: int) -> bool:
        """Does that thread run a handler on one that was given?"""
        count, base = self._all()
        return 0 <= rsp - base < count * OWN_BYTES

    def set(self, thread: Thread, start: int, end: int) -> None:
        """The kernel has this one for it. RemoteError."""
        write_memory(self._stopped.pid, self._scratch, _STACK.pack(start, 0, end - start))
        if self._stopped.call_in(thread, _SIGALTSTACK, self._scratch, 0):
            raise RemoteError("its alternate signal stacks cannot be changed")

    def _all(self) -> tuple[int, int]:
        count, base = _BOOT.unpack(read_memory(self._stopped.pid, self._boot + _BOOT_AT, _BOOT.size))
        return count, base

    def _ask(self, thread: Thread) -> tuple[int, int, int]:
        if self._stopped.call_in(thread, _SIGALTSTACK, 0, self._scratch):
            raise RemoteError("its alternate signal stacks cannot be seen")
        start, flags, size = _STACK.unpack(read_memory(self._stopped.pid, self._scratch, _STACK.size))
        return start, flags, size

    def _shared(self) -> list[tuple[Thread, tuple[int, int]]]:
        """Threads that can be given another one; not who runs on it at this moment, which then is its alone."""
        found = []
        for thread in self._stopped.threads():
            start, flags, size = self._ask(thread)
            if size and not flags & (_DISABLE | _AUTODISARM):
                found.append(((start, start + size), thread, bool(flags & _ONSTACK)))
        found.sort(key=lambda each: each[0])
        ends = [0]  # the furthest of those before
        for (_, end), *_ in found:
            ends.append(max(ends[-1], end))
        following = [span[0] for span, *_ in found[1:]] + [1 << 64]
        return [(thread, span) for (span, thread, busy), before, after in zip(found, ends, following, strict=False)
                if not busy and (span[0] < before or after < span[1])]

    def _map(self, count: int) -> int:
        length = count * OWN_BYTES + -(-count * _SPAN.size // PAGE) * PAGE
        self._stopped.prepare_calls()
        try:
            base = self._stopped.call(_MMAP, 0, length, _READ_WRITE, _MAP, -1, 0)
        finally:
            self._stopped.end_calls()
        if -PAGE < base < 0:
            raise RemoteError("no memory for signal stacks")
        return base
