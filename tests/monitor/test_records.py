# SPDX-License-Identifier: Apache-2.0
"""What a hostile monitor of another host says: it ends the link, or harms its own connection only."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.hosts import frames
from monitor.hosts.frames import BadPeer
from monitor.hosts.mirror import BELLS_MOST
from tests.monitor.pair import RING, Pair, pair


def linked() -> Pair:
    made = Pair(queue_pairs=False)
    made.settle()
    return made


def words(made: Pair, **other: int) -> frames.Words:
    said = made.sides[0].mirror.theirs
    assert said is not None
    return said._replace(**other)


@pytest.mark.parametrize("record", [
    lambda made: words(made, head=5),
    lambda made: words(made, head=1 << 63),
    lambda made: words(made, slot=99),
    lambda made: frames.Ready(),
    lambda made: frames.Switch(),
], ids=["unwritten head", "head of the future", "slot", "ready twice", "switch twice"])  # fmt: skip
def test_a_lie_ends_the_link(record: Any) -> None:
    made = linked()
    try:
        a, b = made.sides
        assert a.link is not None and b.link is not None
        with pytest.raises(BadPeer):
            a.link.feed(b.link._sealer.seal(frames.encode(record(made))))
    finally:
        made.close()


@pytest.mark.parametrize("kind", ["words", "bell"])
def test_any_number_of_doorbells_is_a_few(kind: str) -> None:
    """A program can write the word that says whether one is due; and what is said of fewer than before is old."""
    made = linked()
    try:
        a, b = made.sides
        wanted = a.mirror.wanted

        def ask(many: int) -> None:
            assert a.link is not None and b.link is not None
            record = words(made, bells_asked=many) if kind == "words" else frames.Bell(a.mirror.slot, many)
            a.link.feed(b.link._sealer.seal(frames.encode(record)))

        ask(wanted + 1000)
        ask(wanted + 3)
        ask((wanted - 1) & 0xFFFFFFFF)
        assert a.mirror.wanted == wanted + 1000 and a.mirror.owes_bell
        for _ in range(10):
            made.ring(0)
        assert not a.mirror.owes_bell and b.arriving == BELLS_MOST
    finally:
        made.close()


def test_a_doorbell_for_a_connection_that_has_ended_is_none() -> None:
    """It was asked for before the other monitor could hear of the end: other connections go on."""
    made = linked()
    try:
        a, b = made.sides
        assert a.link is not None and b.link is not None
        a.mirror.unlink()
        for slot in (a.mirror.slot, 99):
            a.link.feed(b.link._sealer.seal(frames.encode(frames.Bell(slot, 1000))))
        assert not a.mirror.owes_bell
    finally:
        made.close()


@pytest.mark.parametrize("at, size", [(0, RING + 1), (1, 10), (1 << 40, 1)])
def test_bytes_for_another_place_end_the_link(at: int, size: int) -> None:
    made = linked()
    try:
        a, b = made.sides
        assert a.link is not None and b.link is not None
        body = frames.encode(frames.Data(a.mirror.slot, size, at)) + bytes(size)
        with pytest.raises(BadPeer):
            a.link.feed(b.link._sealer.seal(body))
        assert a.copy.landed() == 0
    finally:
        made.close()


def test_a_write_beyond_the_ring_ends_the_link() -> None:
    with pair(queue_pairs=True) as made:
        made.settle()
        a = made.sides[0]
        assert a.link is not None
        a.link.on_written(a.mirror.slot, RING)
        with pytest.raises(BadPeer):
            a.link.on_written(a.mirror.slot, 1)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_an_error(data: bytes) -> None:
    start = 0
    try:
        while (found := frames.decode(data, start)) is not None:
            record, end = found
            assert frames.encode(record) == data[start:end]
            start = end
    except BadPeer as error:
        assert str(error).isprintable()
