# SPDX-License-Identifier: Apache-2.0
"""Offers that the monitor has not answered, as it was stopped, say.

The socket of such an offer lies in the monitor's queue, and as long as it does, the program's close() sends no FIN: the
peer would wait for ever. So a duplicate of it is kept here until the answer comes, and when the program closes the
connection, or ends, we end it in the kernel's way. Meanwhile nothing else is offered to that monitor.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from sdlib.records import dataclass
from sdtrace import procfs
from sdtrace.held import Held, Key
from sdtrace.segments import end_connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sdlib.wire.client import MonitorClient


@dataclass
class _One:
    client: MonitorClient
    held: Held
    sock: socket.socket

    @property
    def monitor(self) -> int:
        """Whose queue it lies in; descriptors that it has read are on their way to be closed."""
        return self.client.pid


class Stuck:
    """The unanswered offers of one supervisor."""

    def __init__(self) -> None:
        self._ones: dict[Key, _One] = {}

    def __bool__(self) -> bool:
        """Is there any?"""
        return bool(self._ones)

    def add(self, client: MonitorClient, key: Key, held: Held, sock: int) -> None:
        """Keep a duplicate of `sock`, if there is room for one."""
        try:
            self._ones[key] = _One(client, held, socket.socket(fileno=os.dup(sock)))
        except OSError:
            return

    def all_answered(self) -> bool:
        """Has it come back?"""
        return all(one.client.answered(one.held.name) for one in self._ones.values())

    def drop(self, key: Key, *, closing: bool) -> None:
        """The offer is withdrawn; `closing`: since the program closes the connection."""
        one = self._ones.pop(key, None)
        if one is not None:
            self._give_up(key, one, over=closing)

    def sweep(self, *, over: bool = False) -> None:
        """End the connections of programs that have ended; `over`: all have, if the last is not yet gone altogether."""
        for key, one in list(self._ones.items()):
            if over or not key.current or not procfs.running(one.held.origin.tid):
                del self._ones[key]
                self._give_up(key, one, over=True)

    def clear(self) -> None:
        """It has answered, or has ended: the kernel sees to all connections again."""
        for one in self._ones.values():
            one.sock.close()
        self._ones.clear()

    @staticmethod
    def _give_up(key: Key, one: _One, *, over: bool) -> None:
        with one.sock:
            shared = key.current and int(key.area.view.block[key.block].users) > 1
            if over and not shared and not _held_elsewhere(one):
                end_connection(one.sock)


def _held_elsewhere(one: _One) -> bool:
    """Has another process than the one that offers it this socket, one without the library, say?"""
    wanted = f"socket:[{os.fstat(one.sock.fileno()).st_ino}]"
    others_not = (os.getpid(), one.monitor, procfs.thread_group(one.held.origin.tid))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) in others_not:
            continue
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") == wanted:
                        return True
    return False
