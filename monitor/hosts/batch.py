# SPDX-License-Identifier: Apache-2.0
"""Records that wait to be sent together in one SEND."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from monitor.hosts import frames
from monitor.hosts.frames import Record

MESSAGE_BYTES: Final = 1024


class Batch:
    """In order."""

    def __init__(self) -> None:
        self._open = bytearray()
        self._full: deque[bytes] = deque()

    @property
    def behind(self) -> bool:
        """Messages wait for room in the queue pair."""
        return bool(self._full)

    @property
    def queued(self) -> int:
        """So many bytes do, at most."""
        return len(self._full) * MESSAGE_BYTES

    def add(self, record: Record) -> None:
        """Behind those before it."""
        data = frames.encode(record)
        if len(self._open) + len(data) > MESSAGE_BYTES:
            self._close()
        self._open += data

    def flush(self, room: Callable[[], bool], post: Callable[[bytes], None]) -> bool:
        """Post as many messages as there is room for. True: there were some."""
        self._close()
        busy = False
        while self._full and room():
            post(self._full.popleft())
            busy = True
        return busy

    def _close(self) -> None:
        if self._open:
            self._full.append(bytes(self._open))
            self._open.clear()
