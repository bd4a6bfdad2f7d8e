# SPDX-License-Identifier: Apache-2.0
"""Memory of another process that its own protection lets us read and write."""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _copy(function: str, pid: int, address: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    """process_vm_readv or process_vm_writev of the whole buffer; OSError."""
    local = _Iovec(ctypes.addressof(buffer), len(buffer))
    remote = _Iovec(address, len(buffer))
    entry = getattr(_libc, function)
    entry.restype = ctypes.c_ssize_t
    done = entry(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done != len(buffer):
        error = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise OSError(error, f"{function} at {address:#x}: {os.strerror(error)}")


def read_memory(pid: int, address: int, length: int) -> bytes:
    """Bytes of another process; OSError (EFAULT) unless all of them are mapped."""
    buffer = ctypes.create_string_buffer(length)
    _copy("process_vm_readv", pid, address, buffer)
    return buffer.raw


def write_memory(pid: int, address: int, data: bytes) -> None:
    """Write to memory that the process itself may write; OSError."""
    buffer = ctypes.create_string_buffer(data, len(data))
    _copy("process_vm_writev", pid, address, buffer)
