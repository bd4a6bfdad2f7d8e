# SPDX-License-Identifier: Apache-2.0
"""Making the sealed memfd that the two ends of a connection share. The monitor never maps it."""

from __future__ import annotations

import fcntl
import os
import resource
from functools import lru_cache

from sdlib import abi
from sdlib.wire.segment import SEALS, initial_header, segment_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3; older kernels say EINVAL
_header: Final = lru_cache(maxsize=32)(initial_header)


def _new_memfd() -> int:
    """A memfd that can be sealed and, where the kernel knows how to say so, never executed."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("socksdirect-segment", flags | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create("socksdirect-segment", flags)


def largest_ring(most: int) -> int:
    """As many bytes of a ring, up to `most`, as files may have (RLIMIT_FSIZE), or the smallest there is."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    while limit != resource.RLIM_INFINITY and most > abi.const.SD_RING_MIN and segment_bytes(most) > limit:
        most //= 2
    return most


def make(ring_bytes: int) -> int:
    """A new segment with two rings of `ring_bytes`; the caller closes it. Raises OSError (memory, descriptors)."""
    fd = _new_memfd()
    try:
        os.ftruncate(fd, segment_bytes(ring_bytes))
        os.pwrite(fd, _header(ring_bytes), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
