# SPDX-License-Identifier: Apache-2.0
"""sdrun --attach: programs that run, with connections that carry bytes at that moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.test_servers import start_nginx, start_redis
from tests.guestbuild import Guests
from tests.harness import GUESTS, SDRUN, Program, Report, Runner, free_port

KINDS = 8  # of waits.c


class Attached:
    """sdrun --attach of one program."""

    def __init__(self, pid: int, folder: Path, env: Mapping[str, str], *options: str) -> None:
        self.path = folder / f"attached-{pid}-{time.monotonic_ns()}.json"
        self.result = subprocess.run(
            [SDRUN, "--set", "upgrade=eager", "--report", self.path, *options, "--attach", str(pid)],
            env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    def ok(self) -> Attached:
        """It has been, to all of it."""
        assert (self.result.returncode, self.result.stderr) == (0, ""), self.result
        return self

    def report(self, program: Program) -> Report:
        """After its end."""
        program._report = self.path
        return program.report()


def start_client(runner: Runner, port: int, connections: int, pause: float, kind: str) -> Program:
    """steady.py, all connections in use."""
    client = runner.start(sys.executable, GUESTS / "steady.py", str(port), str(connections), str(pause), kind)
    client.until(lambda: b"open" in client.stdout, "all connections in use")
    return client


def finish(client: Program, at_least: int = 3) -> int:
    """It has seen every byte; how many rounds it made."""
    client.send(signal.SIGUSR1)
    assert client.wait(60) == 0, client.describe()
    rounds = int(client.stdout.split()[-1])
    assert rounds >= at_least, client.describe()
    return rounds


def more_rounds(seconds: float = 0.5) -> None:
    """Some traffic: what the client has seen is asked at its end."""
    time.sleep(seconds)


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["busy", "waiting"])
def test_threads_that_wait_in_every_way(native: Runner, shm: Runner, guests: Guests, tmp_path: Path,
                                        pause: float) -> None:
    """A server with threads in accept, recv, epoll_wait, poll, select, futex and others; its client is under sdrun."""
    port = free_port()
    server = native.start(guests("waits"), str(port)).listening(port)
    client = start_client(shm, port, KINDS, pause, "echo")
    attached = Attached(server.pid, tmp_path, native.env).ok()
    more_rounds()
    finish(client)
    late = start_client(shm, port, KINDS, pause, "echo")  # accept goes on, and what it brings is ours
    finish(late, at_least=1)
    server.stop()
    report = attached.report(server)
    assert report.total == 2 * KINDS and report.shm == 2 * KINDS, report
    assert client.report().shm == KINDS


def start_server(name: str, runner: Runner, guests: Guests, port: int, folder: Path) -> Program:
    """Natively, or as the runner does it."""
    if name == "redis":
        return start_redis(runner, port, folder)
    if name == "nginx":
        return start_nginx(runner, port, folder)
    if name == "go":
        return runner.start(guests("echo", "go"), "server", str(port)).listening(port)
    return runner.start(sys.executable, GUESTS / "pyecho.py", "server", str(port)).listening(port)


SERVERS = ("python", "go", "redis", "nginx")
PROTOCOLS = {"redis": "resp", "nginx": "http"}


@pytest.mark.parametrize("name", SERVERS)
def test_real_programs_at_both_ends(native: Runner, guests: Guests, tmp_path: Path, name: str) -> None:
    """Server and client have been started natively; both are attached under load. nginx with its workers."""
    port = free_port()
    server = start_server(name, native, guests, port, tmp_path)
    client = start_client(native, port, 3, 0.0, PROTOCOLS.get(name, "echo"))
    attached = [Attached(program.pid, tmp_path, native.env).ok() for program in (server, client)]
    more_rounds()
    finish(client)
    assert attached[1].report(client).shm == 3
    server.stop()
    report = attached[0].report(server)
    assert report.shm == 3 and report.shm_bytes > 3 * 612, report


def refused(pid: int, folder: Path, env: Mapping[str, str], why: str) -> None:
    """One line that says so."""
    result = Attached(pid, folder, env).result
    assert result.returncode == 125 and result.stderr.count("\n") == 1, result
    assert why in result.stderr, result.stderr


def test_refusals(native: Runner, shm: Runner, tmp_path: Path) -> None:
    """Each with its reason; the program is as it was."""
    env = native.env
    sleeper = native.start("sleep", "60")
    os.kill(sleeper.pid, signal.SIGSTOP)
    refused(sleeper.pid, tmp_path, env, "job control")
    os.kill(sleeper.pid, signal.SIGCONT)
    ours = shm.start("sleep", "60")
    ours.until(lambda: "Seccomp_filters:\t0" not in Path(f"/proc/{ours.pid}/status").read_text(), "the filter")
    refused(ours.pid, tmp_path, env, "sdrun")
    with subprocess.Popen(["true"]) as ended:
        while Path(f"/proc/{ended.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        refused(ended.pid, tmp_path, env, "zombie")
    refused(ended.pid, tmp_path, env, "No such process")
    refused(2, tmp_path, env, "kernel")
    before = Path(f"/proc/{sleeper.pid}/maps").read_text()
    assert "2d0000000000" not in before


TRACED = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0  # PTRACE_SEIZE
print("traced", flush=True)
time.sleep(60)
"""


def test_another_tracer_is_there_first(native: Runner, tmp_path: Path) -> None:
    """It stays the only one."""
    sleeper = native.start("sleep", "60")
    tracer = native.start(sys.executable, "-c", TRACED, str(sleeper.pid))
    tracer.until(lambda: b"traced" in tracer.stdout, "traced")
    refused(sleeper.pid, tmp_path, native.env, "debugger")


@pytest.mark.parametrize("line", [["--attach", "x"], ["--attach", "0"], ["--attach", "1", "true"], ["--no-children"],
                                  ["--attach", "1", "--learn", "/tmp/x"], ["--attach"]])
def test_wrong_usage(line: list[str]) -> None:
    """One line, exit 2."""
    result = subprocess.run([SDRUN, *line], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result
