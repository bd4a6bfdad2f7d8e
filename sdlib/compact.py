# SPDX-License-Identifier: Apache-2.0
"""JSON for what a program waits for: the C half of `json`, whose Python half compiles expressions when imported."""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

def _refuse(value: object) -> Any:
    """Neither NaN is read, nor written what JSON has no word for."""
    raise ValueError(f"no JSON: {value!r}")


class _How:
    """What the scanner asks for."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, staticmethod(_refuse)


_scan: Any = make_scanner(_How)  # type: ignore[arg-type]
_encode: Any = make_encoder


def loads(text: str | bytes) -> Any:
    """The value of a text. ValueError."""
    text = (text if isinstance(text, str) else text.decode()).strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("no JSON") from None
    if end != len(text):
        raise ValueError("more behind the JSON")
    return value


def dumps(value: Any) -> str:
    """The shortest text of a value. ValueError."""
    encode = _encode({}, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)
    return "".join(encode(value, 0))
