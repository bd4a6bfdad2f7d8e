# SPDX-License-Identifier: Apache-2.0
"""The ring, the arming and the switch through cffi: the library's own functions, two ends in one process."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdlib import abi
from tests.sdlib.ends import BrokenRing, End, FakeWire, Mode, fake_wires, new_segment

RING = abi.const.SD_RING_MIN
WRAP = 2**64
HEADER = abi.const.SD_SEG_HDR_BYTES
ELSEWHERE = 0x1000  # no CPU has this number
LARGE = 4096  # SD_PAST_BYTES
ROOMY = 4 * LARGE
STARTS = [0, RING - 3, WRAP - 5, WRAP - RING - 1]
ffi, lib = abi.ffi, abi.lib


def ends(start_at: int = 0, room: int = 4096, ring_bytes: int = RING) -> tuple[End, End]:
    segment = new_segment(ring_bytes, start_at)
    left, right = fake_wires(room)
    return End(segment, 0, left), End(segment, 1, right)


def on_ring(start_at: int = 0, ring_bytes: int = RING) -> tuple[End, End]:
    """Both directions switched, nothing armed."""
    pair = ends(start_at, ring_bytes=ring_bytes)
    for end in pair:
        end.switch()
    for end in pair:
        assert end.recv(1) == b"" and end.rx_mode is Mode.RING
    return pair


@pytest.fixture(params=STARTS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[End, End]]:
    yield on_ring(request.param)


def pattern(count: int, at: int = 0) -> bytes:
    return bytes((at + index) * 7 % 251 for index in range(count))


def test_fill_drain_over_the_wrap(pair: tuple[End, End]) -> None:
    here, there = pair
    for turn in range(5):
        data = pattern(RING + 10, turn)
        assert here.send(data) == RING
        assert here.send(b"x") == 0 and lib.sd_py_writable(here.c) == 0
        assert lib.sd_py_readable(there.c) == RING
        assert there.recv(7) + there.recv(RING) == data[:RING]
        assert there.recv(1) == b""
        assert here.send(pattern(3)) == 3 and there.recv(3) == pattern(3)


@given(start=st.sampled_from(STARTS) | st.integers(0, WRAP - 1),
       chunks=st.lists(st.tuples(st.booleans(), st.integers(0, RING + 100)), max_size=40))
def test_bytes_come_out_as_they_went_in(start: int, chunks: list[tuple[bool, int]]) -> None:
    here, there = on_ring(start)
    sent = received = b""
    for sending, size in chunks:
        if sending:
            data = pattern(size, len(sent))
            taken = here.send(data)
            assert taken == min(size, RING - (len(sent) - len(received)))
            sent += data[:taken]
        else:
            received += there.recv(size)
            assert received == sent[:len(received)]
    assert received + there.recv(RING) == sent


@given(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=8), skip=st.integers(0, 2000),
       start=st.sampled_from(STARTS))
def test_vectors_are_gathered_and_scattered(sizes: list[int], skip: int, start: int) -> None:
    here, there = on_ring(start)
    blocks = [ffi.new("uint8_t[]", pattern(size, index) or b"\0") for index, size in enumerate(sizes)]
    vector = ffi.new("struct sd_py_buffer[]", [{"base": block, "bytes": size}
                                               for block, size in zip(blocks, sizes, strict=True)])
    whole = b"".join(bytes(ffi.buffer(block, size)) for block, size in zip(blocks, sizes, strict=True))
    taken = lib.sd_py_gather(here.c, vector, len(sizes), skip)
    assert taken == min(max(len(whole) - skip, 0), RING)
    for block, size in zip(blocks, sizes, strict=True):
        ffi.memmove(block, b"\xee" * size, size)
    assert lib.sd_py_scatter(there.c, vector, len(sizes), skip) == taken
    after = b"".join(bytes(ffi.buffer(block, size)) for block, size in zip(blocks, sizes, strict=True))
    reach = min(skip, len(whole))
    assert after[:reach] == b"\xee" * reach and after[reach:reach + taken] == whole[reach:reach + taken]


@given(sizes=st.lists(st.integers(1, ROOMY // 2) | st.integers(4090, 4200), min_size=1, max_size=8),
       skew=st.integers(1, 130), start=st.sampled_from(STARTS))
def test_large_messages_to_another_cpu_are_stored_where_they_belong(sizes: list[int], skew: int, start: int) -> None:
    segment = new_segment(ROOMY, start)
    here, there = (End(segment, side, wire) for side, wire in enumerate(fake_wires()))
    here.switch()
    assert there.recv(1) == b"" and here.send(pattern(skew)) == skew and there.recv(skew) == pattern(skew)
    words = here.words.dir[0]
    for size in sizes:
        words.cons_cpu = ELSEWHERE
        data, ring = pattern(size, size), bytearray(segment[HEADER:HEADER + ROOMY])
        assert here.send(data) == size
        for index, byte in enumerate(data):
            ring[(words.tail - size + index - words.base) % WRAP % ROOMY] = byte
        assert segment[HEADER:HEADER + ROOMY] == ring, "and nothing beside them"
        assert there.recv(size) == data
        assert (words.cons_cpu == ELSEWHERE) == (size < LARGE), "the consumer of large ones says where it runs"


def test_peek_leaves_the_bytes(pair: tuple[End, End]) -> None:
    here, there = pair
    here.send(b"abcdef")
    buffer = ffi.new("uint8_t[]", 4)
    assert lib.sd_py_peek(there.c, buffer, 4) == 4 and bytes(ffi.buffer(buffer)) == b"abcd"
    assert there.recv(10) == b"abcdef"


@pytest.mark.parametrize("field, value", [("magic", 1), ("version", 99), ("ring_bytes", RING * 2), ("ring_bytes", 0),
                                          ("ring_bytes", RING + 8), ("ring_bytes", 0x80000000)])
def test_a_header_that_does_not_fit_the_file_is_refused(field: str, value: int) -> None:
    segment = new_segment(RING)
    setattr(ffi.cast("struct sd_seg *", ffi.from_buffer(segment)), field, value)
    with pytest.raises(BrokenRing):
        End(segment, 0, fake_wires()[0])


def test_a_side_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BrokenRing):
        End(new_segment(RING), 2, fake_wires()[0])


@given(word=st.sampled_from(["tail", "head"]), value=st.integers(0, WRAP - 1))
def test_garbled_indices_break_the_ring_or_stay_inside(word: str, value: int) -> None:
    here, there = on_ring()
    here.send(pattern(100))
    setattr(there.words.dir[0], word, value)
    try:
        got = there.recv(RING)
        assert len(got) <= RING
        assert 0 <= here.send(pattern(RING)) <= RING
    except BrokenRing:
        used = (there.words.dir[0].tail - there.words.dir[0].head) % WRAP
        assert used > RING


# ---- sleeping and waking


def test_a_ring_is_armed_from_birth_until_its_consumer_arrives() -> None:
    here, there = ends()
    here.switch()
    assert here.send(b"first") == 5
    assert there.wire.unread() == 1, "no bell for a consumer that cannot be looking yet"
    assert there.recv(10) == b"first"
    assert there.recv(10) == b"" and there.wire.unread() == 0
    here.send(b"second")
    assert there.wire.unread() == 0, "a bell for a consumer that is awake"
    assert there.recv(10) == b"second"


def test_one_bell_at_a_time(pair: tuple[End, End]) -> None:
    here, there = pair
    assert there.fall_asleep(room=False)
    for _ in range(5):
        here.send(b"x")
    assert there.wire.unread() == 1
    there.wake_up()
    assert there.wire.unread() == 0 and there.recv(9) == b"xxxxx"


def test_sleep_is_refused_when_there_is_news(pair: tuple[End, End]) -> None:
    here, there = pair
    here.send(b"x")
    assert not there.fall_asleep(room=False)
    assert here.words.dir[0].rx_armed == 0


def test_a_waiter_that_died_costs_bells_and_nothing_else(pair: tuple[End, End]) -> None:
    here, there = pair
    lib.sd_py_rx_arm(there.c)  # ... and never comes back
    for turn in range(3):
        here.send(b"x")
        assert there.wire.unread() == 1
        assert there.recv(9) == b"x" and there.recv(9) == b"", turn
    assert there.count["eaten"] == 3


def test_a_producer_that_fences_spares_the_waiter_a_membarrier(pair: tuple[End, End]) -> None:
    here, there = pair
    fenced = here.words.dir[0]
    assert lib.sd_py_rx_arm(there.c)  # has to issue one
    lib.sd_py_rx_disarm(there.c)
    assert lib.sd_py_fence_begin(here.c) and not lib.sd_py_fence_begin(here.c)
    assert lib.sd_py_rx_arm(there.c), "begun, not said: somebody may not fence yet"
    lib.sd_py_rx_disarm(there.c)
    lib.sd_py_fence_say(here.c)
    assert not lib.sd_py_rx_arm(there.c)
    for _ in range(2 * abi.const.SD_FENCE_FOR):
        assert lib.sd_py_data_wanted(here.c)
    assert fenced.prod_fenced == 1, "goes on as long as somebody sleeps"
    lib.sd_py_rx_disarm(there.c)
    for _ in range(abi.const.SD_FENCE_FOR):
        assert fenced.prod_fenced == 1
        assert not lib.sd_py_data_wanted(here.c)
    assert fenced.prod_fenced == 0, "nobody has slept for long"
    assert lib.sd_py_fence_begin(here.c)
    lib.sd_py_fence_say(here.c)
    lib.sd_py_fence_end(here.c)
    assert fenced.prod_fenced == 0 and lib.sd_py_rx_arm(there.c)


def rings_at_half(here: End, there: End, unread: int) -> None:
    """Who sleeps for room behind so many unread bytes hears when half of them are read, and not before."""
    assert here.fall_asleep(room=True)
    there.recv(unread // 2 - 1)
    assert here.wire.unread() == 0
    there.recv(1)
    assert here.wire.unread() == 1
    here.wake_up()


def test_room_rings_when_half_of_the_ring_is_free(pair: tuple[End, End]) -> None:
    here, there = pair
    here.send(pattern(RING))
    rings_at_half(here, there, RING)
    assert here.send(pattern(RING)) == RING // 2
    assert here.words.dir[0].tx_armed == 0, "whoever sees room takes the count back"


def test_room_rings_when_half_of_what_may_be_unread_is_free() -> None:
    """A producer that may use less than its ring holds, as TCP's buffers would have held less."""
    here, there = on_ring(ring_bytes=4 * RING)
    limit = RING + RING // 2
    lib.sd_py_tx_most(here.c, limit)
    assert here.send(pattern(4 * RING)) == limit
    rings_at_half(here, there, limit)
    lib.sd_py_tx_most(here.c, 100 * RING)
    assert here.send(pattern(4 * RING)) == 4 * RING - limit // 2, "no more than there is"
    lib.sd_py_tx_most(here.c, 0)
    assert here.send(b"x") == 0


