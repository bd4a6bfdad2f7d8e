# SPDX-License-Identifier: Apache-2.0
"""Thousands of mostly idle connections cost what the active ones cost: counted, not timed.

`make test` has a thousand, `make many` (SDRUN_CONNECTIONS) ten thousand, which take 10,100 descriptors of a process.
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from tests.harness import ROOT, Mode, Runner
from tools import instructions

CONNECTIONS = min(int(os.environ.get("SDRUN_CONNECTIONS", "1000")), resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100)
CARRIED = int(os.environ.get("SDRUN_CONNECTIONS", "250"))
FEW = 4
ROUNDS = 64
"""Every sixteenth wait asks the kernel, every sixty-fourth looks at idle registrations."""
WARM_ROUNDS = 2 * 64 * 2
"""At full speed: idle registrations are noticed every 64 waits."""
MESSAGE = ("also_epoll_send8", "epoll_ready", "also_epoll_recv8")
KIB_EACH = 40
"""Of both ends together, with rings and bookkeeping."""


def messages(idle: int) -> list[instructions.Count]:
    """What it takes to send a message, to hear of it from epoll and to receive it, beside so many that are silent."""
    taken = []
    with instructions.guest(f"idle {idle}", patience_s=30 + idle / 10) as (stepper, names):
        for _ in range(WARM_ROUNDS):
            instructions.one_round(stepper, names, None)
        for _ in range(ROUNDS):
            counts: dict[str, list[instructions.Count]] = {}
            instructions.one_round(stepper, names, counts)
            parts = [counts[name][0] for name in MESSAGE]
            calls = sum(part.system_calls for part in parts)
            taken.append(instructions.Count(sum(part.total for part in parts), calls))
    return taken


@pytest.mark.timeout(0)
def test_a_message_costs_the_same_beside_idle_connections() -> None:
    few, many = (messages(idle) for idle in (FEW, CONNECTIONS))
    for name, idle, taken in (("few", FEW, few), ("many", CONNECTIONS, many)):
        total, calls = sum(count.total for count in taken), sum(count.system_calls for count in taken)
        print(f"{name}: {ROUNDS} messages beside {idle} take {total} instructions, {calls} system calls")
    assert sum(count.system_calls for count in many) <= sum(count.system_calls for count in few)
    assert sum(count.total for count in many) <= 1.02 * sum(count.total for count in few)
    assert max(count.total for count in many) <= 1.1 * max(count.total for count in few), "one of them pays for all"


@pytest.mark.timeout(0)
def test_all_of_them_are_carried(tmp_path: Path, sd_env: dict[str, str]) -> None:
    runner = Runner(Mode.SHM, tmp_path, sd_env, ["--set", "ring=4KiB"])
    program = runner.start(ROOT / "build/bench/many", str(CARRIED), "16")
    program.ok(timeout=60 + CARRIED / 10)
    report = program.report().raw
    runner.close()
    assert report["connections"]["shm"] == 2 * CARRIED, report["connections"]
    assert json.loads(program.stdout)["pss_kib"] <= 8192 + KIB_EACH * CARRIED
