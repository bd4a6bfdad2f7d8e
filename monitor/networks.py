# SPDX-License-Identifier: Apache-2.0
"""Network namespaces whose ends may be paired with each other's (`--pair-networks`), by the paths that name them.

Addresses name a connection within one namespace only. That they do so in two is the administrator's word: no address
exists in both, nothing translates addresses between them, and who may set addresses in one is trusted with the other.

Namespaces come and go, so paths are looked at again: when policies are reloaded, and, at most once a second, when an
end comes from a namespace that is not known. A socket's word for its namespace is SO_NETNS_COOKIE; to ask for that of a
path takes a thread that enters it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Sequence

from monitor import journal
from monitor.endpoint import SO_NETNS_COOKIE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

Pair = tuple[str, str]
_CLONE_NEWNET: Final = 0x40000000
_AGAIN_S: Final = 1.0
_libc: Final = ctypes.CDLL(None, use_errno=True)


def cookie_of(path: str) -> int:
    """The namespace's cookie; OSError: it is not there, is no network namespace, or we may not enter it."""
    found: list[int | OSError] = []

    def enter() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, _CLONE_NEWNET) < 0:  # of this thread, which ends
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(fd)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                found.append(int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little"))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, OSError):
        raise result
    return result


class Networks:
    """Which namespaces reach which, by cookie."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs
        self._reach: dict[int, tuple[int, ...]] = {}
        self._looked = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Look at the paths again."""
        self._looked = time.monotonic()
        cookies: dict[str, int] = {}
        for path in {path for pair in self._pairs for path in pair}:
            try:
                cookies[path] = cookie_of(path)
            except OSError as error:
                journal.warn("no-network", path=path, error=error.strerror)
        reach: dict[int, set[int]] = {}
        for one, other in self._pairs:
            if one in cookies and other in cookies and cookies[one] != cookies[other]:
                reach.setdefault(cookies[one], set()).add(cookies[other])
                reach.setdefault(cookies[other], set()).add(cookies[one])
        self._reach = {cookie: tuple(sorted(others)) for cookie, others in reach.items()}

    def __call__(self, netns: int) -> tuple[int, ...]:
        """The namespaces in which the other end of a connection of `netns` may be, beside itself."""
        if self._pairs and netns not in self._reach and time.monotonic() >= self._looked + _AGAIN_S:
            self.refresh()
        return self._reach.get(netns, ())
