# SPDX-License-Identifier: Apache-2.0
"""Memory shared with the keeper, which reads it after our death (launch/sdrun.h, struct keepsake).

The buffer of RECV lies here, so the kernel itself notes which notification we have taken.  The rescue part says which
thread is running a call for us, and with what registers it must go on (launch/rescue.c).
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

SIZE: Final = 4096
NOTIF_BYTES: Final = 80
_RESCUE: Final = struct.Struct("=IIQ2QQ")
_RESCUE_AT: Final = 128
_WORD: Final = struct.Struct("=I")


class Keepsake:
    """The page; longer than 1024 bytes, so that fcntl.ioctl passes it as RECV's buffer without making a copy."""

    def __init__(self, fd: int = -1) -> None:
        """Map descriptor `fd` (-1: anonymous memory that nobody else reads)."""
        self.page = mmap.mmap(fd, SIZE)

    def forget_notification(self) -> None:
        """The one in `page` has been answered; RECV wants zeroes there anyway."""
        self.page[0:NOTIF_BYTES] = bytes(NOTIF_BYTES)

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

    def forget_thread(self) -> None:
        """The thread is as it was."""
        _WORD.pack_into(self.page, _RESCUE_AT, 0)
