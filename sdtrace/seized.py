# SPDX-License-Identifier: Apache-2.0
"""A running program, stopped, that waits in no notification: for --attach and --detach.

Like `Stopped`, but any thread serves for calls, made at any call instruction of the program.  Its registers are put
back in one of two forms, since the kernel makes an interrupted call anew only on the way from a stop of the kind in
which we found the thread:

* in between, should we die, as `made_anew` has them: the call is made again, with all that has not happened yet;
* at the end, from such a stop, exactly as they were found.

A poll() that was interrupted would go on in the kernel by itself (restart_syscall), where nobody could wake it when its
connections are on rings.  It is made anew, its time-out too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sdlib import abi
from sdtrace import procfs
from sdtrace.halted import Thread
from sdtrace.keepsake import Keepsake
from sdtrace.memory import read_memory
from sdtrace.notify import Notification
from sdtrace.ptrace import (
    ALL_SIGNALS,
    CONT,
    ERESTART_BLOCK,
    EVENT_STOP,
    INTERRUPT,
    Registers,
    RemoteError,
    ask,
    get_dispatch,
    made_anew,
    set_registers,
    signed,
    spurious_eintr,
    uninterrupted,
    wait,
)
from sdtrace.remote import LANDING_BYTES, MARK, Stopped

_SYSCALL: Final = b"\x0f\x05"
_POLL: Final = 7
_SETTLE_S: Final = 5.0
_CHUNK: Final = 1 << 20
_LIBRARY: Final = int(abi.const.SD_LIB_BASE)
"""Nothing of the program's own is in these 4 GiB, and its code there is looked at while it stands still."""


def _as_found(registers: Registers) -> Registers:
    """What lets the kernel go on with an interrupted call as if nobody had come."""
    polls = signed(registers.orig_rax) == _POLL and signed(registers.rax) == ERESTART_BLOCK
    return uninterrupted(registers) if polls or spurious_eintr(registers) else registers


class Seized(Stopped):
    """All threads of a process, stopped; its main thread, or the first that lives, runs calls and functions."""

    def __init__(self, pid: int, keepsake: Keepsake) -> None:
        """`pid` is the thread group; nothing happens before the scope is entered."""
        super().__init__(pid, Notification(0, pid, 0, 0, ()), keepsake)
        self._settled = True

    def _prepare(self) -> None:
        if not self._threads:
            raise RemoteError("it has ended")
        leader = self._threads.get(self.pid) or next(iter(self._threads.values()))
        site = self._find_site(leader.registers)
        self._notif = Notification(0, leader.tid, 0, site + len(_SYSCALL), ())
        self._leader = leader
        for thread in self._threads.values():
            thread.restore = _as_found(thread.registers)

    def _find_site(self, registers: Registers) -> int:
        """The address of some call instruction with room for the landing behind it."""
        for start, end, name in procfs.code(self.pid):
            if (name.startswith("[") and name != "[vdso]") or start >> 32 == _LIBRARY >> 32:
                continue
            for at in range(start, end, _CHUNK):
                try:
                    text = read_memory(self.pid, at, min(_CHUNK, end - at))
                except OSError:
                    break
                found = text.find(_SYSCALL)
                if 0 <= found <= len(text) - len(_SYSCALL) - LANDING_BYTES:
                    return at + found
        raise RemoteError("no call instruction in its code")

    # ------------------------------------------------------------------- calls

    def prepare_calls(self) -> None:
        """As in `Stopped`; what is to be put back should we die is the call made anew."""
        if self._landing:
            return
        assert self._leader.restore is not None
        self._leader.restore = made_anew(self._leader.restore)
        super().prepare_calls()

    def call(self, number: int, *args: int) -> int:
        """One system call; its result (-errno)."""
        self._settled = False
        return super().call(number, *args)

    def run(self, address: int, stack_top: int) -> int:
        """A function of the library; afterwards the thread is in a stop of the kind in which it was found."""
        result = super().run(address, stack_top)
        self._settled = True
        return result

    def end_calls(self) -> None:
        """The thread as it was found, in a stop from which the kernel makes its call anew."""
        if not self._landing:
            return
        if not self._settled:
            self._settle(self._leader)
            self._settled = True
        self._leader.restore = _as_found(self._leader.registers)
        super().end_calls()

    def blocks_in(self, number: int, arrived: Callable[[], bool]) -> bool:
        """Have the call made, and ask `arrived` while it is under way; then it is abandoned."""
        leader = self._leader
        assert leader.restore is not None
        registers = leader.registers.copy()
        registers.rip, registers.rax, registers.rbx = self._notif.ip - len(_SYSCALL), number, MARK
        registers.orig_rax = ALL_SIGNALS
        set_registers(leader.tid, registers)
        ask(CONT, leader.tid)
        found = arrived()
        ask(INTERRUPT, leader.tid)
        status = wait(leader.tid, time.monotonic() + _SETTLE_S)
        if status is None or status >> 16 != EVENT_STOP:
            raise RemoteError("process has ended")
        set_registers(leader.tid, leader.restore)
        return found

    # -------------------------------------------------------------- inspection

    def dispatched_by_itself(self) -> bool:
        """Does it use Syscall User Dispatch?"""
        return any(get_dispatch(tid) for tid in self._threads)

    @staticmethod
    def as_found(registers: Registers) -> Registers:
        """With which the kernel goes on as if nobody had come."""
        return _as_found(registers)

    def leave_at(self, thread: Thread, registers: Registers, mask: int) -> None:
        """That thread shall go on elsewhere."""
        thread.restore = registers
        if mask != thread.mask_now:
            self._set_mask(thread, mask)

    def write(self, address: int, data: bytes) -> None:
        """Into memory of any protection."""
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            if memory.write(data) != len(data):
                raise RemoteError(f"cannot write to its memory at {address:#x}")


__all__ = ["Seized"]
