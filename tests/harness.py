# SPDX-License-Identifier: Apache-2.0
"""Run unmodified programs natively and under sdrun, and ask the report what carried their bytes.

A `Runner` is one of three ways to run a program (`Mode`): natively, under `sdrun --no-accel` (calls redirected, every
byte on TCP) and under `sdrun` with eager upgrade.  A test written against the `runner` fixture runs in all three, so
that its expectations are proved by the kernel first; `Runner.check` then asks from the reports that shared memory
carried the bytes in the last mode, and that it did not in the second.

Every process starts in a session of its own, and all that is left of its group is killed when the runner is closed, by
pidfd and only those: numbers come around while a session of tests runs.  Reports appear when the last process of a tree
is gone, so `Program.report` waits for the file.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from tools.groups import Leader
from tools.net import free_port, is_listening, own_address

ROOT = Path(__file__).resolve().parents[1]
SDRUN = ROOT / ".venv" / "bin" / "sdrun"
GUESTS = ROOT / "tests" / "guests"

# How many times longer everything may take than on a development machine: an emulated one is told (tests/vm/run.sh).
PATIENCE = float(os.environ.get("SDRUN_PATIENCE", "1"))
# Reports are written after the last exit; two noisy cores and a Python start-up can take seconds, never this long.
REPORT_WITHIN_S = 20.0 * PATIENCE


class Mode(Enum):
    """How a program is run."""

    NATIVE = "native"
    NO_ACCEL = "no-accel"
    SHM = "shm"


@dataclass(frozen=True)
class Report:
    """The JSON of `sdrun --report`."""

    raw: dict[str, Any]

    @property
    def shm(self) -> int:
        """Ends of connections that shared memory carried."""
        return int(self.raw["connections"]["shm"])

    @property
    def total(self) -> int:
        """Ends of connections."""
        return int(self.raw["connections"]["total"])

    @property
    def shm_bytes(self) -> int:
        """Bytes through rings, both directions."""
        return int(self.raw["bytes"]["shm"])

    def __str__(self) -> str:
        kept = {key: self.raw.get(key) for key in ("exit_status", "processes", "connections", "calls", "bytes")}
        return json.dumps(kept, indent=1)


class Program:
    """One started command, its output in files, and its report if it runs under sdrun."""

    def __init__(self, argv: Sequence[str | Path], folder: Path, env: Mapping[str, str], report: Path | None,
                 stdin: bytes | None, cwd: Path | None) -> None:
        self.argv = [str(word) for word in argv]
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._report = report
        (folder / "stdin").write_bytes(stdin or b"")
        with (folder / "stdin").open("rb") as source, self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = Leader(self.argv, stdin=source, stdout=out, stderr=err, env=dict(env), cwd=cwd)

    @property
    def pid(self) -> int:
        """The program's own pid: sdrun becomes the program."""
        return self.process.pid

    @property
    def stdout(self) -> bytes:
        """What it has printed so far."""
        return self._out.read_bytes()

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return self._err.read_text(errors="replace")

    def wait(self, timeout: float = 60.0 * PATIENCE) -> int:
        """Exit status; AssertionError with the output if it takes longer than `timeout` seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.describe()}\nstill runs after {timeout} s") from None

    def ok(self, timeout: float = 60.0 * PATIENCE) -> Program:
        """Wait and insist on exit status 0."""
        status = self.wait(timeout)
        assert status == 0, f"{self.describe()}\nexit status {status}"
        return self

    def send(self, number: signal.Signals) -> None:
        """Signal the program itself."""
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20.0 * PATIENCE) -> int:
        """Signal it and wait for its end."""
        if self.process.poll() is None:
            self.send(number)
        return self.wait(timeout)

    def until(self, condition: Callable[[], bool], what: str, timeout: float = 20.0 * PATIENCE) -> None:
        """Wait for `condition` while the program lives."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"{self.describe()}\nended before: {what}"
            assert time.monotonic() < deadline, f"{self.describe()}\nnot within {timeout} s: {what}"
            time.sleep(0.02)

    def listening(self, port: int, timeout: float = 20.0 * PATIENCE) -> Program:
        """Wait until something listens on `port`, by the kernel's table: a probing connection would be counted."""
        self.until(lambda: is_listening(port), f"listen on port {port}", timeout)
        return self

    def report(self, *, faults_inside: int = 0) -> Report:
        """The report, once it is there; only for programs under sdrun that have ended.

        Whatever they do, the library never follows a wild pointer of its own: `faults_inside` for who makes it do so.
        """
        assert self._report is not None, "a native program has no report"
        deadline = time.monotonic() + REPORT_WITHIN_S
        while not self._report.exists():
            assert time.monotonic() < deadline, f"{self.describe()}\nno report within {REPORT_WITHIN_S} s"
            time.sleep(0.02)
        report = Report(json.loads(self._report.read_text()))
        assert report.raw.get("counters", {}).get("faults_inside", 0) == faults_inside, f"{self.describe()}\n{report}"
        return report

    def describe(self) -> str:
        """The command and the end of its output, for failure messages."""
        out = self.stdout[-2000:].decode(errors="replace")
        return f"$ {' '.join(self.argv)}\n--- stdout\n{out}\n--- stderr\n{self.stderr[-3000:]}"

    def close(self) -> None:
        """Kill what is left of the process group, which is of our own making, and reap the leader."""
        self.process.kill_group()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


