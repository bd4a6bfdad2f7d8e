# SPDX-License-Identifier: Apache-2.0
"""The C loop (sdlib/src/verbs, monitor/hosts/loop.py) without a device: what it carries, looks at and refuses itself.

test_queues.py has what holds of both loops, test_loop_bells.py doorbells and credits.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sdlib import abi
from tests.harness import ROOT
from tests.monitor.pair import RING
from tests.monitor.queues import ready

pytestmark = pytest.mark.usefixtures("fake_libibverbs")


def test_bytes_are_carried_by_c_and_not_posted_without_room() -> None:
    made = ready()
    try:
        a, b = made.sides
        for _ in range(100):
            a.write(30)
            a.device.poll()
        status = a.port.status()
        assert status["under_way"] == status["depth"] - 4, "four are left for what has to be said"
        assert not made.pipes[1].operations
        made.settle()
        assert a.mirror.bytes_out == b.mirror.bytes_in == 3000
        assert a.port.status()["writes"] < 100, "what is adjacent goes together"
    finally:
        made.close()


def test_a_turn_looks_at_active_connections_only() -> None:
    """A thousand that nobody watches cost none; one of them is watched from its first byte on."""
    made = ready()
    try:
        a, b = made.sides
        idle: list[Any] = []
        for slot in range(100, 1100):
            state: Any = abi.ffi.new("struct sd_mirrored *")
            state.copy, state.ring_bytes, state.slot, state.live = b.copy.pointer, RING, slot, 1
            assert abi.lib.sd_queue_carry(b.port._queue, state) == 0
            idle.append(state)
        b.mirror.watch(False)

        def looks() -> int:
            return int(b.device.status()["looks"])

        b.woken.clear()
        before = looks()
        for _ in range(50):
            b.device.poll()
        assert looks() == before
        b.write(5)
        b.device.poll()
        assert not made.pipes[1].operations, "its program would have said so"
        a.write(10)
        a.device.poll()
        made.pipes[0].step()
        b.device.poll()
        assert looks() == before + 1 and b.woken == [b.mirror.slot]
        made.settle()
        for state in idle:
            abi.lib.sd_queue_drop(b.port._queue, state.slot)
    finally:
        made.close()


def test_a_program_that_writes_nonsense_harms_itself_only() -> None:
    made = ready()
    try:
        a, b = made.sides
        a.copy._seg.dir[0].tail = RING + 1
        a.device.poll()
        assert a.mirror.broken and not made.pipes[0].operations
        b.write(50)
        for _ in range(5):
            b.pump()
            made.pipes[1].deliver()
        assert a.copy.landed() == 50, "the link lives"
    finally:
        made.close()


def test_a_program_that_lingers_does_not_hold_the_loop_up(tmp_path: Path) -> None:
    """Its last descriptor may be the one that a doorbell was sent on."""
    program = tmp_path / "linger"
    copy = ROOT / "sdlib" / "src" / "py" / "copy.c"
    options = ["-DSD_HOSTED=1", f"-I{ROOT / 'sdlib/include'}", f"-I{ROOT / 'sdlib/src'}"]
    subprocess.run(["gcc", "-std=gnu11", "-O1", *options, "-o", program, ROOT / "tests/hosted/linger.c", copy,
                    ROOT / "sdlib/src/ring/bell.c", ROOT / "sdlib/src/ring/switch.c"], check=True)
    waited = int(subprocess.run([program], check=True, stdout=subprocess.PIPE, timeout=60).stdout)
    assert 10 <= waited < 30_000, waited  # for so long the kernel would have it linger
