# SPDX-License-Identifier: Apache-2.0
"""JSON for what a program waits for: the C half of `json`, whose Python half compiles expressions when imported."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _refuse(value: object) -> Any:
    """Neither NaN is read, nor written what JSON has no word for."""
    raise ValueError(f"no JSON: {value!r}")


class _How:
    """What the scanner asks for."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, staticmethod(_refuse)


def _c_halves() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """Reader and writer. They are json's own business: ImportError or TypeError where a Python has others."""
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    make: Any = make_encoder
    scan: Any = make_scanner(_How)  # type: ignore[arg-type]
    encode = make({}, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)

    def read(text: str) -> Any:
        text = text.strip(" \t\n\r")
        try:
            value, end = scan(text, 0)
        except StopIteration:
            raise ValueError("no JSON") from None
        if end != len(text):
            raise ValueError("more behind the JSON")
        return value

    def write(value: Any) -> str:
        return "".join(encode(value, 0))

    if read(write([1])) != [1]:
        raise TypeError
    return read, write


def _whole() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """The same by the whole of json."""
    import json

    def write(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, default=_refuse)

    def read(text: str) -> Any:
        return json.loads(text, parse_constant=_refuse)

    return read, write


try:
    _read, _write = _c_halves()
except (ImportError, TypeError):
    _read, _write = _whole()


def loads(text: str | bytes) -> Any:
    """The value of a text. ValueError."""
    return _read(text if isinstance(text, str) else text.decode())


def dumps(value: Any) -> str:
    """The shortest text of a value. ValueError."""
    return _write(value)
