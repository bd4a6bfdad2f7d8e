# SPDX-License-Identifier: Apache-2.0
"""A stopped process in which we run system calls; the only file that knows ptrace.

`Stopped` is a scope: entering it stops every thread, leaving it puts back whatever was changed and lets them go,
also on errors.  A thread is left exactly as the kernel would have left it had we never come, with three corrections:

* The notified thread waits in the filter.  Our interrupt makes the kernel abandon that wait with -ERESTARTSYS, which only the
  signal code turns into a restart; after remote calls we are past that point.  So it is given registers that make the call
  anew: rip on the instruction, rax the number, orig_rax -1 (no restart logic).
* epoll_wait, recv with a time-out, sigtimedwait and semop answer any interruption with -EINTR, although no signal came.
  That becomes -ERESTARTNOHAND: restarted if there is no handler to run, still -EINTR if one arrived meanwhile.
* SIGSYS is unblocked where asked for; it belongs to the library.

Kernel facts used here: SEIZE works on threads one by one and new threads may appear until all are stopped, hence the
rescan.  A stop for a real signal swallows our pending interrupt, so it is asked for again before the signal is passed on.
A thread in an uninterruptible wait (a parent in vfork) does not stop: there is a deadline, and such threads are let go
as soon as they do (`release_lingering`).  With TRACESYSGOOD, stops at calls use no signal, so a blocked or ignored SIGTRAP
stays as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from sdtrace import procfs
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Notification

_CONT, _GETREGS, _SETREGS, _DETACH, _SYSCALL = 7, 12, 13, 17, 24
_PEEKTEXT, _POKETEXT = 1, 4
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_SET_DISPATCH: Final = 0x4210
_O_TRACESYSGOOD: Final = 1
_EVENT_STOP: Final = 128
_WALL: Final = 0x40000000
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80

ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_BLOCK = -512, -513, -514, -516
_STOP_DEADLINE_S: Final = 0.2
_CALL_DEADLINE_S: Final = 5.0
_ALL_SIGNALS: Final = (1 << 64) - 1
_SIGSYS_BIT: Final = 1 << (signal.SIGSYS - 1)
_SYSCALL_BYTES: Final = 0x050F
_JUMP_TO_SELF: Final = 0xFEEB


class Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
        "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs")]  # fmt: skip

    r10: int
    r9: int
    r8: int
    rax: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    gs_base: int

    def copy(self) -> Registers:
        """An independent set of the same values."""
        return Registers.from_buffer_copy(self)


class _Dispatch(ctypes.Structure):
    """struct ptrace_sud_config, linux/ptrace.h since 6.4."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("mode", "selector", "offset", "length")]


class RemoteError(Exception):
    """The process cannot be worked on. `transient`: the same attempt may succeed later."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        """`reason` is short and shown in reports."""
        super().__init__(reason)
        self.reason = reason
        self.transient = transient


_libc: Final = ctypes.CDLL(None, use_errno=True)
_ptrace: Final = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_lingering: set[int] = set()


def _request(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    """One ptrace request; OSError (ESRCH: the thread is gone or not stopped)."""
    if _ptrace(request, tid, address, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace {request:#x} of {tid}: {os.strerror(error)}")


def _get_registers(tid: int) -> Registers:
    registers = Registers()
    _request(_GETREGS, tid, 0, ctypes.addressof(registers))
    return registers


def _set_registers(tid: int, registers: Registers) -> None:
    _request(_SETREGS, tid, 0, ctypes.addressof(registers))


def _get_mask(tid: int) -> int:
    mask = ctypes.c_uint64()
    _request(_GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return mask.value


def _set_mask(tid: int, mask: int) -> None:
    value = ctypes.c_uint64(mask)
    _request(_SETSIGMASK, tid, 8, ctypes.addressof(value))


def _peek(tid: int, address: int) -> int:
    """Eight bytes of its memory; libc's ptrace returns the word, so errno alone tells an error."""
    ctypes.set_errno(0)
    word: int = _ptrace(_PEEKTEXT, tid, address, 0)
    if word == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"peek at {address:#x}")
    return word & _ALL_SIGNALS


