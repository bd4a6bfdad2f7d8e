# SPDX-License-Identifier: Apache-2.0
"""Threads that sleep for a connection look again, after it was moved to TCP while they stood still.

What a thread has asked the kernel to wait for holds as long as it sleeps: for a doorbell, say, where it now should wait
for room in the kernel's buffer.  The library says of each such sleep that its call may end at once, and with which
value (struct sd_tcb, `wakeable`); whoever made the call goes around once more then, and the program sees nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sdlib import abi
from sdtrace.areas import Area
from sdtrace.halted import Halted, Thread
from sdtrace.image import Image
from sdtrace.memory import read_memory
from sdtrace.procfs import signalled
from sdtrace.ptrace import ERESTART_BLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, RemoteError, signed
from sdtrace.segments import holders
from sdtrace.shrink import is_quiet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_WAKEABLE_AT: Final = 212  # offsetof(struct sd_tcb, wakeable), sd.h
_INTERRUPTED: Final = frozenset({ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_BLOCK, -4})


@contextlib.contextmanager
def standing_still(image: Image, *sockets: tuple[Area, int]) -> Iterator[list[Halted]]:
    """All processes that use the connections of these, stopped, outside of any operation; RemoteError.

    `sockets`: the area that a connection is in, and its socket's inode.
    """
    with contextlib.ExitStack() as stack:
        stopped: dict[int, Halted] = {}
        while new := {pid for area, inode in sockets for pid, _ in holders(area.inode, inode)} - stopped.keys():
            for pid in new:
                stopped[pid] = stack.enter_context(Halted(pid))
        for pid, halted in stopped.items():
            if not is_quiet(image, halted):
                raise RemoteError(f"process {pid} is in the middle of a call", transient=True)
        yield list(stopped.values())


def rouse(image: Image, area: Area, halted: Halted) -> None:
    """Connections of `area` were moved while this process stands still, outside of any operation."""
    area.view.moved += 1
    for thread in halted.threads():
        value = _ends_with(image, halted.pid, thread)
        if value >= 0:
            thread.restore = thread.registers.copy()
            thread.restore.rax = value


def _ends_with(image: Image, pid: int, thread: Thread) -> int:
    """The value with which the thread's call may end now; -1: it goes on as it was."""
    found = thread.registers
    asleep = int(found.rip) == image.symbols["sd_sys_ret"] and signed(found.rax) in _INTERRUPTED
    block = image.thread_block(found.gs_base)
    if not asleep or not block or signed(found.orig_rax) == abi.const.SD_HC_NR:
        return -1
    if signalled(thread.tid):
        return -1  # a signal ends the call by itself, and its value says so
    return int.from_bytes(read_memory(pid, block + _WAKEABLE_AT, 4), "little") - 1
