# SPDX-License-Identifier: Apache-2.0
"""Connections to other hosts: what the monitor cannot do without the program's socket (sdlib/src/sock/far.h, [H2]).

Its doorbells are bytes on the TCP connection; a connection whose link is lost goes on by it (pump.py); and one to a
host of which nobody knows how far it is has to end.  A duplicate of the socket is held for microseconds, or while it
has bytes to send, so that a program's close() is never late.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from sdlib import abi
from sdtrace.held import Held, Key
from sdtrace.pump import Pumps
from sdtrace.segments import find_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LEAVE_S: Final = float(os.environ.get("SDRUN_LEAVE_S", "10"))
"""Without a monitor for so long, connections to other hosts go back to TCP. An emulated machine starts one slowly."""


class Far:
    """For one supervisor."""

    def __init__(self) -> None:
        self._pumps = Pumps()

    def act(self, key: Key, held: Held, what: int, number: int) -> int:
        """Do what the monitor asks for; 0 or an errno. EALREADY: the direction goes back to TCP, nothing was sent."""
        from sdlib.wire.messages import Bell

        if what == Bell.BYTE:
            return _count(key, held, number)
        if what == Bell.BREAK:
            return end(key, held)
        if what == Bell.BACK:
            from sdlib.wire.left import reason_of

            return self.leave(key, held, reason_of(number))
        return errno.EINVAL

    def leave(self, key: Key, held: Held, why: int) -> int:
        """Back to the connection's own TCP (`enum sd_reason`); 0 or an errno."""
        if not held.far or held.left or not held.paired or held.segment < 0:
            return 0
        held.left = True
        return self._pumps.begin(key, held, why)

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
    """Ring (sdlib/src/py/bell.c)."""
    try:
        fd = find_socket(key, held.origin)
    except OSError:
        fd = -1
    result: int = abi.lib.sd_far_bell(held.segment, held.side, number, fd)
    if fd >= 0:
        os.close(fd)
    return result


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0
