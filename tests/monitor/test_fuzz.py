# SPDX-License-Identifier: Apache-2.0
"""The monitor's decoder and state machine with garbled messages: one clean error, or a message in its only form."""

from __future__ import annotations

import random
from typing import Any

from sdlib.wire import messages, states
from sdlib.wire.messages import LAYOUTS, ProtocolError, Type
from sdlib.wire.states import Conversation, Role
from tests.fuzzing import cases

CASES = cases(5_000, 200_000)


def a_message(rng: random.Random) -> bytes:
    """A well-formed one, with any numbers in it."""
    layout = LAYOUTS[rng.choice(list(Type))]
    text = "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(20)))
    fields: list[Any] = [text if name == "text" else messages.HELLO_MAGIC if name == "magic" else rng.randrange(2**32)
              for name in layout.cls._fields]
    return messages.encode(layout.cls(*fields))


def garble(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut, doubled or added; sometimes nothing."""
    changed = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        place = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(5):
            case 0:
                changed[place:place + 1] = bytes([rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])])
            case 1:
                del changed[place:place + rng.choice([1, 2, 8, 100])]
            case 2:
                changed[place:place] = rng.randbytes(rng.choice([1, 2, 8, 300]))
            case 3:
                changed += changed[place:]
            case _:
                changed[:2] = rng.randrange(12).to_bytes(2, "little")
    return bytes(changed)


def test_any_datagram_is_a_message_or_a_clean_error() -> None:
    rng = random.Random(5)
    accepted = refused = 0
    for case in range(CASES):
        data = garble(rng, a_message(rng))
        try:
            message = messages.decode(data)
        except ProtocolError as error:
            assert str(error).isprintable() and len(str(error)) < 300, (case, data)
            refused += 1
        else:
            assert messages.encode(message) == data, (case, data)
            accepted += 1
    assert min(accepted, refused) > CASES // 10


def test_any_order_of_messages_is_a_state_or_a_clean_error() -> None:
    rng = random.Random(6)
    longest = 0
    for _ in range(CASES // 50):
        conversation, steps = Conversation(), 0
        for _ in range(100):
            try:
                conversation.step(rng.choice(list(Role)), rng.choice(list(Type)))
                steps += 1
            except ProtocolError as error:
                assert str(error).isprintable()
        longest = max(longest, steps)
    assert longest > 10


def test_any_answers_to_an_offer_end_it_or_are_refused() -> None:
    rng = random.Random(7)
    for _ in range(CASES // 5):
        state: states.OfferState | None = None
        for _ in range(10):
            try:
                state = states.offer_step(state, rng.choice(list(Type)))
            except ProtocolError as error:
                assert str(error).isprintable()
                break
