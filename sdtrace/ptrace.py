# SPDX-License-Identifier: Apache-2.0
"""The few ptrace requests that halted.py and remote.py need, and nothing that decides (only they send them).

python-ptrace has no SEIZE, INTERRUPT or dispatch configuration, and these are most of what is used here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

CONT, GETREGS, SETREGS, DETACH, SYSCALL = 7, 12, 13, 17, 24
PEEKTEXT, POKETEXT = 1, 4
SEIZE, INTERRUPT = 0x4206, 0x4207
GETSIGMASK, SETSIGMASK = 0x420A, 0x420B
GET_FILTER = 0x420C
SET_DISPATCH, GET_DISPATCH = 0x4210, 0x4211
O_TRACESYSGOOD: Final = 1
EVENT_STOP: Final = 128
WALL: Final = 0x40000000

ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_BLOCK = -512, -513, -514, -516
ALL_SIGNALS: Final = (1 << 64) - 1


class Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
        "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs")]  # fmt: skip

    rbx: int
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


class Dispatch(ctypes.Structure):
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

def ask(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    """One ptrace request; OSError (ESRCH: the thread is gone or not stopped)."""
    if _ptrace(request, tid, address, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace {request:#x} of {tid}: {os.strerror(error)}")


def get_registers(tid: int) -> Registers:
    """Registers of a stopped thread."""
    registers = Registers()
    ask(GETREGS, tid, 0, ctypes.addressof(registers))
    return registers


def set_registers(tid: int, registers: Registers) -> None:
    """All registers of a stopped thread."""
    ask(SETREGS, tid, 0, ctypes.addressof(registers))


def set_dispatch(tid: int, *, on: bool, start: int, length: int) -> None:
    """Syscall User Dispatch of one thread, exempting addresses [start, start + length), without a selector byte."""
    config = Dispatch(int(on), 0, start, length)
    ask(SET_DISPATCH, tid, ctypes.sizeof(config), ctypes.addressof(config))


def get_dispatch(tid: int) -> bool:
    """Is Syscall User Dispatch on in that thread?"""
    config = Dispatch()
    ask(GET_DISPATCH, tid, ctypes.sizeof(config), ctypes.addressof(config))
    return bool(config.mode)


def get_mask(tid: int) -> int:
    """Blocked signals; of a thread in ppoll and the like, the mask that will come back."""
    mask = ctypes.c_uint64()
    ask(GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return mask.value


def set_mask(tid: int, mask: int) -> None:
    """Blocked signals; ends a temporary mask."""
    value = ctypes.c_uint64(mask)
    ask(SETSIGMASK, tid, 8, ctypes.addressof(value))


def peek(tid: int, address: int) -> int:
    """Eight bytes of its memory; libc's ptrace returns the word, so errno alone tells an error."""
    ctypes.set_errno(0)
    word: int = _ptrace(PEEKTEXT, tid, address, 0)
    if word == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"peek at {address:#x}")
    return word & ALL_SIGNALS


def get_filter(tid: int, index: int) -> bytes:
    """A seccomp filter of a stopped thread, as it was installed; 0 is the oldest. OSError: only root may ask, ..."""
    count = _ptrace(GET_FILTER, tid, index, 0)
    if count < 0:
        raise OSError(ctypes.get_errno(), "seccomp filter")
    code = (ctypes.c_ulonglong * count)()
    ask(GET_FILTER, tid, index, ctypes.addressof(code))
    return bytes(code)


def poll_stop(tid: int) -> int | None:
    """Wait status if something has happened to the thread, without waiting."""
    try:
        pid, status = os.waitpid(tid, WALL | os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if pid else None


def wait(tid: int, deadline: float, meanwhile: Callable[[int], object] = id) -> int | None:
    """Wait status of a stopped thread; None: it is gone. RemoteError (transient) at the deadline, CLOCK_MONOTONIC.

    `meanwhile` is called with the thread again and again.
    """
    turns = 0
    while True:
        try:
            pid, status = os.waitpid(tid, WALL | os.WNOHANG)
        except ChildProcessError:
            return None
        if pid:
            return status if os.WIFSTOPPED(status) else None
        if time.monotonic() > deadline:
            raise RemoteError("thread does not stop", transient=True)
        meanwhile(tid)
        turns += 1
        if turns < 100:
            os.sched_yield()
        else:
            time.sleep(0.0001)


def detach(tid: int, pass_signal: int = 0) -> bool:
    """Let a stopped thread go, with a signal that was held up. False: it has been killed, and has to be waited for."""
    try:
        ask(DETACH, tid, 0, pass_signal)
    except OSError:
        return False
    return True


def hide_interruption(tid: int) -> None:
    """The EINTR correction for a thread that is let go without a visit."""
    with contextlib.suppress(OSError):
        registers = get_registers(tid)
        if spurious_eintr(registers):
            set_registers(tid, uninterrupted(registers))


def signed(value: int) -> int:
    """A register as the signed number that the kernel means."""
    return value - (1 << 64) if value >> 63 else value


def spurious_eintr(registers: Registers) -> bool:
    """Is this a call that our interrupt ended with -EINTR?"""
    return signed(registers.orig_rax) >= 0 and signed(registers.rax) == -errno.EINTR


def uninterrupted(registers: Registers) -> Registers:
    """With which that call is restarted, unless a handler is to run."""
    result = registers.copy()
    result.rax = ERESTARTNOHAND & ALL_SIGNALS
    return result


def made_anew(registers: Registers) -> Registers:
    """Registers with which an interrupted call is made again, from whatever kind of stop."""
    result = registers.copy()
    code = signed(registers.rax)
    if signed(registers.orig_rax) >= 0 and code in (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_BLOCK):
        restart_syscall = 219
        result.rax = restart_syscall if code == ERESTART_BLOCK else registers.orig_rax
        result.rip -= 2
        result.orig_rax = ALL_SIGNALS
    return result