def test_a_false_limit_costs_its_author_alone(pair: tuple[End, End]) -> None:
    here, there = pair
    for most in (0, 1, RING - 1, RING + 1, 0xFFFFFFFF):
        here.words.dir[0].tx_most = most
        data = pattern(RING, most % 251)
        assert here.send(data) == RING and there.recv(RING) == data


def test_a_bell_that_does_not_fit_is_given_back() -> None:
    here, there = ends(room=8)
    assert here.send(pattern(9)) == 8
    here.switch()
    here.send(b"on the ring")
    assert there.words.dir[0].bell == 0, "taken, but nobody could send the byte"
    assert there.recv(100) == pattern(8)
    assert there.recv(100) == b"on the ring"


# ---- the switch


@pytest.mark.parametrize("before", [0, 1, 100])
def test_the_switch_up_and_back(before: int) -> None:
    here, there = ends()
    here.send(pattern(before))
    here.switch()
    here.send(b"ring")
    here.back()
    here.send(b"tcp again")
    got = b""
    while data := there.recv(5):
        got += data
    assert got == pattern(before) + b"ring" + b"tcp again"
    assert there.rx_mode is Mode.BACK


def test_a_bell_that_comes_later_than_the_way_back_does_not_reach_the_program() -> None:
    here, there = on_ring()
    assert there.fall_asleep(room=False)
    here.send(b"ring")
    here.back()
    here.send(b"tcp")
    wire = there.wire
    assert isinstance(wire, FakeWire)
    wire.in_flight = 4  # shared memory is faster than TCP: bell and bytes are still on their way
    there.wake_up()
    assert there.recv(10) == b"ring" and there.recv(10) == b""
    wire.in_flight = 0
    assert there.recv(10) == b"tcp" and there.rx_mode is Mode.BACK