@dataclass
class Runner:
    """Starts programs in one mode and cleans up after them."""

    mode: Mode
    folder: Path
    env: dict[str, str]
    options: list[str] = field(default_factory=list)
    programs: list[Program] = field(default_factory=list)
    eager: bool = True
    """Move every connection at once; else as the policy says."""
    user: str | int | None = None
    """Who runs sdrun and the program if root runs the tests; the environment's folders must be that user's."""
    before: list[str | Path] = field(default_factory=list)
    """Words in front of everything, such as nsenter's; the pid must stay the program's."""
    at_end: list[Callable[[], None]] = field(default_factory=list)
    """What else to end when the runner is closed, a monitor for example."""
    sdrun: Path = SDRUN

    def _command(self, argv: Sequence[str | Path], report: Path) -> list[str | Path]:
        """`argv` as this mode starts it."""
        before = list(self.before)
        if self.user is not None and os.geteuid() == 0:
            shutil.chown(report.parent, self.user)
            before += ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--"]
        if self.mode is Mode.NATIVE:
            return [*before, *argv]
        how = ["--no-accel"] if self.mode is Mode.NO_ACCEL else ["--set", "upgrade=eager"] if self.eager else []
        return [*before, self.sdrun, "--report", report, *how, *self.options, "--", *argv]

    def start(self, *argv: str | Path, stdin: bytes | None = None, env: Mapping[str, str] | None = None,
              cwd: Path | None = None) -> Program:
        """Start a command; its folder keeps output and report."""
        folder = self.folder / f"{len(self.programs)}-{Path(argv[0]).name}"
        folder.mkdir()
        report = folder / "report.json"
        program = Program(self._command(argv, report), folder, {**self.env, **(env or {})},
                          None if self.mode is Mode.NATIVE else report, stdin, cwd)
        self.programs.append(program)
        return program

    def run(self, *argv: str | Path, timeout: float = 60.0 * PATIENCE, stdin: bytes | None = None,
            env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Program:
        """Run a command to its end and insist on exit status 0."""
        return self.start(*argv, stdin=stdin, env=env, cwd=cwd).ok(timeout)

    def check(self, *programs: Program, at_least: int = 1, of_bytes: int = 1) -> list[Report]:
        """Ask each program's report how its connections were carried: see `assert_shm` and `assert_tcp`."""
        if self.mode is Mode.NATIVE:
            return []
        reports = [program.report() for program in programs]
        for report in reports:
            if self.mode is Mode.SHM:
                assert_shm(report, at_least=at_least, of_bytes=of_bytes)
            else:
                assert_tcp(report, at_least=at_least)
        return reports

    def close(self) -> None:
        """End everything that was started, the latest first."""
        for program in reversed(self.programs):
            program.close()
        for end in self.at_end:
            end()


def assert_shm(report: Report, at_least: int = 1, of_bytes: int = 1) -> None:
    """Shared memory carried at least so many ends of connections and so many bytes."""
    assert report.shm >= at_least, f"{report.shm} ends of connections on shared memory, wanted {at_least}\n{report}"
    assert report.shm_bytes >= of_bytes, f"{report.shm_bytes} bytes on shared memory, wanted {of_bytes}\n{report}"


def assert_tcp(report: Report, at_least: int = 1) -> None:
    """Connections were seen by the library, so calls were redirected, but none was carried by shared memory."""
    assert report.shm == 0, f"shared memory in spite of --no-accel\n{report}"
    assert report.total >= at_least, f"{report.total} ends of connections, wanted {at_least}\n{report}"
    assert any(process["injected"] for process in report.raw["processes"]), f"nothing injected\n{report}"


def end_monitor(runtime_dir: Path, number: signal.Signals = signal.SIGTERM) -> None:
    """End the monitor that sdrun started under `runtime_dir`, found by asking its socket who listens there; it has left
    its folder when this returns."""
    for path in runtime_dir.glob("socksdirect/monitor*.sock"):  # others there are supervisors'
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, suppress(OSError):
            probe.connect(str(path))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pidfd = os.pidfd_open(struct.unpack("3i", credentials)[0])
            signal.pidfd_send_signal(pidfd, number)
            ended = select.poll()  # select() takes no descriptor beyond 1,023
            ended.register(pidfd, select.POLLIN)
            ended.poll(REPORT_WITHIN_S * 1000)
            os.close(pidfd)


@contextmanager
def runtime_of_our_own() -> Iterator[dict[str, str]]:
    """An environment with a runtime directory, and so a monitor, that nobody else has.

    It is short, because the monitor's socket lies in it and a socket's path holds 107 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="sdtest-") as name:
        runtime = Path(name)
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SD_", "XDG_"))}
        yield {**env, "XDG_RUNTIME_DIR": name, "XDG_CONFIG_HOME": f"{name}/config", "LC_ALL": "C.UTF-8"}
        end_monitor(runtime)


__all__ = ["GUESTS", "PATIENCE", "ROOT", "Mode", "Program", "Report", "Runner", "assert_shm", "assert_tcp",
           "end_monitor", "free_port", "is_listening", "own_address", "runtime_of_our_own"]