def _wait(tid: int, deadline: float) -> int | None:
    """Wait status of a stopped thread; None: it is gone. RemoteError (transient) at the deadline, CLOCK_MONOTONIC."""
    turns = 0
    while True:
        try:
            pid, status = os.waitpid(tid, _WALL | os.WNOHANG)
        except ChildProcessError:
            return None
        if pid:
            return status if os.WIFSTOPPED(status) else None
        if time.monotonic() > deadline:
            raise RemoteError("thread does not stop", transient=True)
        turns += 1
        if turns < 100:
            os.sched_yield()
        else:
            time.sleep(0.0001)


def _detach(tid: int, pass_signal: int = 0) -> None:
    with contextlib.suppress(OSError):
        _request(_DETACH, tid, 0, pass_signal)


def release_lingering() -> bool:
    """Let threads go that stopped too late; True while some remain to be looked after."""
    for tid in list(_lingering):
        try:
            pid, status = os.waitpid(tid, _WALL | os.WNOHANG)
        except ChildProcessError:
            _lingering.discard(tid)
            continue
        if pid:
            _lingering.discard(tid)
            if os.WIFSTOPPED(status):
                event_stop = status >> 16 == _EVENT_STOP
                if event_stop:
                    _hide_interruption(tid)
                _detach(tid, 0 if event_stop else os.WSTOPSIG(status))
    return bool(_lingering)


def _hide_interruption(tid: int) -> None:
    """The EINTR correction for a thread that is let go without a visit."""
    with contextlib.suppress(OSError):
        registers = _get_registers(tid)
        if _spurious_eintr(registers):
            registers.rax = ERESTARTNOHAND & _ALL_SIGNALS
            _set_registers(tid, registers)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _spurious_eintr(registers: Registers) -> bool:
    """Is this a call that our interrupt ended with -EINTR?"""
    return _signed(registers.orig_rax) >= 0 and _signed(registers.rax) == -errno.EINTR


def _made_anew(registers: Registers) -> Registers:
    """Registers with which an interrupted call is made again, from whatever kind of stop."""
    result = registers.copy()
    code = _signed(registers.rax)
    if _signed(registers.orig_rax) >= 0 and code in (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_BLOCK):
        restart_syscall = 219
        result.rax = restart_syscall if code == ERESTART_BLOCK else registers.orig_rax
        result.rip -= 2
        result.orig_rax = _ALL_SIGNALS
    return result


@dataclass
class _Thread:
    """A stopped thread, and what is to be put back."""

    tid: int
    registers: Registers
    mask: int
    final_mask: int
    restore: Registers | None = None
    dispatched: bool = field(default=False)


