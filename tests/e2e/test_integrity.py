# SPDX-License-Identifier: Apache-2.0
"""A gigabyte each way at once, in random chunks with random pauses, switched to shared memory in mid-stream."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from policies.model import WITHOUT
from tests.guestbuild import Guests
from tests.harness import GUESTS, Program, Runner, assert_shm, free_port

GIB = 1 << 30


def sums(program: Program) -> dict[str, tuple[int, str]]:
    """What one side says: {"sent": (bytes, sha256), "received": ...}."""
    words = (line.split() for line in program.stdout.decode().splitlines())
    return {what: (int(count), digest) for what, count, digest in words}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("upgrade", ["eager", "after_bytes:100000000"])
def test_a_gigabyte_both_ways(upgrade: str, shm: Runner, guests: Guests) -> None:
    shm.options = ["--set", f"upgrade={upgrade}"]
    both_ways(shm, guests("integrity"), GIB)


@pytest.mark.parametrize("technique", [*WITHOUT, ",".join(WITHOUT)])
def test_without_a_technique(technique: str, shm: Runner, guests: Guests) -> None:
    """Slower, and just as right."""
    shm.options = ["--set", "upgrade=eager", "--set", f"without={technique}"]
    both_ways(shm, guests("integrity"), 16 << 20)


def both_ways(shm: Runner, guest: Path, count: int) -> None:
    """`count` bytes each way, on shared memory."""
    port = str(free_port())
    server = shm.start(guest, "server", port, str(count), "5").listening(int(port))
    client = shm.start(guest, "client", port, str(count), "6")
    client.ok(300)
    server.ok(60)
    there, here = sums(client), sums(server)
    assert there["sent"] == here["received"]
    assert here["sent"] == there["received"]
    assert there["sent"][0] == here["sent"][0] == count
    for program in (client, server):
        assert_shm(program.report(), at_least=1, of_bytes=count)


@pytest.mark.parametrize("seed", range(4))
def test_calls_in_random_turn(seed: int, runner: Runner) -> None:
    """What a send may leave unread changes meanwhile (SO_SNDBUF), and nobody waits for ever."""
    program = runner.start(sys.executable, GUESTS / "mixed_calls.py", str(seed), str(3_000_000 + seed))
    assert program.ok(120).stdout == b"whole\n"
    runner.check(program, at_least=2, of_bytes=3_000_000)


@pytest.mark.parametrize("kill_after", [1_000, 300_000, 60_000_000])
def test_killed_sender_leaves_all_that_it_sent(kill_after: int, runner: Runner, guests: Guests) -> None:
    """After SIGKILL of one side the other reads everything sent before it, then EOF."""
    port, guest = str(free_port()), guests("integrity")
    server = runner.start(guest, "server", port, str(GIB), "7", env={"ONE_WAY": "1"}).listening(int(port))
    client = runner.start(guest, "client", port, str(GIB), "8", str(kill_after))
    assert client.wait(120) == -signal.SIGKILL
    server.ok(60)
    assert sums(client)["sent"] == sums(server)["received"]
    assert sums(server)["received"][0] >= kill_after
    # So few bytes may all have gone by TCP before the switch.
    if kill_after > 1_000_000:
        runner.check(client, server, of_bytes=kill_after // 2)
