# SPDX-License-Identifier: Apache-2.0
"""Monitors of two hosts make sure of each other, and of every frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.hosts.auth import Handshake, Refused
from monitor.hosts.frames import BadPeer
from tests.monitor.pair import KEY, sealers


def converse(near: Handshake, far: Handshake) -> None:
    to_far = near.begin()
    for _ in range(4):
        to_near = far.feed(to_far)
        to_far = near.feed(to_near)


def test_another_key_is_refused_by_both() -> None:
    near, far = Handshake("a", lambda _: KEY, "b"), Handshake("b", lambda _: KEY + b"!", None)
    with pytest.raises(Refused, match="another key"):
        converse(near, far)
    assert near.sealer is None and far.sealer is None
    # And a caller without the key that does not care what the listener proves:
    listener = Handshake("b", lambda _: KEY, None)
    caller = Handshake("a", lambda _: b"x" * 20, "b")
    listener.feed(caller.begin())
    with pytest.raises(Refused, match="another key"):
        listener.feed(bytes(32))


def test_unknown_names_other_versions_and_mirrors_are_refused() -> None:
    with pytest.raises(Refused, match="no peer"):
        converse(Handshake("z", lambda _: KEY, "b"), Handshake("b", lambda name: KEY if name == "a" else None, None))
    with pytest.raises(Refused, match="calls itself"):
        converse(Handshake("a", lambda _: KEY, "c"), Handshake("b", lambda _: KEY, None))
    hello = bytearray(Handshake("a", lambda _: KEY, "b").begin())
    hello[8] += 1
    with pytest.raises(Refused, match="version"):
        Handshake("b", lambda _: KEY, None).feed(bytes(hello))
    # What a listener says is of no use as the dialler's proof.
    dialler, listener = Handshake("a", lambda _: KEY, "b"), Handshake("b", lambda _: KEY, None)
    answer = listener.feed(dialler.begin())
    with pytest.raises(Refused, match="another key"):
        listener.feed(answer[-32:])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_frame_is_noticed(place: int, flip: int) -> None:
    near, far = sealers()
    sealed = bytearray(near.seal(b"first") + near.seal(b"second"))
    sealed[place % len(sealed)] ^= flip
    got = []
    with pytest.raises(BadPeer):
        got += list(far.open(bytes(sealed)))
        list(far.open(bytes(1 << 21)))
    assert all(body in (b"first", b"second") for body in got)


def test_frames_cannot_be_repeated_left_out_or_sent_back() -> None:
    near, far = sealers()
    one, two = near.seal(b"one"), near.seal(b"two")
    with pytest.raises(BadPeer):
        list(far.open(two))
    near, far = sealers()
    one = near.seal(b"one")
    assert list(far.open(one)) == [b"one"]
    with pytest.raises(BadPeer):
        list(far.open(one))
    with pytest.raises(BadPeer):
        list(near.open(one))
