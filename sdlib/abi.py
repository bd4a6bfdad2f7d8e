# SPDX-License-Identifier: Apache-2.0
"""The shared layouts of `sdlib/include/sd_abi.h`, as Python sees them.

`const.SD_SEG_MAGIC` and every other macro or enumerator; `ffi` and `lib` of the cffi module (structs by
`ffi.cast("struct sd_seg *", ...)`, the testable C functions in `lib`); names of counters and reasons in the order
of their indices.  All of it is generated from the header (sdlib/build_ffi.py): nothing here can drift from it.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    CData = Any
else:
    CData = object
"""A value made by cffi; its members depend on the C type, which Python's type system cannot see."""

try:
    from sdlib._sdffi import ffi, lib
except ImportError as missing:  # a checkout that was never built, or another Python's build
    raise ImportError("sdlib._sdffi is not built for this Python; run `make build`") from missing

const: Final = lib
"""Constants by their C names: `const.SD_ABI_VERSION`, `const.SD_BLOCK_PAIRED`, `const.SD_CTR_bells_tx`."""

# cffi's cast does not keep the buffer that it looks at alive.
_keep_alive: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _names(array: CData, count: int) -> tuple[str, ...]:
    """A C array of strings as a tuple."""
    return tuple(ffi.string(array[index]).decode() for index in range(count))  # type: ignore[union-attr]


COUNTERS: Final = _names(lib.sd_counter_names, lib.SD_CTR_COUNT)
"""Names of the counters; the position is the index in `struct sd_proc.ctr`."""

GAUGES: Final = frozenset({"sites_trapping"})
"""Those of them that may become less: what is so now, not how often something has happened."""

REASONS: Final = _names(lib.sd_reason_texts, lib.SD_REASON_COUNT)
"""Reasons as reports show them ("few-operations"); the position is `enum sd_reason`."""

REASON_NAMES: Final = _names(lib.sd_reason_names, lib.SD_REASON_COUNT)
"""The same reasons by their C names ("few_ops" for SD_REASON_few_ops)."""


SIZES: Final = tuple(1 << power for power in range(lib.SD_SIZES - 1))
"""Largest message of each place of `struct sd_proc.sizes` but the last, which has all larger ones."""


def sizeof(ctype: str) -> int:
    """Bytes of a C type, e.g. `sizeof("struct sd_seg")`."""
    return ffi.sizeof(ctype)


def offsetof(ctype: str, member: str, *more: str | int) -> int:
    """Bytes from the start of `ctype` to a member; more members and array indices descend further."""
    return ffi.offsetof(ctype, member, *more)


def view(ctype: str, memory: Any) -> CData:
    """Look at writable `memory` (an mmap, a bytearray) as a `ctype`; keeps the memory alive, checks its size.

    Raises ValueError when the memory is smaller than the type.
    """
    buffer = ffi.from_buffer(memory, require_writable=True)
    if len(buffer) < sizeof(ctype):
        raise ValueError(f"{len(buffer)} bytes cannot hold a {ctype} of {sizeof(ctype)} bytes")
    pointer = ffi.cast(f"{ctype} *", buffer)
    _keep_alive[pointer] = buffer
    return pointer

__all__ = ["COUNTERS", "GAUGES", "REASONS", "REASON_NAMES", "SIZES", "CData", "const", "ffi", "lib", "offsetof",
           "sizeof", "view"]
