# SPDX-License-Identifier: Apache-2.0
"""What descriptors a stopped program has, and which of them other processes have as well.

A connection that somebody else holds who does not see our blocks must stay on TCP.  Sockets are told by their inode;
epoll descriptors all have the same, so the kernel is asked (kcmp).  A parent of another user's cannot be looked at:
then connections may be its, too, and all stay on TCP.  Process 1 keeps none of those that it makes.
"""

from __future__ import annotations

import array
import os

from sdlib import abi
from sdtrace import procfs


def adoptable(pid: int) -> bytes:
    """The words of `sd_adopt`, up to the highest descriptor."""
    own = {fd: name for fd, name in procfs.files(pid).items() if fd < abi.const.SD_ADOPT_MAX}
    sockets = {name for name in own.values() if name.startswith("socket:")}
    epolls = [fd for fd, name in own.items() if name == procfs.EPOLL]
    held, held_epolls = _held_elsewhere(pid, sockets, epolls)
    if _hidden_parent(pid):
        held |= sockets
    for fd in held_epolls:
        held |= {own[watched] for watched in _watched(pid, fd) if watched in own}
    words = array.array("I", bytes(4 * (max(own, default=0) + 1)))
    first: dict[str, int] = {}
    for fd in sorted(own):
        name = own[fd]
        if name in sockets:
            kind = abi.const.SD_ADOPT_SOCKET | (abi.const.SD_ADOPT_HELD if name in held else 0)
            lowest = first.setdefault(name, fd)
        elif name == procfs.EPOLL:
            kind = abi.const.SD_ADOPT_EPOLL | (abi.const.SD_ADOPT_HELD if fd in held_epolls else 0)
            lowest = next(other for other in sorted(epolls) if other == fd or procfs.same_file(pid, other, pid, fd))
        else:
            continue
        words[fd] = kind | lowest << 16
    return words.tobytes()


def _held_elsewhere(pid: int, sockets: set[str], epolls: list[int]) -> tuple[set[str], set[int]]:
    """Sockets and epoll descriptors that other processes have, too."""
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    held: set[str] = set()
    held_epolls: set[int] = set()
    for other in others - {pid, os.getpid()}:
        try:
            files = procfs.files(other)
        except OSError:
            continue
        held |= sockets.intersection(files.values())
        theirs = [fd for fd, name in files.items() if name == procfs.EPOLL]
        held_epolls |= {fd for fd in epolls if any(procfs.same_file(pid, fd, other, one) for one in theirs)}
    return held, held_epolls


def _hidden_parent(pid: int) -> bool:
    parent = procfs.status(pid).ppid
    if parent <= 1:
        return False
    try:
        procfs.files(parent)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _watched(pid: int, epoll: int) -> set[int]:
    """Descriptors in an epoll set."""
    found = set()
    with open(f"/proc/{pid}/fdinfo/{epoll}", "rb") as info:
        for line in info:
            if line.startswith(b"tfd:"):
                found.add(int(line.split()[1]))
    return found
