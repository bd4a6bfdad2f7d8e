# SPDX-License-Identifier: Apache-2.0
"""Policies on live connections: quotas, rules by connection, reload, monitors that come and go; every byte compared."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.harness import GUESTS, ROOT, Mode, Program, Runner, free_port
from tests.monitor.support import THIS, MonitorProcess

SDCTL = ROOT / ".venv" / "bin" / "sdctl"
STAGES = GUESTS / "stages.py"


class Pair:
    """A server and a driver under sdrun, with a monitor of the test's own."""

    def __init__(
        self, runner: Runner, folder: Path, *options: str | Path, monitor_options: tuple[str, ...] = (),
        monitor: Sequence[str | Path] = THIS, driver_sdrun: Path | None = None,
    ) -> None:  # fmt: skip
        """`options` are the driver's; `monitor`: its command; `driver_sdrun`: if not the server's."""
        self.folder = folder / "stages"
        self.folder.mkdir()
        self.monitor = MonitorProcess(folder, *monitor_options, before=runner.before, command=monitor)
        runner.at_end.append(self.monitor.close)
        self.port = free_port()
        runner.env = {**runner.env, "SOCKSDIRECT_MONITOR": self.monitor.path}
        self.env = runner.env
        self.server = runner.start(sys.executable, STAGES, "serve", str(self.port)).listening(self.port)
        runner.options = [str(option) for option in options]
        runner.sdrun = driver_sdrun or runner.sdrun
        self.driver = runner.start(sys.executable, STAGES, "drive", str(self.port), self.folder)

    def open(self, *numbers: int, wait: bool = True) -> None:
        """Open connections; each has carried a thousand messages when this returns."""
        for number in numbers:
            (self.folder / f"open-{number}").touch()
        for number in numbers if wait else ():
            self.driver.until((self.folder / f"done-{number}").exists, f"connection {number} carries")

    def beats(self, count: int) -> None:
        """Every open connection has been used so many times more."""
        beat = self.folder / "beat"
        wanted = (beat.stat().st_size if beat.exists() else 0) + count
        self.driver.until(lambda: beat.exists() and beat.stat().st_size >= wanted, "beats")

    def ctl(self, *words: str) -> str:
        command: list[str | Path] = [SDCTL, "--socket", self.monitor.path, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=self.env, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rows(self) -> list[dict[str, Any]]:
        """The driver's connections as sdctl shows them."""
        rows = json.loads(self.ctl("connections", "--json"))
        return [row for row in rows if row["dir"] == "out"]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        self.driver.until(condition, what)

    def finish(self) -> tuple[Program, Program]:
        (self.folder / "stop").touch()
        self.driver.ok()
        assert self.driver.stdout.startswith(b"whole"), self.driver.describe()
        self.server.stop(signal.SIGKILL)
        self.monitor.close()
        return self.server, self.driver


def test_limits_of_a_program(shm: Runner, tmp_path: Path) -> None:
    """Two rings of 64 KiB and their header: room for three connections by memory, for two by number."""
    for option, most in (("total=420KiB", 3), ("connections=2", 2)):
        folder = tmp_path / option
        folder.mkdir()
        pair = Pair(shm, folder, "--set", option, "--set", "ring=64KiB")
        for number in range(5):
            pair.open(number)
        _, driver = pair.finish()
        report = driver.report()
        assert report.shm == most, report
        assert report.raw["connections"]["tcp_reasons"] == {"quota-exhausted": 5 - most}
        shm.options = []


def test_limits_of_the_monitor(shm: Runner, tmp_path: Path) -> None:
    pair = Pair(shm, tmp_path, "--set", "ring=64KiB", monitor_options=("--max-memory-per-user", str(300 << 10)))
    for number in range(4):
        pair.open(number)
    assert sorted(row["reason"] for row in pair.rows()) == ["", ""]
    status = pair.ctl("status")
    assert "refused MEMORY: 4" in status and "segments: 2" in status
    _, driver = pair.finish()
    assert driver.report().raw["connections"]["tcp_reasons"] == {"quota-exhausted": 2}


def test_kernel_rule_pins_a_connection_not_the_program(shm: Runner, tmp_path: Path) -> None:
    port = free_port()
    pair = Pair(shm, tmp_path, "-r", f"out tcp *:{port} kernel")
    pair.open(0, 1)
    _, driver = pair.finish()
    assert driver.report().shm == 2
    (tmp_path / "again").mkdir()
    shm.options = []
    pair = Pair(shm, tmp_path / "again", "-r", "out tcp 127.0.0.1:1-65535 kernel")
    pair.open(0)
    why = pair.ctl("policy", "explain", f"127.0.0.1:{pair.port}", "-r", "out tcp 127.0.0.1:1-65535 kernel")
    assert f"({pair.driver.pid}) is on tcp: a rule of the policy keeps it on TCP" in why, why
    assert "policy, out: kernel, by -r: out tcp 127.0.0.1:1-65535 kernel" in why, why
    assert f"({pair.server.pid}) is on tcp: the other end is not under sdrun" in why, why
    _, driver = pair.finish()
    report = driver.report()
    assert report.shm == 0 and report.raw["connections"]["tcp_reasons"] == {"policy": 1}
    assert driver.report().raw["processes"][0]["injected"]


def test_reload_moves_live_connections_back(shm: Runner, tmp_path: Path) -> None:
    """By SIGHUP: bytes go on without a gap, new connections stay on TCP. And back again by a second reload."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\n")
    pair = Pair(shm, tmp_path, "--policy", policy)
    pair.open(0, 1)
    assert {row["state"] for row in pair.rows()} == {"shm"}
    assert f"127.0.0.1:{pair.port}" in pair.ctl("connections")
    rule = f"{{dir: out, tcp: '127.0.0.1:{pair.port}', action: kernel}}"
    policy.write_text(f"version: 1\napps:\n  - match: {{program: 'python*'}}\n    rules: [{rule}]\n")
    before = [row["tcp"] for row in pair.rows()]
    pair.monitor.process.send_signal(signal.SIGHUP)
    pair.until(lambda: all(row["tcp"] > was for row, was in zip(pair.rows(), before, strict=True)), "bytes go by TCP")
    pair.open(2)
    assert len(pair.rows()) == 2, "the new one is not offered"
    policy.write_text("version: 1\n")
    assert "2 supervisors read" in pair.ctl("reload")
    pair.open(3)
    assert [row["state"] for row in pair.rows()].count("shm") == 3
    why = pair.ctl(
        "policy", "explain", sys.executable, f"127.0.0.1:{pair.port}", "--dir", "out", "--policy", str(policy)
    )
    assert f"out tcp 127.0.0.1:{pair.port}: accelerate" in why and "is on shm" in why
    server, driver = pair.finish()
    report = driver.report()
    assert report.raw["connections"]["moved_back"].get("policy") == 2
    assert report.shm == 3 and report.raw["connections"]["tcp_reasons"] == {"policy": 1}
    assert server.report().raw["connections"]["moved_back"].get("policy") == 2


def test_a_broken_policy_is_not_loaded(shm: Runner, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\n")
    pair = Pair(shm, tmp_path, "--policy", policy)
    pair.open(0)
    policy.write_text("version: 1\ndefault: off\n")
    pair.ctl("reload")
    pair.open(1)
    _, driver = pair.finish()
    assert driver.report().shm == 2


def test_restart_of_the_monitor_loses_and_refuses_nothing(shm: Runner, tmp_path: Path) -> None:
    """Connections that are offered while there is none are paired by the next, which learns of the earlier ones."""
    pair = Pair(shm, tmp_path)
    pair.open(0, 1)
    os.unlink(f"{pair.monitor.path}.lock")  # its own lock has no name any more, and this one is ours:
    lock = os.open(f"{pair.monitor.path}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # nobody can start another monitor
    pair.monitor.process.send_signal(signal.SIGTERM)
    assert pair.monitor.process.wait(10) == 0
    pair.open(2, 3)
    pair.beats(20)
    os.close(lock)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if [row["state"] for row in pair.rows()] == ["shm"] * 4:
                break
        except AssertionError:
            pass  # no monitor yet
        time.sleep(0.05)
    assert "segments: 4" in pair.ctl("status")
    server, driver = pair.finish()
    for program in (server, driver):
        report = program.report()
        assert (report.shm, report.total) == (4, 4), report
    pair.ctl("drain")


def test_old_library_new_monitor(native: Runner, tmp_path: Path, sd_env: dict[str, str]) -> None:
    """A monitor of another version: everything stays on TCP, and works."""
    code = (
        "import socket, struct, sys\n"
        "l = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); l.bind(sys.argv[1]); l.listen(99)\n"
        "print('up', flush=True)\n"
        "while True:\n"
        "    s, _ = l.accept(); s.recv(200)\n"
        "    s.send(struct.pack('<HHIII104s', 3, 120, 0, 2, 99, b'this monitor speaks version 99')); s.close()\n"
    )
    other = native.start(sys.executable, "-c", code, tmp_path / "m.sock")
    other.until(lambda: other.stdout == b"up\n", "listens")
    runner = Runner(Mode.SHM, tmp_path, {**sd_env, "SOCKSDIRECT_MONITOR": str(tmp_path / "m.sock")})
    port = free_port()
    server = runner.start(sys.executable, STAGES, "serve", str(port)).listening(port)
    (tmp_path / "stages").mkdir()
    driver = runner.start(sys.executable, STAGES, "drive", str(port), tmp_path / "stages")
    (tmp_path / "stages" / "open-0").touch()
    driver.until((tmp_path / "stages" / "done-0").exists, "carries")
    (tmp_path / "stages" / "stop").touch()
    driver.ok()
    server.stop(signal.SIGKILL)
    assert driver.report().raw["connections"]["tcp_reasons"] == {"monitor-unreachable": 1}
    runner.close()


def test_sdctl_without_a_monitor(tmp_path: Path) -> None:
    command: list[str | Path] = [SDCTL, "--socket", tmp_path / "no.sock", "status"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no monitor at" in done.stderr


def test_restricted_programs_are_accelerated_as_well(shm: Runner, tmp_path: Path) -> None:
    """Their connections are made by the supervisor, and carried by shared memory like any other."""
    shm.options = ["-r", "in tcp 192.0.2.0/24:* deny", "-r", "out udp *:9 deny"]
    pair = Pair(shm, tmp_path, "-r", "out tcp *:25 deny", "-r", "in tcp *:* deny")
    pair.open(*range(8))
    server, driver = pair.finish()
    for program in (server, driver):
        report = program.report()
        assert (report.shm, report.total) == (8, 8), report
    assert driver.report().raw["denied"] == []
