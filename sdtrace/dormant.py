# SPDX-License-Identifier: Apache-2.0
"""Attaching anew to what was given back: the filter is there already, and its listener is with a keeper of before.

A keeper that nobody stands behind any more lets everything through.  Which one has the listener of this program is
found out by the kernel: the program, stopped as it is, makes the library's reserved call, and the listener on which
that arrives is the right one.  For who has never had the library, a shell say, that call could be deadly, under a
filter of its own; so it is made only where the filter is known to be ours (`is_ours`, `has_our_filter`).  Meanwhile
that keeper is stopped.  Then we have its listeners, all of them, and it is told to leave, which it does when it has
answered what it holds.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from sdlib import abi
from sdtrace import procfs
from sdtrace.halted import Halted
from sdtrace.image import PAGE, Image
from sdtrace.keepsake import Keepsake
from sdtrace.memory import read_memory
from sdtrace.notify import Listener
from sdtrace.ptrace import RemoteError, get_filter
from sdtrace.seized import Seized
from sdtrace.syscalls import FILTERS, VARIANTS

_NOTIFY: Final = "anon_inode:seccomp notify"
_PIDFD: Final = "anon_inode:[pidfd]"
_MADVISE, _DONTNEED = 28, 4
_ARRIVES_MS: Final = 500


class Dormant:
    """Listeners of before, for one supervisor."""

    def __init__(self, keepsake: Keepsake, give: Callable[[int], None]) -> None:
        self._keepsake, self._give = keepsake, give
        self.taken: list[Listener] = []
        """Of keepers that have left; all of them are ours to serve."""

    def find(self, seized: Seized) -> bool:
        """Get the listener of this stopped program, unless we have it already. False: nobody has."""
        if self._is_among(seized, self.taken):
            return True
        for keeper in _keepers():
            os.kill(keeper, signal.SIGSTOP)
            try:
                listeners = [Listener(fd, self._keepsake) for fd in _listeners_of(keeper)]
                if self._is_among(seized, listeners):
                    for listener in listeners:
                        self._give(listener.fd)
                    self.taken += listeners
                    os.kill(keeper, signal.SIGTERM)
                    return True
                for listener in listeners:
                    os.close(listener.fd)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(keeper, signal.SIGCONT)
        return False

    @staticmethod
    def _is_among(seized: Seized, listeners: list[Listener]) -> bool:
        if not listeners:
            return False
        poll = select.poll()
        for listener in listeners:
            poll.register(listener.fd, select.POLLIN)

        def arrived() -> bool:
            return bool([fd for fd, events in poll.poll(_ARRIVES_MS) if events & select.POLLIN])

        return seized.blocks_in(int(abi.const.SD_HC_NR), arrived)


def is_ours(status: procfs.Status) -> bool:
    """Is the filter of this process one of a tree that was given back? Nothing that we have left in it need tell.

    So it is if it descends from the first process of such a tree, and all in between have as many filters as that one.
    Who was there before has none of it, and where an attach has made the tree others may have one of their own.
    """
    with suppress(OSError):
        for keeper in _keepers():
            root = 0 if _has_attached(keeper) else _root_of(keeper)
            if root and _descends(status, root, procfs.start_time(keeper)):
                return True
    return False


def has_our_filter(pid: int, index: int) -> bool:
    """Is it, instruction by instruction, one that we install? Only root may ask the kernel."""
    with suppress(OSError, RemoteError), Halted(pid):
        code = get_filter(pid, index)
        return any(Path(FILTERS, variant.file_name).read_bytes() == code for variant in VARIANTS)
    return False


def _descends(status: procfs.Status, root: int, since: int) -> bool:
    pid = status.tgid
    while pid > 1 and procfs.status(pid).filters == status.filters:
        if pid == root:
            return True
        if procfs.start_time(pid) < since:
            return False
        pid = procfs.status(pid).ppid
    return False


def _has_attached(keeper: int) -> bool:
    with open(f"/proc/{keeper}/cmdline", "rb") as file:
        return any(word.partition(b"=")[0] == b"--attach" for word in file.read().split(b"\0"))


def _root_of(keeper: int) -> int:
    """Which process it watches; 0 if that has ended."""
    for fd, name in procfs.files(keeper).items():
        if name == _PIDFD:
            with open(f"/proc/{keeper}/fdinfo/{fd}", "rb") as file:
                return next((max(int(line[4:]), 0) for line in file if line.startswith(b"Pid:")), 0)
    return 0


def _keepers() -> Iterator[int]:
    """Processes of ours, or of any user for root, that are keepers without a supervisor."""
    launcher = procfs.exe(os.getppid())
    for name in filter(str.isdigit, os.listdir("/proc")):
        pid = int(name)
        with suppress(OSError):
            if (procfs.exe(pid) == launcher and pid != os.getppid() and not procfs.children(pid)
                    and _NOTIFY in procfs.files(pid).values()):
                yield pid


def _listeners_of(keeper: int) -> list[int]:
    pidfd = os.pidfd_open(keeper)
    try:
        return [procfs.get_fd(pidfd, fd) for fd, name in procfs.files(keeper).items() if name == _NOTIFY]
    finally:
        os.close(pidfd)


def renew(seized: Seized, image: Image) -> None:
    """Its image as it was when it was mapped, but for the places to which calls at slots return. RemoteError."""
    for segment in image.segments:
        if segment.prot == 5:
            if read_memory(seized.pid, segment.vaddr, segment.filesz) != os.pread(image.fd, segment.filesz,
                                                                                  segment.offset):
                raise RemoteError("it was given back by another version of sdrun: it has to be started anew")
        elif segment.filesz:
            seized.write(segment.vaddr, os.pread(image.fd, segment.filesz, segment.offset))
        else:
            start, end = image.symbols["sd_slot_ret"], image.symbols["sd_slot_ret"] + 8 * 4096
            _zero(seized, segment.vaddr, start)
            _zero(seized, end, segment.vaddr + segment.memsz)


def _zero(seized: Seized, start: int, end: int) -> None:
    first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    if first >= last:
        seized.write(start, bytes(end - start))
        return
    seized.write(start, bytes(first - start))
    if seized.call(_MADVISE, first, last - first, _DONTNEED):
        raise RemoteError("its memory cannot be renewed")
    seized.write(last, bytes(end - last))
