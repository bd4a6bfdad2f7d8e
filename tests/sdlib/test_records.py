# SPDX-License-Identifier: Apache-2.0
"""The cheap `dataclass`, `NamedTuple` and JSON against the standard library's."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import typing
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from sdlib import compact, records


def make(kit: Any) -> SimpleNamespace:
    """The same classes of one kit."""

    @kit.dataclass(frozen=True, slots=True)
    class Point:
        """Frozen, with a default."""

        x: int
        y: int = 2

        @property
        def sum(self) -> int:
            return self.x + self.y

    @kit.dataclass
    class Bag:
        """With a list of its own, and what is not shown."""

        name: str
        items: list[Any] = kit.field(default_factory=list)
        key: bytes = kit.field(default=b"secret", repr=False)
        kind: ClassVar[int] = 3

    @kit.dataclass
    class Longer(Bag):
        """What it is made of comes first."""

        more: int = 5

    @kit.dataclass(frozen=True)
    class Odd:  # noqa: PLW1641  that is the question
        """Equality of its own."""

        x: int

        def __eq__(self, other: object) -> bool:
            return True

        def __repr__(self) -> str:
            return "odd"

    class Pair(kit.NamedTuple):  # type: ignore[misc]
        """A named tuple."""

        left: int
        right: str = "r"

        def both(self) -> str:
            return f"{self.left}{self.right}"

    return SimpleNamespace(**locals())


STANDARD = SimpleNamespace(dataclass=dataclasses.dataclass, field=dataclasses.field, replace=dataclasses.replace,
                           asdict=dataclasses.asdict, NamedTuple=typing.NamedTuple)

EXPRESSIONS = (
    "Point(1)", "Point(1, 3)", "Point(y=4, x=3)", "Point()", "Point(1, 2, 3)", "Point(1, x=1)", "Point(1, z=3)",
    "Point(1).sum", "Point(1) == Point(1, 2)", "Point(1) == Point(2)", "Point(1) == (1, 2)", "Point(1) != Point(1)",
    "hash(Point(1)) == hash(Point(1, 2))", "{Point(1), Point(1)}",
    "setattr(Point(1), 'x', 2)", "delattr(Point(1), 'x')", "Point.__match_args__",
    "Bag('a')", "Bag('a').items is Bag('a').items", "Bag('a', [1]).items", "Bag('a').key", "hash(Bag('a'))", "Bag.key",
    "Bag.items", "Bag.kind", "Bag('a') == Bag('a')", "vars(Bag('a', [1]))",
    "Longer('a', more=6)", "Longer('a') == Bag('a')", "Longer.__match_args__",
    "Odd(1) == 3", "Odd(1)", "hash(Odd(1)) == hash(Odd(1))",
    "Pair(1)", "Pair(1, 'x')", "Pair(right='q', left=1)", "Pair()", "Pair(1, 2, 3)", "Pair(1, wrong=2)",
    "Pair(1).both()", "Pair(1) == (1, 'r')", "hash(Pair(1)) == hash((1, 'r'))", "Pair(1)._replace(left=2)",
    "Pair(1)._replace(no=2)",
    "Pair(1)._asdict()", "Pair._fields", "Pair._make([1, 2])", "Pair._make([])", "Pair._field_defaults", "len(Pair(1))",
    "setattr(Pair(1), 'left', 2)", "[*Pair(1)]", "isinstance(Pair(1), tuple)", "Pair(1)[1]",
    "sorted([Pair(2), Pair(1)])",
    "replace(Point(1), y=9)", "replace(Bag('a', [1]), name='b')", "asdict(Bag('a', [Point(1), (Point(2),)]))",
    "asdict(Bag('a', {'k': [Pair(1)]}))",
)  # fmt: skip


def outcome(kit: Any, expression: str) -> str:
    """What comes out, or the kind of error."""
    names = {**vars(kit), **vars(make(kit))}
    try:
        return repr(eval(expression, names)).replace("make.<locals>.", "")
    except (TypeError, AttributeError, ValueError) as error:
        # FrozenInstanceError is an AttributeError; what is called with wrong names a TypeError or ValueError.
        return "AttributeError" if isinstance(error, AttributeError) else "refused"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_as_the_standard_library(expression: str) -> None:
    assert outcome(records, expression) == outcome(STANDARD, expression)


def test_pickle() -> None:
    from sdlib.wire.events import Pending

    assert pickle.loads(pickle.dumps(Pending(3))) == Pending(3)


VALUES: tuple[Any, ...] = ({}, [], "", "ä\n\"\\\u2028\U0001f600", 0, -1, 1 << 70, 1.5, True, None,
          {"a": [1, {"b": None}], "c": "d"}, [[[]]])


@pytest.fixture(params=["c", "whole"])
def halves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python is, and one whose json is made differently."""
    chosen = compact._c_halves if request.param == "c" else compact._whole
    for name, half in zip(("_read", "_write"), chosen(), strict=True):
        monkeypatch.setattr(compact, name, half)


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_compact(value: Any) -> None:
    text = compact.dumps(value)
    assert text == json.dumps(value, separators=(",", ":"))
    assert compact.loads(text) == compact.loads(f" {json.dumps(value, indent=1)}\n".encode()) == value


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("text", ["", "{", "[1,]", "{}x", "nul", "NaN", '"\n"', "{1:2}", b"\xff"], ids=repr)
def test_compact_refuses(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        compact.loads(text)
    with pytest.raises((ValueError, TypeError)):
        compact.dumps({"a": math.nan})
    with pytest.raises(ValueError):
        compact.dumps({"a": object()})