def test_who_waits_for_room_is_told_that_no_bell_will_come() -> None:
    here, there = on_ring()
    here.send(pattern(RING))
    assert here.fall_asleep(room=True) and not here.must_look()
    there.back()
    assert here.wire.unread() == 1 and here.must_look()
    here.wake_up()
    assert here.fall_asleep(room=True) and here.must_look()


def test_no_switch_before_the_peer_has_attached() -> None:
    segment = new_segment(RING)
    wire, _other = fake_wires()
    here = End(segment, 0, wire)
    here.switch()
    assert here.tx_mode is Mode.TCP and here.words.dir[0].sw_ring == 0


def test_a_switch_behind_what_was_read_is_broken() -> None:
    here, there = ends()
    here.send(b"12345")
    assert there.recv(5) == b"12345"
    there.words.dir[0].sw_ring = 1 + 4
    with pytest.raises(BrokenRing):
        there.recv(1)


def test_positions_near_the_wrap() -> None:
    segment = new_segment(RING)
    left, right = fake_wires()
    left.written = right.received = WRAP - 3  # no TCP connection gets there; the arithmetic must not care
    here, there = End(segment, 0, left), End(segment, 1, right)
    here.send(b"a")
    here.switch()
    here.send(b"b")
    assert there.recv(9) == b"a" and there.recv(9) == b"b"


