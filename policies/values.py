# SPDX-License-Identifier: Apache-2.0
"""Values as people write them, in a file or after `--set`.

A parser returns the value or raises ValueError; the text of that is what would be right, for the end of an error line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.model import WITHOUT, PolicyError, Upgrade, Values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

RING_MIN: Final = 4096  # SD_RING_MIN and SD_RING_MAX; a test compares them, so that --set need not load cffi
RING_MAX: Final = 64 << 20
TOTAL_MAX: Final = 1 << 50
CONNECTIONS_MAX: Final = 1 << 20
IDLE_MAX_S: Final = 86400
SPIN_MAX_US: Final = 100_000
COUNT_MAX: Final = (1 << 63) - 1
_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
RING_RIGHT: Final = "a power of two from 4KiB to 64MiB, such as 4MiB"
TOTAL_RIGHT: Final = "a size such as 256MiB that holds the two rings of one connection at least"
UPGRADE_RIGHT: Final = "eager, never, after_ops:N or after_bytes:N with N from 1"


def _bytes(text: str) -> int:
    """A number with B, KiB, MiB, GiB or nothing behind it; -1 for anything else."""
    digits = text.rstrip("BKMGi")
    fits = digits.isascii() and digits.isdigit() and len(digits) <= 12
    return int(digits) * _UNITS[unit] if fits and (unit := text[len(digits):]) in _UNITS else -1


def ring(text: str) -> int:
    """Bytes of a ring."""
    size = _bytes(text)
    if not RING_MIN <= size <= RING_MAX or size & (size - 1):
        raise ValueError(RING_RIGHT)
    return size


def total(text: str) -> int:
    """Bytes of all rings of a program."""
    size = _bytes(text)
    if not 3 * RING_MIN <= size <= TOTAL_MAX:
        raise ValueError(TOTAL_RIGHT)
    return size


def connections(text: str) -> int:
    """How many connections of a program may be accelerated at a time."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= CONNECTIONS_MAX):
        raise ValueError(f"a whole number from 0 to {CONNECTIONS_MAX}")
    return int(text)


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


def idle_s(text: str) -> int:
    """Seconds."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= IDLE_MAX_S):
        raise ValueError(f"a whole number of seconds from 0 (never) to {IDLE_MAX_S}")
    return int(text)


def _one_of(*words: str) -> Callable[[str], str]:
    """A parser of a few words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return parse


def switch(text: str) -> bool:
    """`on` or `off`."""
    return _one_of("on", "off")(text) == "on"


def without(text: str) -> tuple[str, ...]:
    """Techniques to switch off, with commas between them."""
    words = tuple(word for word in text.split(",") if word)
    if not all(word in WITHOUT for word in words):
        raise ValueError(f"some of {', '.join(WITHOUT)}, with commas between them")
    return words


# Name after --set: (name in policies.model.KEYS, parser). `default` is the action of whatever is started.
SETTABLE: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "default": ("action", _one_of("accelerate", "kernel", "deny")),
    "upgrade": ("upgrade", upgrade),
    "ring": ("ring", ring),
    "total": ("total", total),
    "connections": ("connections", connections),
    "spin_us": ("spin_us", spin_us),
    "idle_s": ("idle_s", idle_s),
    "io_uring": ("io_uring", _one_of("deny", "allow")),
    "strict": ("strict", switch),
    "patch": ("patch", switch),
    "without": ("without", without),
}


def parse_sets(sets: Sequence[str], origin: str = "--set") -> Values:
    """The values of all `--set KEY=VALUE`, the last of a kind counts; raises PolicyError."""
    values: dict[str, object] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or key not in SETTABLE:
            known = ", ".join(SETTABLE)
            raise PolicyError(f"{origin} {text[:80]}: no such value; KEY=VALUE with KEY one of {known}")
        name, parse = SETTABLE[key]
        try:
            values[name] = parse(value)
        except ValueError as right:
            raise PolicyError(f"{origin} {text[:80]}: wrong value; {key} must be {right}") from None
    return values


def show(key: str, value: object) -> str:
    """A value (by its name in policies.model.KEYS) as one would write it."""
    if key in ("ring", "total") and isinstance(value, int):
        unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if value % _UNITS[unit] == 0)
        return f"{value // _UNITS[unit]}{unit}"
    if isinstance(value, bool):
        return "on" if value else "off"
    if key == "without" and isinstance(value, tuple):
        return ",".join(value) or "-"
    return f"{value[0]}:{value[1]}" if isinstance(value, tuple) else str(value)