class Stopped:
    """All threads of a process, stopped; the notified one can run system calls and functions."""

    def __init__(self, pid: int, notif: Notification, keepsake: Keepsake) -> None:
        """`pid` is the thread group; nothing happens before the scope is entered."""
        self.pid = pid
        self._notif = notif
        self._keepsake = keepsake
        self._threads: dict[int, _Thread] = {}
        self._landing: tuple[int, int] | None = None
        self._commit = False

    # ---------------------------------------------------------------- scope

    def __enter__(self) -> Stopped:
        """Stop everything. RemoteError when that cannot be done; nothing is left changed then."""
        try:
            self._stop_all(time.monotonic() + _STOP_DEADLINE_S)
            self._prepare_leader()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let everything go, as it was or (after `commit`) with dispatch on and SIGSYS unblocked."""
        self._commit = self._commit and kind is None
        self._let_go()

    def _stop_all(self, deadline: float) -> None:
        """Seize and interrupt in two passes, so that the threads come to a stop side by side."""
        while new := [tid for tid, state in procfs.thread_states(self.pid).items()
                      if tid not in self._threads and state not in "ZX"]:
            seized = [tid for tid in new if self._seize(tid)]
            for tid in seized:
                with contextlib.suppress(ProcessLookupError):
                    _request(_INTERRUPT, tid)
            for position, tid in enumerate(seized):
                try:
                    self._arrive(tid, deadline)
                except RemoteError:
                    _lingering.update(set(seized[position:]) - set(self._threads))
                    raise
            if not seized:
                return

    def _seize(self, tid: int) -> bool:
        try:
            _request(_SEIZE, tid, 0, _O_TRACESYSGOOD)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            if procfs.thread_states(self.pid).get(tid, "Z") in "ZX":
                return False
            raise RemoteError("ptrace-refused") from error
        return True

    def _arrive(self, tid: int, deadline: float) -> None:
        """Bring a seized thread to our own stop, passing signals on."""
        while (status := _wait(tid, deadline)) is not None:
            stop_signal = os.WSTOPSIG(status)
            if status >> 16 == _EVENT_STOP:
                registers = _get_registers(tid)
                mask = _get_mask(tid)
                self._threads[tid] = _Thread(tid, registers, mask, mask)
                if stop_signal != signal.SIGTRAP:
                    raise RemoteError("stopped by job control", transient=True)
                return
            with contextlib.suppress(ProcessLookupError):
                _request(_INTERRUPT, tid)
                _request(_CONT, tid, 0, stop_signal)

    def _prepare_leader(self) -> None:
        leader = self._threads.get(self._notif.tid)
        if leader is None:
            raise RemoteError("thread has ended", transient=True)
        self._leader = leader
        leader.restore = _made_anew(leader.registers)
        if _peek(leader.tid, self._notif.ip - 2) & 0xFFFF != _SYSCALL_BYTES:
            raise RemoteError("call site is not a syscall instruction")

    def _let_go(self) -> None:
        if not self._commit:
            with contextlib.suppress(OSError, RemoteError):
                self.dispatch_nowhere()
        for thread in self._threads.values():
            with contextlib.suppress(OSError):
                self._put_back(thread)
        if self._landing:
            self._keepsake.forget_thread()
        for thread in self._threads.values():
            _detach(thread.tid)

    def _put_back(self, thread: _Thread) -> None:
        if self._landing and thread is self._leader:
            _request(_POKETEXT, thread.tid, *self._landing)
        if thread.restore is not None:
            _set_registers(thread.tid, thread.restore)
        elif _spurious_eintr(thread.registers):
            hidden = thread.registers.copy()
            hidden.rax = ERESTARTNOHAND & _ALL_SIGNALS
            _set_registers(thread.tid, hidden)
        mask = thread.final_mask if self._commit else thread.mask
        # Setting a mask ends a temporary one (ppoll, sigsuspend), whose call is restarted anyway: only if needed.
        if mask != thread.mask or (self._landing and thread is self._leader):
            _set_mask(thread.tid, mask)

    # ----------------------------------------------------------- inspection

    def registers(self) -> Iterator[Registers]:
        """Registers of every thread, as found."""
        return (thread.registers for thread in self._threads.values())

    @property
    def thread_count(self) -> int:
        """How many threads the process has."""
        return len(self._threads)

    @property
    def still_in_call(self) -> bool:
        """Was the notified thread stopped in its call, and not by a signal on the way to a handler?"""
        found = self._leader.registers
        return found.rip == self._notif.ip and _signed(found.rax) == ERESTARTSYS and found.orig_rax == self._notif.nr

    # ------------------------------------------------------------- remote run

    def prepare_calls(self) -> None:
        """Block signals in the notified thread and put a jump to itself behind its call instruction.

        The jump is where the thread lands if we die in the middle of a remote call (launch/rescue.c). All threads are
        stopped, so nobody else runs these bytes.
        """
        leader = self._leader
        assert leader.restore is not None
        address = self._notif.ip
        word = _peek(leader.tid, address)
        self._keepsake.remember_thread(leader.tid, address, word, leader.mask, bytes(leader.restore))
        self._landing = (address, word)
        _request(_POKETEXT, leader.tid, address, word & ~0xFFFF | _JUMP_TO_SELF)
        # SIGTRAP stays open: the int3 at the end of a function forces it, and forcing a blocked signal resets its handler.
        _set_mask(leader.tid, _ALL_SIGNALS & ~procfs.SIGTRAP_BIT)

    def call(self, number: int, *args: int) -> int:
        """Run one system call in the notified thread; returns its result (-errno)."""
        leader = self._leader
        assert leader.restore is not None
        registers = leader.registers.copy()
        registers.rip = self._notif.ip - 2
        registers.rax = number
        registers.orig_rax = _ALL_SIGNALS
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), args, strict=False):
            setattr(registers, name, value & _ALL_SIGNALS)
        _set_registers(leader.tid, registers)
        for _ in ("entry", "exit"):
            self._resume(_SYSCALL, _SYSCALL_STOP)
        result = _signed(_get_registers(leader.tid).rax)
        # Between two calls the thread has the program's own registers: nothing is to be rescued then.
        _set_registers(leader.tid, leader.restore)
        return result

    def run(self, address: int, stack_top: int) -> int:
        """Run code at `address` until its int3; returns rax."""
        leader = self._leader
        assert leader.restore is not None
        direction_flag = 1 << 10
        registers = leader.registers.copy()
        registers.rip, registers.rsp, registers.orig_rax = address, stack_top, _ALL_SIGNALS
        registers.eflags &= ~direction_flag
        _set_registers(leader.tid, registers)
        self._resume(_CONT, signal.SIGTRAP)
        result = _signed(_get_registers(leader.tid).rax)
        _set_registers(leader.tid, leader.restore)
        return result

    def _resume(self, request: int, expected: int) -> None:
        leader = self._leader
        _request(request, leader.tid)
        deadline = time.monotonic() + _CALL_DEADLINE_S
        while True:
            try:
                status = _wait(leader.tid, deadline)
            except RemoteError as error:
                _request(_INTERRUPT, leader.tid)
                _wait(leader.tid, deadline + 1)
                raise RemoteError("remote code does not end") from error
            if status is None:
                raise RemoteError("process has ended", transient=True)
            if status >> 16 == _EVENT_STOP:
                _request(request, leader.tid)  # job control of a sibling; we go on to the end
                continue
            if os.WSTOPSIG(status) == expected:
                return
            raise RemoteError(f"remote code got signal {os.WSTOPSIG(status)}")

    # -------------------------------------------------------------- dispatch

    def dispatch_everywhere(self, gate_start: int, gate_end: int) -> None:
        """Turn on Syscall User Dispatch in every thread, exempting the gate, with SIGSYS open."""
        for thread in self._threads.values():
            self._dispatch(thread, on=True, start=gate_start, length=gate_end - gate_start)
            thread.final_mask = thread.mask & ~_SIGSYS_BIT

    def dispatch_nowhere(self) -> None:
        """Turn it off again where it is on, so that remote calls work."""
        for thread in self._threads.values():
            if thread.dispatched:
                self._dispatch(thread, on=False, start=0, length=0)

    def _dispatch(self, thread: _Thread, *, on: bool, start: int, length: int) -> None:
        config = _Dispatch(int(on), 0, start, length)
        try:
            _request(_SET_DISPATCH, thread.tid, ctypes.sizeof(config), ctypes.addressof(config))
        except ProcessLookupError:
            return  # killed while stopped
        except OSError as error:
            raise RemoteError(f"no syscall user dispatch: {os.strerror(error.errno or 0)}") from error
        thread.dispatched = on

    def commit(self) -> None:
        """What was done shall stay when the scope is left."""
        self._commit = True
