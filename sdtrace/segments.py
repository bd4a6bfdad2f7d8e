# SPDX-License-Identifier: Apache-2.0
"""What a supervisor does with sockets and segments of its programs, beside passing them on."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress

from sdlib import abi
from sdtrace import calls, procfs
from sdtrace.held import Key, Origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def same_socket(origin: Origin) -> int:
    """A duplicate of the descriptor, if it still is that socket; OSError."""
    return taken(origin.tid, origin.fd, origin.cookie)


def find_socket(key: Key, origin: Origin) -> int:
    """A duplicate of the connection's socket, whoever has it now; remembers where. OSError: nobody.

    Who has offered it may have closed it since, and a process that it has forked goes on with it. All of those see
    the connection's area, so only they are looked through.
    """
    with suppress(OSError):
        return same_socket(origin)
    _, inode = key.area.sockets.get(key.block, (0, -1))
    for pid, fd in holders(key.area.inode, inode):
        with suppress(OSError):
            found = taken(pid, fd, origin.cookie)
            origin.tid, origin.fd = pid, fd
            return found
    raise OSError("nobody has it")


def taken(tid: int, fd: int, cookie: int) -> int:
    """A duplicate of a descriptor, if it is that socket; OSError."""
    found: int = abi.lib.sd_far_take(tid, fd, cookie)
    if found < 0:
        raise OSError(-found, os.strerror(-found))
    return found


def holders(area: int, inode: int) -> Iterator[tuple[int, int]]:
    """Processes that have the area mapped, and their descriptors of that socket."""
    name = f"socket:[{inode}]"
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if int(entry) == os.getpid():
                continue  # we see the area, too, and hold the socket for a moment
            if area not in procfs.memfds_mapped(int(entry)):
                continue
            for fd in os.listdir(f"/proc/{entry}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{entry}/fd/{fd}") == name:
                        yield int(entry), int(fd)


def cookie_of(sock: socket.socket) -> int:
    """SO_COOKIE."""
    value: int = struct.unpack("=Q", sock.getsockopt(1, 57, 8))[0]
    return value


def send_back(segment: int) -> bool:
    """Ask both senders to go on by TCP: what they have put into their rings is read first."""
    try:
        memory = mmap.mmap(segment, abi.sizeof("struct sd_seg"))
    except OSError:
        return False
    view = abi.view("struct sd_seg", memory)
    for direction in view.dir:
        direction.go_back = abi.const.SD_GO_BACK_POLICY
    return True


def forsake(segment: int, side: int) -> None:
    """Tell the other end that nobody comes to these rings from our side (sdlib/src/sock/again.c)."""
    with mmap.mmap(segment, abi.sizeof("struct sd_seg")) as memory, abi.ffi.from_buffer(memory) as words:
        rings: Any = abi.ffi.cast("struct sd_seg *", words)
        rings.dir[1 - side].go_back = abi.const.SD_GO_BACK_CALL
        rings.dir[side].prod_hint = abi.const.SD_HINT_GIVEN


def end_connection(sock: socket.socket) -> None:
    """What the kernel does at the last close of a socket, for one that a monitor which does not read still holds."""
    linger = struct.unpack("=ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    unread = struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
    if unread or linger == (1, 0):
        calls.connect(sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC))  # a reset
    else:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
