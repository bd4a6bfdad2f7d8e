# SPDX-License-Identifier: Apache-2.0
"""Thousands of mostly idle connections cost what the active ones cost.

`make test` has a few hundred; `make many` (SDRUN_CONNECTIONS) as many as the descriptors of one process allow,
10,000 where they may be 20,000.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.harness import ROOT, Mode, Runner
from tools import instructions

CONNECTIONS = int(os.environ.get("SDRUN_CONNECTIONS", "250"))
ROUNDS = 3
WARM_ROUNDS = 2 * 64 * 2
"""At full speed: idle registrations are noticed every 64 waits."""
KIB_EACH = 40
"""Of both ends together, with rings and bookkeeping."""


def counted(idle: int) -> list[instructions.Count]:
    """A wait in epoll for one that is active, beside so many that are not."""
    counts: dict[str, list[instructions.Count]] = {}
    with instructions.guest(f"idle {idle}", patience_s=30 + idle / 10) as (stepper, names):
        for _ in range(WARM_ROUNDS):
            instructions.one_round(stepper, names, None)
        for _ in range(ROUNDS):
            instructions.one_round(stepper, names, counts)
    return counts["epoll_ready"]


@pytest.mark.timeout(0)
def test_a_wait_costs_the_same_beside_idle_ones() -> None:
    # The shortest: not one that asks the kernel, as every sixteenth does.
    best = [min(counted(idle), key=lambda count: count.total) for idle in (4, CONNECTIONS)]
    assert not any(count.system_calls for count in best)
    few, many = (count.total for count in best)
    print(f"instructions: beside 4 {few}, beside {CONNECTIONS} {many}")
    assert many <= few * 1.02, (few, many)


@pytest.mark.timeout(0)
def test_all_of_them_are_carried(tmp_path: Path, sd_env: dict[str, str]) -> None:
    runner = Runner(Mode.SHM, tmp_path, sd_env, ["--set", "ring=4KiB"])
    program = runner.start(ROOT / "build/bench/many", str(CONNECTIONS), "16")
    program.ok(timeout=60 + CONNECTIONS / 10)
    report = program.report().raw
    runner.close()
    assert report["connections"]["shm"] == 2 * CONNECTIONS, report["connections"]
    assert json.loads(program.stdout)["pss_kib"] <= 8192 + KIB_EACH * CONNECTIONS
