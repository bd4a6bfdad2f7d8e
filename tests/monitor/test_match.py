# SPDX-License-Identifier: Apache-2.0
"""monitor/match.py against a model that is too simple to be wrong: a list, searched from end to end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from monitor.match import Address, Key, Matcher, Offer, Verdict, side_of
from sdlib.wire.messages import Code

# Few values, so that keys collide, mirror and repeat all the time.
ADDRESSES = [Address(bytes(15) + bytes([host]), scope, port) for host in (1, 2) for scope in (0, 3) for port in (5, 6)]
keys = st.builds(Key, st.integers(1, 2), st.sampled_from(ADDRESSES[:3]), st.sampled_from(ADDRESSES[:3]))
all_keys = st.builds(Key, st.integers(1, 2), st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES))


class AgainstModel(RuleBasedStateMachine):
    """Random offers, withdrawals and departures; after each, both agree on what is open."""

    @initialize(per_client=st.integers(1, 4), per_uid=st.integers(1, 6))
    def begin(self, per_client: int, per_uid: int) -> None:
        self.matcher = Matcher(per_client, per_uid)
        self.model: list[Offer] = []
        self.used = 0

    @rule(client=st.integers(1, 3), uid=st.integers(1, 2), cookie=st.integers(1, 4), key=keys)
    def offer(self, client: int, uid: int, cookie: int, key: Key) -> None:
        self.used += 1
        new = Offer(client, self.used, uid, cookie, key, 4096)
        result = self.matcher.offer(new)
        if key.local == key.peer:
            assert (result.verdict, result.code) == (Verdict.REFUSED, Code.SELF_CONNECTED)
            return
        same = [old for old in self.model if old.key == key]
        mirrored = (key.netns, key.peer, key.local)
        other = [old for old in self.model if tuple(old.key) == mirrored]
        dead = [old for old in other if old.cookie == cookie]
        self.model = [old for old in self.model if old not in same + other]
        live = [old for old in other if old not in dead]
        assert result.replaced == next(iter(same + dead), None)
        assert len(same + other) <= 1, "two ends of one connection never wait at the same time"
        if live:
            assert [result.partner] == live
            assert (result.verdict is Verdict.PAIRED) == (live[0].uid == uid)
            assert result.code == (None if live[0].uid == uid else Code.OTHER_USER)
            return
        assert result.partner is None
        full = (
            len([old for old in self.model if old.client == client]) >= self.matcher.max_per_client
            or len([old for old in self.model if old.uid == uid]) >= self.matcher.max_per_uid
        )
        assert result.verdict is (Verdict.REFUSED if full else Verdict.WAITING)
        if full:
            assert result.code is Code.QUOTA
        else:
            self.model.append(new)

    @rule(client=st.integers(1, 3), back=st.integers(0, 6))
    def withdraw(self, client: int, back: int) -> None:
        offer_id = self.used - back
        was = [old for old in self.model if (old.client, old.offer_id) == (client, offer_id)]
        assert self.matcher.withdraw(client, offer_id) == bool(was)
        self.model = [old for old in self.model if old not in was]

    @rule(client=st.integers(1, 3))
    def drop(self, client: int) -> None:
        assert self.matcher.drop_client(client) == len([old for old in self.model if old.client == client])
        self.model = [old for old in self.model if old.client != client]

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "model"):
            assert len(self.matcher) == len(self.model)
            assert all(self.matcher.is_open(old.client, old.offer_id) for old in self.model)


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(all_keys)
def test_sides_are_two_and_agreed(key: Key) -> None:
    if key.local != key.peer:
        assert {side_of(key), side_of(key.mirrored())} == {0, 1}


@given(all_keys, all_keys)
def test_only_mirrored_keys_pair(one: Key, two: Key) -> None:
    matcher = Matcher(10, 10)
    matcher.offer(Offer(1, 1, 0, 1, one, 4096))
    paired = matcher.offer(Offer(2, 1, 0, 2, two, 4096)).verdict is Verdict.PAIRED
    mirrored = (one.netns, one.local, one.peer) == (two.netns, two.peer, two.local)
    assert paired == (mirrored and one.local != one.peer)


def test_nothing_is_left_behind() -> None:
    matcher = Matcher(10, 10)
    key = Key(1, ADDRESSES[0], ADDRESSES[1])
    for number in range(1000):
        matcher.offer(Offer(number, 1, number, 1, key, 4096))
        matcher.offer(Offer(number, 2, number, 2, key.mirrored(), 4096))
    assert all(not held for held in vars(matcher).values() if not isinstance(held, int) and not callable(held))
