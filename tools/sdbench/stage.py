# SPDX-License-Identifier: Apache-2.0
"""Runs programs natively and under sdrun, one after the other, and cleans up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tools.groups import Leader
from tools.sdbench.machine import PROGRAMS, ROOT, SDRUN

LONGEST_S = 120.0
REPORT_WITHIN_S = 30.0


class BenchError(Exception):
    """A program did not do what it was started for; the text is for people."""


class NotHere(Exception):
    """This variant is not possible on this machine, and why."""


class Stage:
    """A temporary folder, a monitor of its own, and the processes that were started."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sdbench-"))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SD_", "XDG_"))}
        path = f"{kept.get('PATH', '')}:/usr/sbin:/sbin"
        self.env = {**kept, "PATH": path, "LC_ALL": "C.UTF-8", "XDG_RUNTIME_DIR": str(self.folder),
                    "XDG_CONFIG_HOME": str(self.folder / "config")}
        self._count = 0
        self._primed = False
        self._at_end: list[Callable[[], None]] = []
        self.report_folder: Path | None = None
        """Where sdrun writes its reports, if another user than ours runs it."""
        self._running: list[Leader] = []
        self._reports: list[Path] = []

    def at_end(self, action: Callable[[], None]) -> None:
        """Have something done by `close`."""
        self._at_end.append(action)

    def prime(self) -> None:
        """Have a monitor running and everything read from disk before the first measurement."""
        if not self._primed:
            self._primed = True
            self.run([str(SDRUN), "--", program("pair"), "tcp", "rtt", "8", "-t", "1000"])

    def sdrun(self, *options: str) -> list[str]:
        """The words before a command that put it under sdrun; its report is for `reports`."""
        self.prime()
        self._count += 1
        report = (self.report_folder or self.folder) / f"report-{self._count}.json"
        self._reports.append(report)
        return [str(SDRUN), "--report", str(report), *options, "--"]

    def reports(self) -> list[dict[str, Any]]:
        """The reports of everything under sdrun since the last time; the programs must have ended."""
        found = []
        for path in self._reports:
            deadline = time.monotonic() + REPORT_WITHIN_S
            while not path.exists():
                if time.monotonic() > deadline:
                    raise BenchError("sdrun wrote no report")
                time.sleep(0.01)
            found.append(json.loads(path.read_text()))
        self._reports.clear()
        return found

    def forget_reports(self) -> None:
        """After a failure: nobody may be left to write them."""
        self._reports.clear()

    def _errors(self) -> str:
        lines = (self.folder / f"errors-{self._count}").read_text(errors="replace").strip().splitlines()
        return "; ".join(lines[-3:]) or "it said nothing"

    def start(self, argv: Sequence[str], stdout: int = subprocess.DEVNULL,
              cwd: Path | None = None, env: dict[str, str] | None = None) -> Leader:
        """Start a command in a session of its own."""
        self._count += 1
        with (self.folder / f"errors-{self._count}").open("wb") as errors:
            try:
                program = Leader(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=errors,
                                 env={**self.env, **(env or {})}, cwd=cwd)
            except FileNotFoundError:
                raise NotHere(f"{argv[0]} is not installed") from None
        self._running.append(program)
        return program

    def run(self, argv: Sequence[str], timeout: float = LONGEST_S, env: dict[str, str] | None = None) -> str:
        """Run a command to its end; what it printed."""
        program = self.start(argv, subprocess.PIPE, env=env)
        try:
            printed, _ = program.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.end(program)
            raise BenchError(f"{' '.join(argv)} did not end within {timeout:.0f} s") from None
        self._running.remove(program)
        if program.returncode == 125 and argv[0].endswith("sockmap"):
            raise NotHere(self._errors())
        if program.returncode != 0:
            raise BenchError(f"{' '.join(argv)} ended with status {program.returncode}: {self._errors()}")
        return printed.decode(errors="replace")

    @contextmanager
    def server(self, argv: Sequence[str], ready: Callable[[], bool], stop: signal.Signals = signal.SIGTERM,
               cwd: Path | None = None, env: dict[str, str] | None = None) -> Iterator[Leader]:
        """A program that is `ready` in the body and gone after it."""
        program = self.start(argv, cwd=cwd, env=env)
        try:
            deadline = time.monotonic() + 30
            while not ready():
                if program.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{' '.join(argv)} does not get ready: {self._errors()}")
                time.sleep(0.01)
            yield program
            program.send_signal(stop)
            with suppress(subprocess.TimeoutExpired):
                program.wait(15)
        finally:
            self.end(program)

    def end(self, program: Leader) -> None:
        """Kill what is left of the group, which is of our own making."""
        program.kill_group()
        with suppress(subprocess.TimeoutExpired):
            program.wait(10)
        if program in self._running:
            self._running.remove(program)

    def close(self) -> None:
        """End everything, the monitor too, and remove the folder."""
        for program in list(self._running):
            self.end(program)
        for action in self._at_end:
            action()
        for path in self.folder.glob("socksdirect/*.sock"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, suppress(OSError):
                probe.connect(str(path))
                credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                os.kill(struct.unpack("3i", credentials)[0], signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)


def program(name: str) -> str:
    """A program of tools/bench. BenchError if it has not been built."""
    path = PROGRAMS / name
    if not path.exists():
        raise BenchError(f"{path} is missing; `make bench` builds it")
    return str(path)


def own_network() -> list[str]:
    """The words before a command that give it a network namespace of its own."""
    return [sys.executable, str(ROOT / "tools" / "sdbench" / "netns.py")]


def cgroup2() -> Path:
    """Where cgroup2 is mounted. NotHere if it is not."""
    for line in Path("/proc/mounts").read_text().splitlines():
        words = line.split()
        if words[2] == "cgroup2":
            return Path(words[1])
    raise NotHere("no cgroup2 file system is mounted")


def sockmap() -> list[str]:
    """The words before a command that redirect its connections by eBPF."""
    if not (PROGRAMS / "sockmap").exists():
        raise NotHere("clang or libbpf were missing when the programs were built; `make bench` installs them")
    folder = cgroup2() / f"sdbench-{os.getpid()}-{time.monotonic_ns()}"
    return [program("sockmap"), str(PROGRAMS / "sockmap.bpf.o"), str(folder), "--"]
