# SPDX-License-Identifier: Apache-2.0
"""Who can receive what is sent into a unix socket: those who hold its other end.

A connection that goes along in such a message may stay on shared memory if all of them see its block, which are the
processes that descend by fork from the one that made it.  It goes back to TCP for others, and may move up again with
them if they have the library (sdlib/src/sock/pass.c).  Which socket is the other end is told by the kernel (sock_diag),
who holds it by /proc.  Somebody whose descriptors we may not see could only have been given it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from sdlib import abi
from sdtrace import procfs
from sdtrace.areas import Area

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_ASK: Final = struct.Struct("=BBHIIIII")  # struct unix_diag_req: family, protocol, pad, states, inode, show, cookie
_SHOW_PEER, _PEER = 4, 2
_ANY: Final = 0xFFFFFFFF
_ANSWER: Final = struct.Struct("=BBBBIII")  # struct unix_diag_msg: family, type, state, pad, inode, cookie
_ATTRIBUTE: Final = struct.Struct("=HH")
_PATIENCE_S: Final = 1.0


def who_receives(inode: int, area: Area, has_library: Callable[[int], bool]) -> tuple[int, list[int]]:
    """Who holds the other end of this unix socket (`enum sd_kin`), and who of these has no library."""
    peer = _peer(inode)
    having = holders(peer) if peer else []
    if having and all(_is_kin(pid, area) for pid in having):
        return abi.const.SD_KIN_FAMILY, []
    without = sorted({pid for pid in having if not has_library(pid)})
    return abi.const.SD_KIN_LIBRARY if having and not without else abi.const.SD_KIN_UNKNOWN, without


def alone(pid: int, inode: int) -> bool:
    """Does the process hold this socket by one descriptor, and nobody else at all?"""
    return holders(inode) == [pid]


def _peer(inode: int) -> int:
    """The inode of the other end; 0: there is none, or the kernel does not tell."""
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as diag:
        diag.settimeout(_PATIENCE_S)
        ask = _ASK.pack(socket.AF_UNIX, 0, 0, _ANY, inode, _SHOW_PEER, _ANY, _ANY)
        diag.send(_HEADER.pack(_HEADER.size + len(ask), _BY_FAMILY, _REQUEST, 0, 0) + ask)
        return _told(diag.recv(4096), inode)
    return 0


def _told(answer: bytes, inode: int) -> int:
    at = _HEADER.size + _ANSWER.size
    if len(answer) < at or _HEADER.unpack_from(answer)[1] != _BY_FAMILY:
        return 0
    if _ANSWER.unpack_from(answer, _HEADER.size)[4] != inode:
        return 0
    while len(answer) >= at + _ATTRIBUTE.size + 4:
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _PEER and length == _ATTRIBUTE.size + 4:
            return int(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0])
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
    return 0


def holders(inode: int) -> list[int]:
    """Processes that have a socket, each as often as it has descriptors of it. Not we, who have it while we ask."""
    name = f"socket:[{inode}]"
    found: list[int] = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            if pid != os.getpid():
                found += [pid] * list(procfs.files(pid).values()).count(name)
    return found


def _is_kin(pid: int, area: Area) -> bool:
    """It has the area, and has not begun another program that would not."""
    try:
        if not _sees(pid, area):
            return False
        own = procfs.status(pid).ns_pid
    except OSError:
        return False
    slots = [process for process in area.slots() if process.pid == own]
    return any(not process.execs for process in slots) if slots else _is_unborn(pid, area)


def _sees(pid: int, area: Area) -> bool:
    return area.inode in procfs.memfds_mapped(pid)


def _is_unborn(pid: int, area: Area) -> bool:
    """A forked child that has not run yet: it takes a slot before anything else, and knows whatever is done meanwhile.

    Others without a slot are one that found none (`slotless`), and those that have but their parent's memory.
    """
    if area.view.slotless or not procfs.shares_memory(pid, pid):  # the second: the kernel does not tell
        return False
    family = []
    for other in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            if other not in (pid, os.getpid()) and _sees(other, area):
                family.append(other)
    try:
        parent = procfs.status(pid).ppid
    except OSError:
        return False
    return parent in family and not any(procfs.shares_memory(pid, other) for other in family)
