# SPDX-License-Identifier: Apache-2.0
"""Does any process still map a memfd? The kernel says so when we seal it against writing (areas.py says why)."""

from __future__ import annotations

import errno
import fcntl
import mmap
from collections.abc import Callable


def last_look(fd: int, size: int, release: Callable[[], None]) -> mmap.mmap | None:
    """If nobody maps `fd` any more, nobody can ever again: seal that, and return a private mapping of it; else None.

    `release` gives up our own shared mapping. Called when the private one is there: a mapping takes a descriptor, and
    there may be none left. OSError: neither is known.
    """
    private = mmap.mmap(fd, size, mmap.MAP_PRIVATE)
    release()
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    except OSError as error:
        private.close()
        if error.errno == errno.EBUSY:
            return None
        raise
    return private
