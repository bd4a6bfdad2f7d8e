# SPDX-License-Identifier: Apache-2.0
"""The segment's outside: size, seals and the constant words of its header (the layout is sdlib/include/sd_segment.h).

The monitor makes segments with `initial_header`, its clients look at what they were given with `check_memfd`. The
seals are what makes mapping a segment safe: nobody who holds the memfd can shrink it under a mapping (SIGBUS).
"""

from __future__ import annotations

import fcntl
import os
from struct import Struct

from sdlib import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_COUNTED_RING: Final = 64 * 1024
_HEAD: Final = Struct("<QII")  # magic, version, ring_bytes: the first words of struct sd_seg


def ring_size_ok(ring_bytes: int) -> bool:
    """A power of two within SD_RING_MIN..SD_RING_MAX."""
    return abi.const.SD_RING_MIN <= ring_bytes <= abi.const.SD_RING_MAX and ring_bytes & (ring_bytes - 1) == 0


def segment_bytes(ring_bytes: int) -> int:
    """Size of a segment's memfd: the header's page and a ring per direction."""
    return abi.const.SD_SEG_HDR_BYTES + 2 * ring_bytes


def counted_bytes(ring_bytes: int) -> int:
    """What a segment counts as at least: of large rings little is ever touched.

    Most are empty again and again, and start over at the beginning then ([R3], sdlib/src/ring/ring.c).
    """
    return segment_bytes(min(ring_bytes, _COUNTED_RING))


def ring_of(memfd: int) -> int:
    """Bytes of each ring of a segment, by its size."""
    return (os.fstat(memfd).st_size - segment_bytes(0)) // 2


def counts_as(memfd: int, *, far: bool) -> int:
    """Of a segment that is there; one between hosts is registered with a device, and all of it is memory."""
    return (segment_bytes if far else counted_bytes)(ring_of(memfd))


def initial_header(ring_bytes: int) -> bytes:
    """`struct sd_seg` as it starts: nothing attached, and a receiver armed in both directions.

    rx_armed starts at 1 because a receiver that hasn't attached yet is one that has to be woken through the kernel.
    """
    header = bytearray(abi.sizeof("struct sd_seg"))
    segment = abi.view("struct sd_seg", header)
    segment.magic = abi.const.SD_SEG_MAGIC
    segment.version = abi.const.SD_ABI_VERSION
    segment.ring_bytes = ring_bytes
    for direction in segment.dir:
        direction.rx_armed = 1
    return bytes(header)


def check_memfd(fd: int, ring_bytes: int) -> str | None:
    """What is wrong with a received memfd of rings of `ring_bytes`, in a few words; None if nothing is.

    The seals are asked first: only a memfd has any, so no foreign kind of file is read from.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if seals & SEALS != SEALS:
            return f"segment without its seals ({seals:#x})"
        size = os.fstat(fd).st_size
        if size != segment_bytes(ring_bytes):
            return f"segment of {size} bytes instead of {segment_bytes(ring_bytes)}"
        head = os.pread(fd, _HEAD.size, 0)
    except OSError as error:
        return f"segment is no sealed memfd: {error.strerror}"
    if len(head) != _HEAD.size or _HEAD.unpack(head) != (abi.const.SD_SEG_MAGIC, abi.const.SD_ABI_VERSION, ring_bytes):
        return "segment with a wrong header"
    return None


def wrong_numbers(side: int, ring_bytes: int, asked: int) -> str | None:
    """What is impossible in a pairing's numbers, if `asked` was asked for."""
    if side not in (0, 1):
        return f"impossible side {side}"
    if not ring_size_ok(ring_bytes) or ring_bytes > asked:
        return f"impossible ring of {ring_bytes} bytes"
    return None