@pytest.mark.parametrize("unread, hint, told, expected", [
    (False, 0, 0, 0),
    (False, 0, errno.ECONNRESET, 0),  # its kernel reset because of an unread bell
    (False, abi.const.SD_HINT_ABORT, errno.ECONNRESET, errno.ECONNRESET),
    (True, 0, errno.ECONNRESET, errno.ECONNRESET),
    (True, 0, 0, errno.ECONNRESET),  # it died with our bytes unread, in the ring and not in its kernel
    (True, abi.const.SD_HINT_SHUT_WR, 0, 0),
    (False, 0, errno.ETIMEDOUT, errno.ETIMEDOUT),
])
def test_what_the_program_is_told_at_the_end(unread: bool, hint: int, told: int, expected: int) -> None:
    here, there = on_ring()
    if unread:
        here.send(b"x")
    lib.sd_py_hint_say(there.c, hint)
    assert lib.sd_py_end_error(here.c, told) == expected


# ---- everything at once, in any order

STEPS = st.lists(st.tuples(st.sampled_from(["send", "recv", "switch", "back", "sleep", "flight"]), st.integers(0, 1),
                           st.integers(1, RING + 50)), max_size=80)


class Ledger:
    """What each side has sent and received, and that nobody sleeps on news."""

    def __init__(self, start: int) -> None:
        self.ends = ends(start, room=200)
        self.sent = [bytearray(), bytearray()]
        self.received = [bytearray(), bytearray()]

    def step(self, what: str, side: int, size: int) -> None:
        end = self.ends[side]
        if end.asleep:
            if not end.wire.unread():
                assert isinstance(end.wire, FakeWire)
                coming = bool(end.wire.rx)
                assert coming or end.rx_mode is not Mode.RING or not lib.sd_py_rx_news(end.c), "sleeps on bytes"
                return
            end.wake_up()
        getattr(self, what)(side, end, size)

    def send(self, side: int, end: End, size: int) -> None:
        data = pattern(size, len(self.sent[side]))
        self.sent[side] += data[:end.send(data)]

    def recv(self, side: int, end: End, size: int) -> None:
        got = end.recv(size)
        at = len(self.received[side])
        self.received[side] += got
        assert got == self.sent[1 - side][at:at + len(got)]

    def switch(self, _side: int, end: End, _size: int) -> None:
        end.switch()

    def back(self, _side: int, end: End, _size: int) -> None:
        end.back()

    def flight(self, _side: int, end: End, size: int) -> None:
        assert isinstance(end.wire, FakeWire)
        end.wire.in_flight = size % 3

    def sleep(self, _side: int, end: End, _size: int) -> None:
        end.fall_asleep(room=False)

    def finish(self) -> None:
        for end in self.ends:
            self.flight(0, end, 0)
        for _ in range(2):  # a reader that slept wakes up, and may ring
            for side, end in enumerate(self.ends):
                if end.asleep and end.wire.unread():
                    end.wake_up()
                while not end.asleep and len(self.received[side]) < len(self.sent[1 - side]):
                    before = len(self.received[side])
                    self.recv(side, end, RING)
                    assert len(self.received[side]) > before, "bytes are lost"
        for side, end in enumerate(self.ends):
            assert self.received[side] == self.sent[1 - side], f"side {side} {'sleeps' if end.asleep else 'is awake'}"
            wire = end.wire
            assert isinstance(wire, FakeWire)
            assert len(wire.rx) <= 1, "more than one bell outstanding"


@settings(max_examples=400)
@given(steps=STEPS, start=st.sampled_from(STARTS))
def test_any_order_of_sending_switching_and_sleeping(steps: list[tuple[str, int, int]], start: int) -> None:
    ledger = Ledger(start)
    for what, side, size in steps:
        ledger.step(what, side, size)
    ledger.finish()
