# SPDX-License-Identifier: Apache-2.0
"""Acting for a program with no more rights than it has: a supervisor may have been started by root, its program have
become somebody else since. bind to a low port is the call where it counts.

Rights belong to threads in Linux (libc's functions change those of all; the raw calls do not), so a thread that
performs one call and ends gives up what the program does not have.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import lru_cache

from sdtrace import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_CAPSET: Final = 126
_VERSION_3: Final = 0x20080522
_libc: Final = ctypes.CDLL(None, use_errno=True)


@lru_cache(maxsize=1)
def _own() -> procfs.Rights:
    """Those of the supervisor, which never change outside of threads that end."""
    return procfs.rights(os.getpid())


def may_act_for(rights: procfs.Rights) -> bool:
    """Have we nothing that it does not have?"""
    own = _own()
    return own.capabilities == 0 or (
        own.user_namespace == rights.user_namespace and own.capabilities & ~rights.capabilities == 0
    )


def bound_by(rights: procfs.Rights) -> None:
    """Give up, in this thread and for good, the capabilities that the program does not have. OSError.

    In another user namespace its capabilities mean something else: there we keep none.
    """
    if may_act_for(rights):
        return
    own = _own()
    keep = own.capabilities & rights.capabilities if own.user_namespace == rights.user_namespace else 0
    low, high = keep & 0xFFFFFFFF, keep >> 32
    header = struct.pack("=Ii", _VERSION_3, 0)
    data = struct.pack("=6I", low, low, 0, high, high, 0)  # effective, permitted, inheritable; twice 32 bits
    if _libc.syscall(ctypes.c_long(_CAPSET), header, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
