# SPDX-License-Identifier: Apache-2.0
"""Threads that do not stop in time, or were killed in a stop: whatever comes of it, nobody stays traced."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sdtrace.halted import Halted, lingering, release_lingering
from sdtrace.ptrace import INTERRUPT, SEIZE, RemoteError, ask
from tests.harness import Program, Runner

THREADS = """
import threading, time
for _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("ready", flush=True)
time.sleep(60)
"""


def tracers(pid: int) -> set[str]:
    """Of all threads."""
    return {line for task in Path(f"/proc/{pid}/task").iterdir() for line in (task / "status").read_text().splitlines()
            if line.startswith("TracerPid:")}  # fmt: skip


def start(native: Runner) -> Program:
    program = native.start(sys.executable, "-c", THREADS)
    program.until(lambda: program.stdout == b"ready\n", "threads")
    return program


def let_go() -> None:
    deadline = time.monotonic() + 20
    while release_lingering():
        assert time.monotonic() < deadline, lingering


def test_one_thread_is_still_being_released(native: Runner) -> None:
    """Those that were seized before it in the next attempt are let go as well: a signal would stop them for good."""
    program = start(native)
    last = max(int(name) for name in os.listdir(f"/proc/{program.pid}/task"))
    ask(SEIZE, last)
    lingering.add(last)
    with pytest.raises(RemoteError) as caught, Halted(program.pid):
        pass
    assert caught.value.transient
    ask(INTERRUPT, last)
    let_go()
    assert tracers(program.pid) == {"TracerPid:\t0"}
    assert program.stop(signal.SIGTERM) == -signal.SIGTERM


def test_killed_while_stopped(native: Runner) -> None:
    """Its parent, which is not its tracer in the end, hears of it."""
    child = native.start(sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(['sleep', '60']))")
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    child.until(lambda: bool(children.read_text().split()), "its child")
    sleeper = int(children.read_text())
    with Halted(sleeper):
        os.kill(sleeper, signal.SIGKILL)
    let_go()
    assert child.wait(20) == (-signal.SIGKILL) & 255
