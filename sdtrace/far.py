# SPDX-License-Identifier: Apache-2.0
"""Connections to other hosts: what the monitor cannot do without the program's socket (sdlib/src/sock/far.h, [H2]).

Its doorbells are bytes on the TCP connection; a connection whose link is lost goes on by it (pump.py); and one to a
host of which nobody knows how far it is has to end.  A duplicate of the socket is held for microseconds, or while it
has bytes to send, so that a program's close() is never late.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections.abc import Callable
from typing import Final

from sdlib import abi
from sdlib.wire.messages import Bell
from sdtrace.held import Held, Key
from sdtrace.pump import Pumps
from sdtrace.segments import find_socket

LEAVE_S: Final = float(os.environ.get("SDRUN_LEAVE_S", "10"))
"""Without a monitor for so long, connections to other hosts go back to TCP. An emulated machine starts one slowly."""


class Far:
    """For one supervisor."""

    def __init__(self) -> None:
        self._pumps = Pumps()

    def act(self, key: Key, held: Held, what: int, number: int) -> int:
        """Do what the monitor asks for; 0 or an errno. EALREADY: the direction goes back to TCP, nothing was sent."""
        if what == Bell.BYTE:
            return _count(key, held, number)
        if what == Bell.BREAK:
            return end(key, held)
        if what == Bell.BACK:
            return self.leave(key, held)
        return errno.EINVAL

    def leave(self, key: Key, held: Held) -> int:
        """Back to the connection's own TCP; 0 or an errno."""
        if not held.far or held.left or not held.paired or held.segment < 0:
            return 0
        held.left = True
        return self._pumps.begin(key, held)

    def nudge(self, key: Key) -> None:
        """The program has put something into the ring of a connection that has left."""
        self._pumps.run(key)

    def tick(self) -> bool:
        """Now and then. True: call again soon."""
        return self._pumps.tick()

    def forget(self, key: Key) -> None:
        """The connection is over; what is in its ring still goes out."""
        self._pumps.forget(key)

    def close(self) -> None:
        """The last program has ended."""
        self._pumps.close()


def end(key: Key, held: Held) -> int:
    """Shut it down in both directions; 0 or an errno."""
    try:
        fd = find_socket(key, held.origin)
    except OSError:
        return errno.ENOTCONN
    with socket.socket(fileno=fd) as sock:
        return _errno(lambda: sock.shutdown(socket.SHUT_RDWR))


def _count(key: Key, held: Held, number: int) -> int:
    """Ring, unless that one was rung before; but for EAGAIN it is done with, whatever came of it."""
    with mmap.mmap(held.segment, abi.const.SD_SEG_HDR_BYTES) as memory, abi.ffi.from_buffer(memory) as copy:
        header: abi.CData = abi.ffi.cast("struct sd_seg *", copy)
        if header.bells_rung == number:
            return 0
        result = _ring(key, held, copy)
        if result != errno.EAGAIN:
            header.bells_rung = number
        return result


def _ring(key: Key, held: Held, copy: abi.CData) -> int:
    try:
        fd = find_socket(key, held.origin)
    except OSError:
        return errno.ENOTCONN
    with socket.socket(fileno=fd) as sock:
        try:
            if not abi.lib.sd_copy_ring_enter(copy, held.side):
                return errno.EALREADY
            return _errno(lambda: _send(sock, abi.ffi.cast("struct sd_seg *", copy)))
        finally:
            abi.lib.sd_copy_ring_leave(copy)


def _send(sock: socket.socket, header: abi.CData) -> None:
    """A doorbell; the first one greets, by which the other end knows whose ring it is ([H3])."""
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    if header.greeted:
        sock.send(b"\0", flags)
        return
    greeting: abi.CData = abi.ffi.new("struct sd_mark *")
    greeting.magic, greeting.far_id = abi.const.SD_GREET_MAGIC, list(header.far_id)
    if sock.send(bytes(abi.ffi.buffer(greeting)), flags) != abi.sizeof("struct sd_mark"):
        sock.shutdown(socket.SHUT_RDWR)  # the kernel takes such a short message whole, or not at all
    header.greeted = 1


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0
