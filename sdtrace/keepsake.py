# SPDX-License-Identifier: Apache-2.0
"""Memory shared with the keeper, which reads it after our death (launch/sdrun.h, struct keepsake).

The buffer of RECV lies here, so the kernel itself notes which notification has been received.  The rescue part says
which thread is running a call for us, and with what registers it must go on (launch/rescue.c).  Then come the ids of
notifications that our threads work on (workers.py), and those that have come and that we have not begun with: the
keeper receives them, and counts them; we do so where it has died (notify.py).
"""

from __future__ import annotations

import mmap
import struct
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SIZE: Final = 16384
NOTIF_BYTES: Final = 80
_RESCUE: Final = struct.Struct("=IIQ2QQ")
_RESCUE_AT: Final = 128
_WORD: Final = struct.Struct("=I")
_ATTACHING_AT: Final = _RESCUE_AT + _RESCUE.size + 27 * 8
_RECEIVED_AT: Final = 1000
_BEGUN_AT: Final = 1008
_BEAT_AT: Final = 1016
_OUTSTANDING_AT: Final = 1024
OUTSTANDING_MAX: Final = 1280
_TAKEN_AT: Final = _OUTSTANDING_AT + OUTSTANDING_MAX * 8
TAKEN_MAX: Final = 48
_BUFFER: Final = 1025
_ID: Final = struct.Struct("=Q")


class Keepsake:
    """The page; longer than 1024 bytes, so that fcntl.ioctl passes it as RECV's buffer without making a copy."""

    def __init__(self, fd: int = -1) -> None:
        """Map descriptor `fd` (-1: anonymous memory that nobody else reads)."""
        self.page = mmap.mmap(fd, SIZE)
        self._beats = 0
        self._places: dict[int, int] = {}
        self._free = list(range(OUTSTANDING_MAX - 1, -1, -1))
        self._lock = threading.Lock()

    def add_outstanding(self, notif_id: int) -> bool:
        """A thread works on this notification; False: no room to note it."""
        with self._lock:
            if not self._free:
                return False
            place = self._places[notif_id] = self._free.pop()
            _ID.pack_into(self.page, _OUTSTANDING_AT + place * _ID.size, notif_id)
        return True

    def drop_outstanding(self, notif_id: int) -> None:
        """It has been answered."""
        with self._lock:
            place = self._places.pop(notif_id)
            _ID.pack_into(self.page, _OUTSTANDING_AT + place * _ID.size, 0)
            self._free.append(place)

    def beat(self) -> None:
        """We are alive; the keeper ends us if we are not while somebody waits."""
        self._beats += 1
        _ID.pack_into(self.page, _BEAT_AT, self._beats)

    def forget_notification(self) -> None:
        """The one in `page` has been answered; RECV wants zeroes there anyway."""
        self.page[0:_ID.size] = bytes(_ID.size)
        self.page[0:NOTIF_BYTES] = bytes(NOTIF_BYTES)

    @property
    def received(self) -> int:
        """How many notifications have been received for us."""
        count: int = _ID.unpack_from(self.page, _RECEIVED_AT)[0]
        return count

    def notification(self, number: int) -> memoryview:
        """The place of that one, of as many as were received (`TAKEN_MAX` at a time)."""
        at = _TAKEN_AT + number % TAKEN_MAX * NOTIF_BYTES
        return memoryview(self.page)[at:at + _BUFFER]

    def in_work(self) -> memoryview:
        """The place of the one that is worked on."""
        return memoryview(self.page)[0:_BUFFER]

    def one_more(self) -> None:
        """We have received one by ourselves."""
        _ID.pack_into(self.page, _RECEIVED_AT, self.received + 1)

    def begin_with(self, number: int) -> None:
        """It is the one in work now, and its place is free. They are begun with in order.

        An id is written last and goes first: wherever we die, what has one is whole.
        """
        at = _TAKEN_AT + number % TAKEN_MAX * NOTIF_BYTES
        self.page[_ID.size:NOTIF_BYTES] = self.page[at + _ID.size:at + NOTIF_BYTES]
        self.page[0:_ID.size] = self.page[at:at + _ID.size]
        self.page[at:at + _ID.size] = bytes(_ID.size)
        self.page[at:at + NOTIF_BYTES] = bytes(NOTIF_BYTES)
        _ID.pack_into(self.page, _BEGUN_AT, number + 1)

    def remember_thread(self, tid: int, landing: int, words: list[int], mask: int, registers: bytes) -> None:
        """From here on the keeper would restore thread `tid`, and the program's two `words` at `landing`.

        The tid is written last: it makes the rest valid.
        """
        _RESCUE.pack_into(self.page, _RESCUE_AT, 0, 0, landing, *words, mask)
        after = _RESCUE_AT + _RESCUE.size
        self.page[after:after + len(registers)] = registers
        _WORD.pack_into(self.page, _RESCUE_AT, tid)

    def in_start(self, running: bool) -> None:
        """The thread runs the library's start and comes to the landing by itself."""
        _WORD.pack_into(self.page, _RESCUE_AT + _WORD.size, int(running))

    def attaching(self, pid: int) -> None:
        """That process may have a listener that is meant for us; 0: none has."""
        _WORD.pack_into(self.page, _ATTACHING_AT, pid)

    def forget_thread(self) -> None:
        """The thread is as it was."""
        _WORD.pack_into(self.page, _RESCUE_AT, 0)
