# SPDX-License-Identifier: Apache-2.0
"""Taking the library out of a stopped program again: `sdrun --detach`.

Each thread has to be outside of the library, or where it can be taken out without anything being lost:

- in a bare call of the gate, asleep or about to make it: it goes on at the program's own call instruction;
- asleep in a timed call that goes on since the program was attached (restart_syscall, from the SIGSYS handler): the
  registers are in the signal's frame, and the kernel still knows until when;
- asleep in a call that has done nothing yet (poll and its kin, accept, a receive that need not be complete): its
  registers are in the frame with which it came (struct sd_frame), and it makes the call anew, natively.

A thread that is anywhere else, say in the middle of a large send, is waited for.

Where the kernel has an alternate signal stack of ours in the place of the program's (sdlib/src/gate/altstack.c) it is
given the program's again.  Ours stays mapped: a handler that runs at this moment brings it back when it returns.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sdlib import abi
from sdtrace.halted import Thread
from sdtrace.image import Image
from sdtrace.memory import read_memory
from sdtrace.ptrace import (
    ALL_SIGNALS,
    ERESTART_BLOCK,
    ERESTARTNOHAND,
    ERESTARTNOINTR,
    ERESTARTSYS,
    Registers,
    RemoteError,
    set_dispatch,
    signed,
)
from sdtrace.seized import Seized
from sdtrace.stacks import OWN_BYTES, Stacks

_SLOT_BYTES, _SLOTS = 128, 4096
_BEFORE: Final = frozenset((*range(31), 38, *range(43, 74), *range(98, 118)))
"""Offsets in a slot before its call: gate.S. Only rcx and r11 have changed, which no call keeps."""
_AFTER: Final = frozenset((32, 75))
_LEVEL_AT, _FLAGS_AT, _FRAME_AT, _OWN_ALT_AT = 8, 60, 64, 216
"""struct sd_tcb, sd.h."""
_ALT: Final = struct.Struct("=3Q")
"""own_alt, small_lo, small_hi there."""
_SIGSYS_BLOCKED: Final = 1
_SIGSYS: Final = 1 << 30
_FRAME: Final = struct.Struct("=15Q")
_FRAME_NAMES: Final = (
    "r15", "r14", "r13", "r12", "rbx", "rbp", "rax", "r9", "r8", "r10", "rdx", "rsi", "rdi", "eflags",
)  # fmt: skip
_RED_ZONE: Final = 128
_RESTART: Final = 219
_HANDLER_BYTES: Final = 1024
_CONTEXT: Final = struct.Struct("=18Q")
_CONTEXT_AT: Final = 40  # of the registers in struct ucontext
_CONTEXT_NAMES: Final = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax",
                         "rcx", "rsp", "rip", "eflags")
_WAITALL: Final = 0x100
_NOTHING_YET: Final = frozenset({7, 271, 23, 270, 232, 281, 441, 43, 288, 130, 0, 19})
"""poll, ppoll, select, pselect6, epoll_wait, epoll_pwait, epoll_pwait2, accept, accept4, sigsuspend, read, readv."""
_RECEIVES: Final = {45: "r10", 47: "rdx"}  # recvfrom, recvmsg: where their flags are
_ASLEEP: Final = frozenset({ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_BLOCK, -4})
_UNDO: Final = struct.Struct("=4QB15s")
_STUBS: Final = struct.Struct("=2Q")
_STUB_AREAS, _STUB_BYTES = 32, 4 * 4096


class Busy(RemoteError):
    """A thread is where nobody can take it out now."""

    def __init__(self, tid: int) -> None:
        super().__init__(f"thread {tid} does not come out of the library", transient=True)


@dataclass(frozen=True)
class Out:
    """Where a thread goes on, and with which mask."""

    thread: Thread
    registers: Registers
    mask: int
    alt: tuple[int, int] | None = None
    """The program's alternate stack, its beginning and end, where the kernel has another one."""


