# SPDX-License-Identifier: Apache-2.0
"""Connections to other hosts: what the monitor cannot do without the program's socket (sdlib/src/sock/far.h, [H2]).

Its doorbells are bytes on the TCP connection, and a connection to a host that is lost has to end.  A duplicate of the
socket is held for microseconds, so that a program's close() is never late.
"""

from __future__ import annotations

import errno
import mmap
import socket
from collections.abc import Callable

from sdlib import abi
from sdlib.wire.messages import Bell
from sdtrace.held import Held, Key
from sdtrace.segments import find_socket


def act(key: Key, held: Held, what: int, number: int) -> int:
    """Do what the monitor asks for; 0 or an errno. EALREADY: the direction goes back to TCP, nothing was sent."""
    if what == Bell.BYTE:
        return _count(key, held, number)
    if what != Bell.BREAK:
        return errno.EINVAL
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
            return _errno(lambda: sock.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL))
        finally:
            abi.lib.sd_copy_ring_leave(copy)


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0
