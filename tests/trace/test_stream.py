# SPDX-License-Identifier: Apache-2.0
"""The trace's memory and stream without a program: what hostile programs write, and what readers make of it."""

from __future__ import annotations

import io
import os
import random
import re
from pathlib import Path

import pytest

from sdlib import abi
from sdtrace.trace import stream
from sdtrace.trace.lines import CALLS, line
from sdtrace.trace.memory import Memory
from sdtrace.trace.pcap import Capture, Spans
from sdtrace.trace.stream import RECORD, End, Kind, Lost, NotATrace, Program, Reader, Record
from tests.harness import ROOT
from tools.observe.sdtrace import open_trace

SLOTS = abi.const.SD_TRACE_RECORDS
OWNER = RECORD.pack(1, 0, 0, 10, 11, 0, 0, abi.const.SD_TRACE_OWNER, 0, 0, 0)


def record(tsc: int, nr: int = 44, ticks: int = 0) -> bytes:
    return RECORD.pack(tsc, ticks, 8, 5, 0, 8, 0, nr, 1, 0, 1)


def test_every_call_of_the_library_has_a_line() -> None:
    table = (ROOT / "sdlib/src/gate/calls.h").read_text()
    names = set(re.findall(r"X\((\w+), [FQ],", table))
    assert names and {name for name, _ in CALLS.values()} == names
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header)}
    assert {number: name for number, (name, _) in CALLS.items()} == {numbers[name]: name for name in names}


def test_a_ring_around_its_corner_and_what_no_honest_program_writes() -> None:
    memory = Memory(os.getpid(), host_pids=True)
    shared = abi.view("struct sd_trace", memory._memory)
    written: list[bytes] = [stream.MAGIC]
    channel = shared.channel[3]
    for at, text in enumerate([OWNER, record(5)]):
        abi.ffi.buffer(shared.record[3] + at)[:] = text
    channel.tail = 2
    memory.drain(written.append)
    assert channel.head == 2
    channel.tail = SLOTS + 1  # all but the first are new: zeroes, then around the corner the first record again
    memory.drain(written.append)
    assert channel.head == SLOTS + 1
    channel.tail = 1 << 60
    channel.dropped = 7
    shared.homeless = 2
    memory.drain(written.append)
    assert channel.head == 1 << 60 and not memory.has_news()
    events = list(Reader(io.BytesIO(b"".join(written))))
    calls = [event for event in events if isinstance(event, Record)]
    assert len(calls) == SLOTS - 1 and {(call.pid, call.tid) for call in calls} == {(10, 11)}
    assert sum(event.count for event in events if isinstance(event, Lost)) == 1 + 7 + 2
    del shared, channel
    assert memory.unused()
    memory.close()


def test_records_come_in_the_order_of_their_end() -> None:
    """Two threads, drained one after the other; the next round's clock says that no older ones can come."""
    other = OWNER.replace((11).to_bytes(8, "little"), (12).to_bytes(8, "little"))
    data = (stream.MAGIC + stream.clock(0, 1000) + stream.chunk(Kind.RECORDS, 0, OWNER + record(10) + record(30))
            + stream.chunk(Kind.RECORDS, 1, other + record(20) + record(2, ticks=50)) + stream.clock(100, 2000)
            + stream.chunk(Kind.END, 0))
    reader = Reader(io.BytesIO(data))
    calls = [event for event in reader if isinstance(event, Record)]
    assert [(call.tsc, call.tid) for call in calls] == [(10, 11), (20, 12), (30, 11), (2, 12)]
    assert reader.clock.ns_per_tick == 10 and reader.clock.ns(50) == 1500
    assert "sendto(5, NULL, 8, 0) = 8" in line(calls[0], reader.clock)


def test_garbage_is_read_without_harm() -> None:
    """Whatever a program writes into its records: lines, packets or a refusal, nothing else."""
    rng = random.Random(5)
    kinds = [abi.const.SD_TRACE_OWNER, abi.const.SD_TRACE_OPEN, abi.const.SD_TRACE_DATA, abi.const.SD_TRACE_END, 44]
    for _ in range(300):
        records = []
        for _ in range(rng.randrange(30)):
            words = [rng.choice((0, 1, 2, 4, rng.getrandbits(64))) for _ in range(6)]
            result = rng.choice((-1, 0, 56, 100, rng.getrandbits(63)))
            records.append(RECORD.pack(*words[:2], result, *words[2:6], rng.choice(kinds), rng.randrange(256),
                                       rng.randrange(256), 1) + rng.randbytes(64 * rng.randrange(3)))
        data = (stream.MAGIC + stream.clock(0, 0) + stream.clock(1000, 1000)
                + stream.chunk(Kind.RECORDS, rng.randrange(3), b"".join(records)) + stream.clock(2000, 2000))
        reader = Reader(io.BytesIO(data[:len(data) - rng.choice((0, 0, 5))]))
        capture = Capture(io.BytesIO(), reader.clock)
        for event in reader:
            capture.take(event)
            if isinstance(event, Record):
                line(event, reader.clock)
        capture.finish()
    with pytest.raises(NotATrace):
        list(Reader(io.BytesIO(stream.MAGIC + stream.chunk(9, 0))))  # type: ignore[arg-type]


def test_spans() -> None:
    rng = random.Random(3)
    spans, have = Spans(), set[int]()
    for _ in range(2000):
        start = rng.randrange(500)
        end = start + rng.randrange(1, 20)
        new = spans.new(start, end)
        told = {place for low, high in new for place in range(low, high)}
        assert told == set(range(start, end)) - have
        have |= told
    assert spans.end == max(have) + 1


LINES = """\
sdrun: trace begun 2026-11-30T23:59:59.900000+01:00
sdrun: [pid 7] runs /bin/x
[pid 7] 23:59:59.950001 sendto(5, 0x7ffc01d0, 8, 0x4000) = 8 <0.000000214> ring
something that the program has said itself
[pid 7/8] 00:00:00.000002 recvfrom(-1, NULL, 8, 0) = -1 EBADF (Bad file descriptor) <0.000001000> kernel
sdrun: 12 calls are missing here: the trace could not keep up
[pid 7] 00:00:01.000000 syscall_999(0xa, 0xb, 0, 0x1) = 0x10000000001 <1.000000000> library spun parked kernel
[pid 7] 00:00:01.000001 exit_group(3) = ? library
sdrun: the trace is complete
"""


def test_lines_are_read_back(tmp_path: Path) -> None:
    """Each says what it said, over midnight, too."""
    file = tmp_path / "trace"
    file.write_text(LINES)
    with file.open("rb") as opened:
        reader = open_trace(opened)
        events = list(reader)
    assert [type(event) for event in events] == [Program, Record, Record, Lost, Record, Record, End]
    records = [event for event in events if isinstance(event, Record)]
    said = [line(record, reader.clock) for record in records]
    assert [one.partition("] ")[2].partition(" ")[2] for one in said] == [
        text.partition("] ")[2].partition(" ")[2] for text in LINES.splitlines() if text.startswith("[")]
    assert [record.tid for record in records] == [7, 8, 7, 7] and records[1].tsc - records[0].tsc == 50_001_000
    assert records[1].result == -9 and records[0].args == (5, 0x7FFC01D0, 8, 0x4000)
    for wrong in ("sdrun: trace begun yesterday\n", LINES.replace("sendto", "sendfrom"), "[pid 7]"):
        file.write_text(wrong)
        with file.open("rb") as opened, pytest.raises(NotATrace):
            list(open_trace(opened))