class Release:
    """One stopped process."""

    def __init__(self, seized: Seized, image: Image) -> None:
        self._seized, self._image, self._stacks = seized, image, Stacks(seized, image)
        self._end = max(segment.vaddr + segment.memsz for segment in image.segments)
        self._stubs = [base for base, _ in _STUBS.iter_unpack(
            read_memory(seized.pid, image.symbols["sd_stubs"], _STUB_AREAS * _STUBS.size)) if base]
        count = int.from_bytes(read_memory(seized.pid, image.symbols["sd_nundo"], 4), "little")
        table = read_memory(seized.pid, image.symbols["sd_undo"], count * _UNDO.size) if count else b""
        self._resume = {at: resume for at, resume, *_ in _UNDO.iter_unpack(table) if resume}

    def plan(self) -> list[Out]:
        """Where each thread would go on; Busy. Nothing is changed."""
        return [self._out(thread) for thread in self._seized.threads()]

    def run(self, plan: list[Out]) -> None:
        """Give the program all that is its own."""
        seized, symbols = self._seized, self._image.symbols
        for thread in seized.threads():
            set_dispatch(thread.tid, on=False, start=0, length=0)
        seized.prepare_calls()
        result = seized.run(symbols["sd_unhook"], symbols["sd_boot_stack_top"])
        if result:
            raise RemoteError(f"the library does not let go: {result}")
        seized.end_calls()
        for out in plan:
            span = out.alt or self._stacks.had(out.thread)
            if span:
                self._stacks.set(out.thread, *span)
            seized.leave_at(out.thread, out.registers, out.mask)

    # ------------------------------------------------------------------ threads

    def _out(self, thread: Thread) -> Out:
        found, pid = thread.registers, self._seized.pid
        level, flags, frame = 0, 0, 0
        alt = None
        if block := self._image.thread_block(found.gs_base):
            level, = struct.unpack("=I", read_memory(pid, block + _LEVEL_AT, 4))
            flags, = struct.unpack("=I", read_memory(pid, block + _FLAGS_AT, 4))
            frame, = struct.unpack("=Q", read_memory(pid, block + _FRAME_AT, 8))
            ours, start, end = _ALT.unpack(read_memory(pid, block + _OWN_ALT_AT, _ALT.size))
            if ours and 0 <= int(found.rsp) - ours < OWN_BYTES:
                raise Busy(thread.tid)  # a handler that could not be moved
            alt = (start, end) if ours else None
        elif self._stacks.is_on_given(found.rsp):
            raise Busy(thread.tid)
        if level == 0:
            registers = self._outside(thread)
        elif level == 1:
            registers = self._asleep(thread, frame)
        else:
            raise Busy(thread.tid)
        registers.gs_base = 0
        return Out(thread, registers, thread.mask | (_SIGSYS if flags & _SIGSYS_BLOCKED else 0), alt)

    def _outside(self, thread: Thread) -> Registers:
        found = thread.registers
        rip = int(found.rip)
        if any(base <= rip < base + _STUB_BYTES for base in self._stubs):
            raise Busy(thread.tid)
        result = self._seized.as_found(found).copy()
        if not abi.const.SD_LIB_BASE <= rip < self._end:
            result.rip = self._resume.get(rip, rip)
            return result
        if rip == self._image.symbols["sd_sys_ret"] and signed(found.orig_rax) == _RESTART:
            return self._timed(thread)
        index, offset = divmod(rip - self._image.symbols["sd_gate_start"], _SLOT_BYTES)
        if not 0 <= index < _SLOTS or offset not in _BEFORE | _AFTER:
            raise Busy(thread.tid)
        site = self._site(index)
        if offset in _AFTER:
            result.rip = site + 2  # asleep: the kernel steps back onto the instruction; else it has returned
        else:
            result.rip, result.orig_rax = site, ALL_SIGNALS
        return result

    def _timed(self, thread: Thread) -> Registers:
        """Below the handler's own stack lie the address of its restorer and the kernel's frame."""
        found = thread.registers
        stack = read_memory(self._seized.pid, found.rsp, _HANDLER_BYTES + _CONTEXT.size)
        at = stack.find(self._image.symbols["sd_restorer"].to_bytes(8, "little"))
        if not 0 <= at < _HANDLER_BYTES or signed(found.rax) not in _ASLEEP:
            raise Busy(thread.tid)
        result = found.copy()
        for name, value in zip(_CONTEXT_NAMES, _CONTEXT.unpack_from(stack, at + 8 + _CONTEXT_AT), strict=True):
            setattr(result, name, value)
        if result.rax != _RESTART:
            raise Busy(thread.tid)
        result.rax, result.orig_rax = found.rax, _RESTART
        return result

    def _site(self, slot: int) -> int:
        word = read_memory(self._seized.pid, self._image.symbols["sd_slot_ret"] + 8 * slot, 8)
        return int.from_bytes(word, "little") - 2

    def _asleep(self, thread: Thread, frame: int) -> Registers:
        """In a call from C."""
        found = thread.registers
        asleep = (int(found.rip) == self._image.symbols["sd_sys_ret"] and signed(found.orig_rax) >= 0
                  and signed(found.rax) in _ASLEEP)
        if not asleep or frame & 1:
            raise Busy(thread.tid)
        *values, after = _FRAME.unpack(read_memory(self._seized.pid, frame, _FRAME.size))
        result = found.copy()
        for name, value in zip(_FRAME_NAMES, values, strict=True):
            setattr(result, name, value)
        number = int(result.rax) & 0xFFFFFFFF
        complete = number in _RECEIVES and int(getattr(result, _RECEIVES[number])) & _WAITALL
        if complete or number not in _NOTHING_YET | _RECEIVES.keys():
            raise Busy(thread.tid)
        result.rsp = frame + _FRAME.size + _RED_ZONE
        result.rip = self._site((after - self._image.symbols["sd_gate_start"]) // _SLOT_BYTES)
        result.orig_rax = ALL_SIGNALS
        return result
