# SPDX-License-Identifier: Apache-2.0
"""An epoll set of one of our programs gets known to somebody else as the program has filled it (strangers.py).

On the ring the kernel has tags in the place of the program's data (sdlib/src/poll/epoll.h), and there is no request by
which anybody but the owner could change that: a registration's key is the owner's descriptor.  So the library of each
program that has the set does it, in a thread that stands still meanwhile, in no operation (sdlib/src/start/give.c).
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress

from sdtrace import procfs
from sdtrace.image import Image
from sdtrace.keepsake import Keepsake
from sdtrace.memory import write_memory
from sdtrace.ptrace import Registers, RemoteError
from sdtrace.seized import Seized
from sdtrace.shrink import is_quiet

_WHAT = struct.Struct("=II")  # sd_give_what, start/give.c
_LAST_SLOT, _CALL_AT = 4095 * 128, 30
"""Of the gate, and where its call is: gate.S."""


class _Helper(Seized):
    """Calls are made in the gate's last slot: those elsewhere are dispatched to the library."""

    def __init__(self, pid: int, image: Image, keepsake: Keepsake) -> None:
        super().__init__(pid, keepsake)
        self._image = image

    def _find_site(self, registers: Registers) -> int:
        return self._image.symbols["sd_gate_start"] + _LAST_SLOT + _CALL_AT

    def _prepare(self) -> None:
        super()._prepare()
        for thread in self._threads.values():
            if thread is not self._leader:
                thread.restore = None  # a poll goes on until the moment that was said, nothing has moved under it here


def users(owner: int, fd: int, areas: set[int]) -> list[tuple[int, int]]:
    """Processes with one of these areas, and their descriptors of this set, one each."""
    found: list[tuple[int, int]] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        pid = int(name)
        with suppress(OSError):
            if pid != os.getpid() and areas & procfs.memfds_mapped(pid):
                theirs = (each for each, kind in procfs.files(pid).items()
                          if kind == procfs.EPOLL and procfs.same_file(owner, fd, pid, each))
                found.extend((pid, each) for each in list(theirs)[:1])
    return found


def sockets_in(pid: int, epoll: int) -> set[int]:
    """Inodes of all files in a set: where one is a connection's, it is that."""
    with open(f"/proc/{pid}/fdinfo/{epoll}", "rb") as info:
        return {int(line.partition(b" ino:")[2].split()[0], 16) for line in info if line.startswith(b"tfd:")}


def give(image: Image, keepsake: Keepsake, pid: int, fd: int, *, first: bool) -> None:
    """All connections in it are on TCP. RemoteError: perhaps later.

    `first`: not if this process has registered something in a set that a fork has shared, for that is newer than what
    others remember, and has to be what the kernel is told last.
    """
    with _Helper(pid, image, keepsake) as stopped:
        if not is_quiet(image, stopped):
            raise RemoteError(f"process {pid} is in the middle of a call", transient=True)
        write_memory(pid, image.symbols["sd_give_what"], _WHAT.pack(fd, first))
        stopped.prepare_calls()
        result = stopped.run(image.symbols["sd_give"], image.symbols["sd_boot_stack_top"])
        stopped.end_calls()
    if result:
        raise RemoteError(f"its epoll set: {os.strerror(-result)}", transient=result == -errno.EAGAIN)
