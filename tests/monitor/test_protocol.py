# SPDX-License-Identifier: Apache-2.0
"""The codec and the table of states, without any I/O; and the document says what the code does."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdlib.wire import messages, states
from sdlib.wire.messages import Code, ProtocolError, Type
from sdlib.wire.states import Conversation, OfferState, Role, State

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=messages.TEXT_BYTES - 1)
any_message: st.SearchStrategy[messages.Message] = st.one_of(
    st.builds(messages.Hello, u32, u32, st.just(messages.HELLO_MAGIC)),
    st.builds(messages.Welcome, u32, u32, u32, u32),
    st.builds(messages.Reject, u32, u32, text),
    st.builds(messages.Offer, u64, u64),
    st.builds(messages.Pending, u64),
    st.builds(messages.Paired, u64, u32, u32, u32, u32),
    st.builds(messages.Refused, u64, u32, text),
    st.builds(messages.Withdraw, u64),
    st.builds(messages.Withdrawn, u64),
    st.builds(messages.Hold, u64, u32, u32),
    st.builds(messages.Release, u64),
    st.builds(messages.Reload),
    st.builds(messages.Ask, u64, u32, u32),
    st.builds(messages.Tell, u64),
    st.builds(messages.Question, u32, u32),
    st.builds(messages.Part, u32, u32),
    st.builds(messages.Answer, u32, u32),
    st.builds(messages.Nudge, u64),
    st.builds(messages.Ring, u64, u32, u32),
    st.builds(messages.Rang, u64, u32, u32, u64, u32, u32),
)


@given(any_message)
def test_round_trip(message: messages.Message) -> None:
    data = messages.encode(message)
    assert len(data) == messages.size_of(messages.TYPE_OF[type(message)]) <= messages.MAX_BYTES
    assert messages.decode(data) == message


@settings(max_examples=3000)
@given(st.binary(max_size=messages.MAX_BYTES + 1))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        message = messages.decode(data)
    except ProtocolError as error:
        assert str(error).isprintable()
    else:
        assert messages.encode(message) == data, "what is accepted is accepted in one form only"


@settings(max_examples=3000)
@given(any_message, st.integers(0, messages.MAX_BYTES - 1), st.integers(0, 255), st.integers(-3, 3))
def test_one_wrong_byte_or_length(message: messages.Message, place: int, byte: int, more: int) -> None:
    data = bytearray(messages.encode(message))
    data[place % len(data)] = byte
    changed = bytes(data[:more] if more < 0 else data + bytes(more))
    try:
        assert messages.encode(messages.decode(changed)) == changed
    except ProtocolError as error:
        assert str(error).isprintable()
    if more:
        with pytest.raises(ProtocolError):
            messages.decode(changed)


def test_text_is_cut_and_cleaned() -> None:
    data = messages.encode(messages.Refused(1, 2, "a\x1b[31m\n" + "é" * 500))
    message = messages.decode(data)
    assert isinstance(message, messages.Refused)
    assert message.text.startswith("a?[31m???") and len(message.text) == messages.TEXT_BYTES - 1


@pytest.mark.parametrize("dirty", [b"\x1b[31m", b"a\0b", b"x" * messages.TEXT_BYTES, b"\xff"])
def test_unclean_text_is_refused(dirty: bytes) -> None:
    good = messages.encode(messages.Reject(1, 2, ""))
    data = good[: -messages.TEXT_BYTES] + dirty.ljust(messages.TEXT_BYTES, b"\0")
    with pytest.raises(ProtocolError, match="unclean"):
        messages.decode(data)


def test_numbers_out_of_range_are_not_sent() -> None:
    with pytest.raises(struct.error):
        messages.encode(messages.Pending(1 << 64))


@given(st.lists(st.tuples(st.sampled_from(Role), st.sampled_from(Type)), max_size=8))
def test_conversations(said: list[tuple[Role, Type]]) -> None:
    """Offers are only heard between WELCOME and REJECT, whatever came before; an error changes nothing."""
    talk, heard = Conversation(), []
    for role, kind in said:
        before = talk.state
        try:
            talk.step(role, kind)
        except ProtocolError:
            assert talk.state is before
            continue
        heard.append((role, kind))
        if kind in (Type.OFFER, Type.PAIRED, Type.WITHDRAW, Type.PENDING, Type.REFUSED, Type.WITHDRAWN):
            assert heard[:2] == [(Role.CLIENT, Type.HELLO), (Role.MONITOR, Type.WELCOME)]
        assert (Role.MONITOR, Type.REJECT) not in heard[:-1]


def test_each_message_has_one_sender() -> None:
    senders: dict[Type, set[Role]] = {}
    for steps in states.STEPS.values():
        for role, kind in steps:
            senders.setdefault(kind, set()).add(role)
    assert set(senders) == set(Type)
    assert all(len(roles) == 1 for roles in senders.values())


def test_every_state_is_reached() -> None:
    reached = {following for steps in states.STEPS.values() for following in steps.values()} | {State.START}
    assert reached == set(State) == set(states.STEPS)
    of_offers = {following for steps in states.OFFER_STEPS.values() for following in steps.values()}
    assert of_offers | {OfferState.ASKED} == {*OfferState, None}


def test_document_shows_every_message_with_its_number_and_size() -> None:
    rows = re.findall(r"^\| (\d+) \| `([A-Z]+)` \| (client|monitor) \| (\d+) \| (\d) \|", DOCUMENT, re.MULTILINE)
    senders = {kind: role for steps in states.STEPS.values() for role, kind in steps}
    expected = [
        (str(kind.value), kind.name, senders[kind].name.lower(), str(messages.size_of(kind)), str(layout.fds))
        for kind, layout in messages.LAYOUTS.items()
    ]
    assert rows == expected


def test_document_shows_every_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (?:REJECT|REFUSED|ANSWER)", DOCUMENT, re.MULTILINE)
    assert rows == [(str(code.value), code.name) for code in Code]
    assert f"protocol version {messages.PROTOCOL_VERSION}" in DOCUMENT


def test_document_shows_every_step() -> None:
    rows = re.findall(r"^\| ([A-Z]+) \| (client|monitor) \| ([A-Z]+) \| ([A-Z]+) \|", DOCUMENT, re.MULTILINE)
    expected = [
        (state.name, role.name.lower(), kind.name, following.name)
        for state, steps in states.STEPS.items()
        for (role, kind), following in steps.items()
    ]
    assert rows == expected
