# SPDX-License-Identifier: Apache-2.0
"""A stopped process in which we run system calls; with halted.py the only file that uses ptrace (its
requests are in ptrace.py).

`Stopped` is a scope: entering it stops every thread, leaving it puts back whatever was changed and lets them go,
also on errors.  A thread is left exactly as the kernel would have left it had we never come (halted.py), with two
corrections:

* The notified thread waits in the filter.  Our interrupt, or the answer that goes with it, ends that wait with
  -ERESTARTSYS or -ERESTARTNOINTR, which only the signal code turns into a restart; after remote calls we are past that
  point.  So it is given registers that make the call anew: rip on the instruction, rax the number, orig_rax -1 (no
  restart logic).
* SIGSYS is unblocked where asked for; it belongs to the library.

With TRACESYSGOOD, stops at calls use no signal, so a blocked or ignored SIGTRAP stays as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

from sdlib import abi
from sdtrace import notify, procfs
from sdtrace.halted import Halted, Thread
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Notification
from sdtrace.ptrace import (
    ALL_SIGNALS,
    CONT,
    ERESTARTNOINTR,
    ERESTARTSYS,
    EVENT_STOP,
    INTERRUPT,
    POKETEXT,
    SYSCALL,
    Registers,
    RemoteError,
    ask,
    get_registers,
    made_anew,
    peek,
    poll_stop,
    set_dispatch,
    set_registers,
    signed,
    spurious_eintr,
    uninterrupted,
    wait,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_CALL_DEADLINE_S: Final = 5.0
_SETTLE_S: Final = 5.0
_SIGSYS_BIT: Final = 1 << (signal.SIGSYS - 1)
_SYSCALL_BYTES: Final = 0x050F
_DIRECTION_FLAG: Final = 1 << 10

_LANDING: Final = (
    b"\xeb\xfe"  # here a remote call returns to: jmp to itself
    b"\x97"  # here the library's start returns to: xchg %eax,%edi keeps its result
    b"\xb8" + int(abi.const.SD_HC_NR).to_bytes(4, "little")  # mov $SD_HC_NR,%eax
    + b"\x0f\x05"  # syscall, which the filter always holds
    + b"\xeb\xfe"
).ljust(16, b"\x90")
LANDING_BYTES: Final = len(_LANDING)
MARK: Final = 0x65746F6D65524453
"""In rbx, which calls preserve: tells a thread on our errand from one that comes by (launch/rescue.c has the same)."""
_RETURN_AT: Final = 2
_BLOCKED_AT: Final = 10


class Stopped(Halted):
    """All threads of a process, stopped; the notified one can run system calls and functions."""

    def __init__(self, pid: int, notif: Notification, keepsake: Keepsake) -> None:
        """`pid` is the thread group; nothing happens before the scope is entered."""
        super().__init__(pid)
        self._notif = notif
        self._keepsake = keepsake
        self._landing: list[tuple[int, int]] = []
        self._leader = Thread(notif.tid, Registers(), 0, 0)

    # ---------------------------------------------------------------- scope

    def _prepare(self) -> None:
        leader = self._threads.get(self._notif.tid)
        if leader is None:
            raise RemoteError("thread has ended", transient=True)
        self._leader = leader
        leader.restore = made_anew(leader.registers)
        if peek(leader.tid, self._notif.ip - 2) & 0xFFFF != _SYSCALL_BYTES:
            raise RemoteError("call site is not a syscall instruction")

    def _let_go(self) -> None:
        if not self._commit:
            with contextlib.suppress(OSError, RemoteError):
                self.dispatch_nowhere()
        with contextlib.suppress(OSError):
            self.end_calls()
        super()._let_go()

    # ----------------------------------------------------------- inspection

    @property
    def still_in_call(self) -> bool:
        """Was the notified thread stopped in its call, and not by a signal on the way to a handler?"""
        found = self._leader.registers
        ended = signed(found.rax) in (ERESTARTSYS, ERESTARTNOINTR)
        return found.rip == self._notif.ip and ended and found.orig_rax == self._notif.nr

    # ------------------------------------------------------------- remote run

    def prepare_calls(self) -> None:
        """Block signals in the notified thread and put the landing behind its call instruction.

        There it ends up if we die in the middle of a remote call (launch/rescue.c). All threads are stopped, so nobody
        else runs these bytes.
        """
        if self._landing:
            return
        leader = self._leader
        assert leader.restore is not None
        address = self._notif.ip
        own = [(address + offset, peek(leader.tid, address + offset)) for offset in range(0, len(_LANDING), 8)]
        words = [word for _, word in own]
        self._keepsake.remember_thread(leader.tid, address, words, leader.mask, bytes(leader.restore))
        self._landing = own
        for position, (place, _) in enumerate(own):
            ask(POKETEXT, leader.tid, place, int.from_bytes(_LANDING[8 * position:8 * position + 8], "little"))
        self._set_mask(leader, ALL_SIGNALS)

    def end_calls(self) -> None:
        """Give the notified thread its code, registers and signals back: from here on, our death harms nobody."""
        leader = self._leader
        if not self._landing or leader.restore is None:
            return
        for place, word in self._landing:
            ask(POKETEXT, leader.tid, place, word)
        self._landing = []
        set_registers(leader.tid, leader.restore)
        self._set_mask(leader, leader.mask)
        self._keepsake.forget_thread()

    def call(self, number: int, *args: int) -> int:
        """Run one system call in the notified thread; returns its result (-errno)."""
        leader = self._leader
        assert leader.restore is not None
        registers = leader.registers.copy()
        registers.rip = self._notif.ip - 2
        registers.rbx = MARK
        registers.rax = number
        registers.orig_rax = ALL_SIGNALS
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), args, strict=False):
            setattr(registers, name, value & ALL_SIGNALS)
        set_registers(leader.tid, registers)
        for _ in ("entry", "exit"):
            self._to_next_call_stop()
        result = signed(get_registers(leader.tid).rax)
        # Between two calls the thread has the program's own registers: nothing is to be rescued then.
        set_registers(leader.tid, leader.restore)
        return result

    def call_in(self, thread: Thread, number: int, *args: int) -> int:
        """One system call in that thread, which is as it was found afterwards; not while calls are prepared."""
        leader, notif, restore = self._leader, self._notif, thread.restore
        self._leader, self._notif = thread, Notification(0, thread.tid, 0, notif.ip, ())
        thread.restore = made_anew(self.as_found(thread.registers))
        try:
            Stopped.prepare_calls(self)
            return Stopped.call(self, number, *args)
        finally:
            self._settle(thread)
            thread.restore = self.as_found(thread.registers)
            Stopped.end_calls(self)
            thread.restore = restore
            self._leader, self._notif = leader, notif

    @staticmethod
    def _settle(thread: Thread) -> None:
        """From a stop at a call to one of the kind in which it was found: from there the kernel restarts calls."""
        ask(INTERRUPT, thread.tid)
        ask(CONT, thread.tid)
        status = wait(thread.tid, time.monotonic() + _SETTLE_S, notify.let_stop)
        if status is None or status >> 16 != EVENT_STOP:
            raise RemoteError("process has ended" if status is None else "it does not stop as it was")

    @staticmethod
    def as_found(registers: Registers) -> Registers:
        """With which the kernel goes on as if nobody had come."""
        return uninterrupted(registers) if spurious_eintr(registers) else registers

    def run(self, address: int, stack_top: int) -> int:
        """Run the code at `address`, `cld; call FUNCTION; int3`; returns what FUNCTION returns, an int.

        Only FUNCTION is run, and it returns to the landing, where the thread blocks in a call that the filter holds: an
        int3 would kill it if we were no longer there, and a loop would spin away a time slice before we run again.
        """
        leader = self._leader
        assert leader.restore is not None
        code = peek(leader.tid, address).to_bytes(8, "little")
        if (code[:2], code[6:7]) != (b"\xfc\xe8", b"\xcc"):
            raise RemoteError("the library's start is not as agreed")
        registers = leader.registers.copy()
        registers.rip = address + 6 + int.from_bytes(code[2:6], "little", signed=True)
        registers.rsp = stack_top - 8
        registers.rbx = MARK
        registers.orig_rax = ALL_SIGNALS
        registers.eflags &= ~_DIRECTION_FLAG
        ask(POKETEXT, leader.tid, registers.rsp, self._notif.ip + _RETURN_AT)
        self._keepsake.in_start(True)
        set_registers(leader.tid, registers)
        ask(CONT, leader.tid)
        result = self._await_landing()
        set_registers(leader.tid, leader.restore)
        self._keepsake.in_start(False)
        return result

    def _await_landing(self) -> int:
        """Wait until the thread blocks in the landing's call, and stop it there; returns what it brought along."""
        leader = self._leader
        deadline = time.monotonic() + _CALL_DEADLINE_S
        while not procfs.blocked_in(leader.tid, abi.const.SD_HC_NR):
            status = poll_stop(leader.tid)
            if status is not None:
                raise RemoteError(f"the library's start got signal {os.WSTOPSIG(status)}")
            if time.monotonic() > deadline:
                break
            os.sched_yield()
        ask(INTERRUPT, leader.tid)
        status = wait(leader.tid, deadline + 1, notify.let_stop)  # the keeper has received that call
        if status is None:
            raise RemoteError("process has ended", transient=True)
        registers = get_registers(leader.tid)
        if status >> 16 != EVENT_STOP or registers.rip != self._notif.ip + _BLOCKED_AT:
            raise RemoteError("the library's start does not end")
        return ctypes.c_int32(registers.rdi & 0xFFFFFFFF).value

    def _to_next_call_stop(self) -> None:
        leader = self._leader
        ask(SYSCALL, leader.tid)
        deadline = time.monotonic() + _CALL_DEADLINE_S
        while (status := wait(leader.tid, deadline)) is not None:
            if os.WSTOPSIG(status) == _SYSCALL_STOP:
                return
            if status >> 16 != EVENT_STOP:
                raise RemoteError(f"remote code got signal {os.WSTOPSIG(status)}")
            ask(SYSCALL, leader.tid)  # an interrupt of ours that came late
        raise RemoteError("process has ended", transient=True)

    # -------------------------------------------------------------- dispatch

    def dispatch_everywhere(self, gate_start: int, gate_end: int) -> None:
        """Turn on Syscall User Dispatch in every thread, exempting the gate, with SIGSYS open. The last thing to do.

        The masks come first: a thread that traps with SIGSYS blocked is killed.
        """
        self.end_calls()
        for thread in self._threads.values():
            if thread.mask & _SIGSYS_BIT:
                self._set_mask(thread, thread.mask & ~_SIGSYS_BIT)
            self._dispatch(thread, on=True, start=gate_start, length=gate_end - gate_start)

    def dispatch_nowhere(self) -> None:
        """Turn it off again where it is on, so that remote calls work."""
        for thread in self._threads.values():
            if thread.dispatched:
                self._dispatch(thread, on=False, start=0, length=0)

    def _dispatch(self, thread: Thread, *, on: bool, start: int, length: int) -> None:
        try:
            set_dispatch(thread.tid, on=on, start=start, length=length)
        except ProcessLookupError:
            return  # killed while stopped
        except OSError as error:
            raise RemoteError(f"no syscall user dispatch: {os.strerror(error.errno or 0)}") from error
        thread.dispatched = on

    def commit(self) -> None:
        """What was done shall stay when the scope is left."""
        self._commit = True
