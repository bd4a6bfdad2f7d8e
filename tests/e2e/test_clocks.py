# SPDX-License-Identifier: Apache-2.0
"""Clocks that jump, and clocks that are somewhere else: programs with the library, their supervisors, the monitor."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_memory import Bursts
from tests.harness import GUESTS, Runner
from tests.sdtrace.support import supervisor_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")

TEN_YEARS_S = 3650 * 86400
OWN_ETC = """
set -e
mount -t tmpfs own "$1" && mkdir "$1/upper" "$1/work"
mount -t overlay etc -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc
echo "$2" >/etc/ld.so.preload
echo ready
exec sleep 1000
"""


@pytest.fixture
def wrong_clock(shm: Runner, tmp_path: Path) -> Iterator[Path]:
    """By how many seconds the time of day of everything that is started is wrong.

    The supervisor cleans its environment of LD_PRELOAD, but not a mount namespace of its /etc/ld.so.preload.
    """
    clock, own, library = tmp_path / "clock", tmp_path / "own", tmp_path / "wrongclock.so"
    build: list[str | Path] = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library]
    subprocess.run([*build, GUESTS / "wrongclock.c"], check=True)
    clock.write_text("0")
    own.mkdir()
    enter: list[str | Path] = ["unshare", "--mount", "--propagation", "private"]
    with subprocess.Popen([*enter, "sh", "-c", OWN_ETC, "sh", own, library], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
            shm.before = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "env", f"WRONG_CLOCK={clock}"]
            yield clock
        finally:
            shm.close()
            holder.kill()


def test_clocks_that_jump(shm: Runner, tmp_path: Path, wrong_clock: Path) -> None:
    """Ten years ahead and back, for programs, their supervisors and the monitor: all goes on, also what waits."""
    now = [*shm.before, sys.executable, "-c", "import time; print(time.time())"]
    said = subprocess.run(now, check=True, capture_output=True)
    shm.options = ["--set", "idle_s=1"]
    bursts = Bursts(shm, tmp_path, "3")
    for number, jump in enumerate((TEN_YEARS_S, -TEN_YEARS_S, 0)):
        wrong_clock.write_text(f"{jump}")
        then = subprocess.run(now, check=True, capture_output=True)
        assert abs(float(then.stdout) - float(said.stdout) - jump) < 1e6, "the clock does not jump"
        bursts.burst(number)
    bursts.until_shrunk(2 * 3)
    for pid in (bursts.driver.pid, supervisor_of(bursts.driver), bursts.monitor.process.pid):
        assert "wrongclock" in Path(f"/proc/{pid}/maps").read_text(), pid
    for program in bursts.finish():
        report = program.report()
        assert report.shm == report.total > 0, report
    assert re.search(r"^20[0-9]{2}-", bursts.monitor.log.read_text(), re.MULTILINE)


def test_each_end_has_a_clock_of_its_own(shm: Runner, tmp_path: Path) -> None:
    """Programs and supervisors in two time namespaces, hours and months from the monitor's: nobody compares clocks."""
    shm.options = ["--set", "idle_s=1"]
    shm.before = ["unshare", "--time", "--monotonic", "20000"]
    bursts = Bursts(shm, tmp_path, "3", before_driver=["unshare", "--time", "--monotonic", "5000000"])
    uptimes = []
    for program in (bursts.server, bursts.driver):
        for pid in (program.pid, supervisor_of(program)):
            offsets = Path(f"/proc/{pid}/timens_offsets").read_text().split()
            uptimes.append(int(offsets[1]))
    assert uptimes == [20000] * 2 + [5000000] * 2
    for number in range(2):
        bursts.burst(number)
        bursts.until_shrunk(2 * 3)
    for program in bursts.finish():
        assert program.report().shm == program.report().total == 3, program.report()
