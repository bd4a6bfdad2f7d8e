# SPDX-License-Identifier: Apache-2.0
"""How much memory rings use: idle ones give it back, and a reader that stops stops its writer, as with TCP."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_live_policy import SDCTL
from tests.harness import GUESTS, Mode, Program, Runner, free_port
from tests.monitor.support import MonitorProcess

BURSTS = GUESTS / "bursts.py"
HEADER = 4096


class Bursts:
    """The server and the driver of bursts.py, with a monitor of the test's own."""

    def __init__(
        self, runner: Runner, folder: Path, *words: str, before_driver: Sequence[str | Path] | None = None
    ) -> None:
        """`words` for the driver; `before_driver`: what to start it with, if not by what everything is."""
        self.folder = folder / "bursts"
        self.folder.mkdir()
        self.monitor = MonitorProcess(folder, before=runner.before)
        runner.at_end.append(self.monitor.close)
        self.port = free_port()
        runner.env = {**runner.env, "SOCKSDIRECT_MONITOR": self.monitor.path}
        self.env = runner.env
        self.server = runner.start(sys.executable, BURSTS, "serve", str(self.port)).listening(self.port)
        runner.before = list(runner.before if before_driver is None else before_driver)
        self.driver = runner.start(sys.executable, BURSTS, "drive", str(self.port), self.folder, *words)

    def rows(self) -> list[dict[str, Any]]:
        command: list[str | Path] = [SDCTL, "--socket", self.monitor.path, "connections", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=self.env, check=False)
        rows: list[dict[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else []
        return rows

    def counted(self) -> int:
        """What the monitor counts for its limits."""
        command: list[str | Path] = [SDCTL, "--socket", self.monitor.path, "status", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=self.env, check=True)
        return int(json.loads(done.stdout)["memory"])

    def burst(self, number: int) -> None:
        (self.folder / f"burst-{number}").touch()
        self.driver.until((self.folder / f"did-{number}").exists, f"burst {number} comes back", timeout=60)

    def until_shrunk(self, ends: int) -> None:
        """Of all `ends` of connections nothing is left but the header."""
        self.driver.until(lambda: [row["resident"] for row in self.rows()] == [HEADER] * ends, "idle rings give back",
                          timeout=60)  # fmt: skip

    def finish(self) -> tuple[Program, Program]:
        (self.folder / "stop").touch()
        self.driver.ok()
        assert self.driver.stdout == b"whole\n", self.driver.describe()
        self.server.stop(signal.SIGKILL)
        self.monitor.close()
        return self.server, self.driver


def test_idle_rings_shrink(shm: Runner, tmp_path: Path) -> None:
    """After a second without a byte nothing but the header is left; bursts afterwards come back whole, by the ring."""
    shm.options = ["--set", "idle_s=1"]
    bursts = Bursts(shm, tmp_path, "12")
    for number in range(2):
        bursts.burst(number)
        bursts.until_shrunk(2 * 12)
        assert bursts.counted() == 12 * (HEADER + 2 * (64 << 10)), "limits count what is likely to be used"
    for program in bursts.finish():
        report = program.report()
        assert (report.shm, report.total) == (12, 12), report
        assert report.shm_bytes > 12 * 300_000, report


def test_shrinking_takes_no_byte(shm: Runner, tmp_path: Path) -> None:
    """Pauses about as long as rings may be idle: some bursts begin in the very moment, in twenty threads."""
    shm.options = ["--set", "idle_s=1"]
    bursts = Bursts(shm, tmp_path, "20", "1.0")
    bursts.finish()


PRESSURE = GUESTS / "pressure.py"
RING = 64 * 1024


def test_a_reader_that_stops_stops_its_writer(runner: Runner, tmp_path: Path) -> None:
    """The writer gets as far as one ring is long, and that is all the memory there is; later every byte comes."""
    runner.options = ["--set", "ring=64KiB"]
    program = runner.start(sys.executable, PRESSURE, tmp_path)
    program.until((tmp_path / "full").exists, "the writer is stopped", timeout=60)
    full = int((tmp_path / "full").read_text())
    assert full > 0
    if runner.mode is Mode.SHM:
        assert full <= RING
        assert mapped_segments(program.pid) == [HEADER + 2 * RING]
    (tmp_path / "read").touch()
    assert program.ok().stdout == b"whole\n"
    runner.check(program, at_least=2, of_bytes=full)


LARGE = 4 << 20


@pytest.mark.parametrize("how", ["free", "locked", "small"])
def test_large_rings_take_little(runner: Runner, how: str, tmp_path: Path) -> None:
    """Rings are as large as TCP's buffers; what is not used is no memory, also where a program locks all of its future
    memory, and is in no core dump. A program whose address space is limited has small ones."""
    if how == "locked" and not may_lock(256 << 20):
        pytest.skip("so much memory may not be locked here")
    program = runner.start(sys.executable, GUESTS / "confined.py", how, tmp_path)
    program.until((tmp_path / "ready").exists, "it has exchanged bytes", timeout=60)
    if runner.mode is Mode.SHM:
        assert set(mapped_segments(program.pid)) == {HEADER + 2 * ((256 << 10) if how == "small" else LARGE)}
        for resident, flags in rings(program.pid):
            assert resident <= 64 << 10
            assert "dd" in flags, "in no core dump"
    (tmp_path / "stop").touch()
    assert program.ok().stdout == b"whole\n"
    runner.check(program, at_least=2, of_bytes=200_000)


def may_lock(size: int) -> bool:
    """Whether a program of ours may lock so many bytes."""
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return os.geteuid() == 0 or most == resource.RLIM_INFINITY or most >= size


def rings(pid: int) -> list[tuple[int, list[str]]]:
    """Of each segment that a process has mapped: bytes in memory, and the mapping's flags."""
    found: list[tuple[int, list[str]]] = []
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            ours = "memfd:socksdirect-segment" in line
        elif ours and name == "Rss:":
            found.append((int(rest[0]) * 1024, []))
        elif ours and name == "VmFlags:":
            found[-1][1].extend(rest)
    return found


def mapped_segments(pid: int) -> list[int]:
    """The sizes of the segments that a process has mapped, by the kernel's account."""
    lines = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:socksdirect-segment" in line]
    return [int(end, 16) - int(start, 16) for start, end in (line.split()[0].split("-") for line in lines)]
