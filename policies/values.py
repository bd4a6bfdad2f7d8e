# SPDX-License-Identifier: Apache-2.0
"""Values as people write them, in a file or after `--set`.

A parser returns the value or raises ValueError; the text of that is what would be right, for the end of an error line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from policies.model import PolicyError, Upgrade, Values

RING_MIN: Final = 4096  # SD_RING_MIN and SD_RING_MAX; a test compares them, so that --set need not load cffi
RING_MAX: Final = 64 << 20
SPIN_MAX_US: Final = 100_000
COUNT_MAX: Final = (1 << 63) - 1
_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
_SIZE: Final = re.compile(r"([0-9]{1,12})(B|KiB|MiB|)", re.ASCII)
RING_RIGHT: Final = "a power of two from 4KiB to 64MiB, such as 256KiB"
UPGRADE_RIGHT: Final = "eager, never, after_ops:N or after_bytes:N with N from 1"


def ring(text: str) -> int:
    """Bytes of a ring: a number with B, KiB, MiB or nothing behind it."""
    found = _SIZE.fullmatch(text)
    size = int(found[1]) * _UNITS[found[2]] if found else 0
    if not RING_MIN <= size <= RING_MAX or size & (size - 1):
        raise ValueError(RING_RIGHT)
    return size


def upgrade(text: str) -> Upgrade:
    """`eager`, `never`, `after_ops:N`, `after_bytes:N`."""
    if text == "eager":
        return "eager"
    if text == "never":
        return "never"
    how, _, count = text.partition(":")
    if count.isascii() and count.isdigit() and len(count) < 20 and 1 <= int(count) <= COUNT_MAX:
        if how == "after_ops":
            return ("after_ops", int(count))
        if how == "after_bytes":
            return ("after_bytes", int(count))
    raise ValueError(UPGRADE_RIGHT)


def spin_us(text: str) -> int:
    """Microseconds."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= SPIN_MAX_US):
        raise ValueError(f"a whole number of microseconds from 0 to {SPIN_MAX_US}")
    return int(text)


def _one_of(*words: str) -> Callable[[str], str]:
    """A parser of a few words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return parse


def patch(text: str) -> bool:
    """`on` or `off`."""
    return _one_of("on", "off")(text) == "on"


# Name after --set: (name in policies.model.KEYS, parser). `default` is the action of whatever is started.
SETTABLE: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "default": ("action", _one_of("accelerate", "kernel")),
    "upgrade": ("upgrade", upgrade),
    "ring": ("ring", ring),
    "spin_us": ("spin_us", spin_us),
    "io_uring": ("io_uring", _one_of("deny", "allow")),
    "patch": ("patch", patch),
}


def parse_sets(sets: Sequence[str]) -> Values:
    """The values of all `--set KEY=VALUE`, the last of a kind counts; raises PolicyError."""
    values: dict[str, object] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or key not in SETTABLE:
            known = ", ".join(SETTABLE)
            raise PolicyError(f"--set {text[:80]}: no such value; KEY=VALUE with KEY one of {known}")
        name, parse = SETTABLE[key]
        try:
            values[name] = parse(value)
        except ValueError as right:
            raise PolicyError(f"--set {text[:80]}: wrong value; {key} must be {right}") from None
    return values
