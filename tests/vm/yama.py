# SPDX-License-Identifier: Apache-2.0
"""In the guest (tests/vm/guest.py), whose kernel has Yama: sdrun as a user without privileges, at each scope.

    python -m tests.vm.guest -- .venv/bin/python -m tests.vm.yama

Scope 1: each program names who may trace it (sdtrace/launch/yama.c), so all of them are injected, whoever started them.
Scope 2: nobody may, so the program does what it does natively, and the report says why. --attach says it in one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sdlib.wire import trees

ROOT: Final = Path(__file__).resolve().parents[2]
SDRUN: Final = ROOT / ".venv/bin/sdrun"
SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
TALK: Final = """
import os, socket, sys, time
with socket.create_server(("127.0.0.1", 0)) as listener:
    child = os.fork()
    if child == 0:
        with socket.create_connection(listener.getsockname()) as conn:
            while data := conn.recv(100): conn.sendall(data)
        os._exit(0)
    conn, _ = listener.accept()
with conn:
    rounds = 0
    while rounds < 50 or not os.path.exists(sys.argv[1]):
        rounds += 1
        conn.sendall(b"x" * 50); got = b""
        while len(got) < 50: got += conn.recv(100)
        time.sleep(0.02)
os.waitpid(child, 0)
print("talked")
"""


WITHIN_S: Final = 300.0
"""What comes about has done so by then, on a machine that has other things to do."""


def surroundings(folder: Path) -> dict[str, str]:
    """Of nobody; emulated, everything takes its time."""
    return {**os.environ, "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder), "SDRUN_START_S": "300"}


def run(folder: Path, *words: str | Path, meanwhile: Callable[[], object] = lambda: None) -> tuple[int, str, str]:
    """As nobody: exit status, standard output and error."""
    with subprocess.Popen([*NOBODY, "--", *map(str, words)], env=surroundings(folder), cwd=folder,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        meanwhile()
        out, err = program.communicate(timeout=WITHIN_S)
    return program.returncode, out, err


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it."""
    end = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"never: {what}")
        time.sleep(0.1)


def start_monitor(folder: Path) -> subprocess.Popen[bytes]:
    """Before the programs, which would be over until it has come up."""
    monitor = subprocess.Popen([*NOBODY, "--", ROOT / ".venv/bin/sdmonitor"], env=surroundings(folder), cwd=folder)
    until(lambda: monitor.poll() is not None or list(folder.glob("socksdirect/*.sock")), "a monitor")
    assert monitor.poll() is None
    return monitor


def carried(folder: Path) -> bool:
    """Shared memory has carried something both ways, as the supervisor says."""
    told = trees.ask_all({"XDG_RUNTIME_DIR": str(folder)})
    return any(one["counters"]["bytes_shm_tx"] and one["counters"]["bytes_shm_rx"] for one in told)


def report(path: Path) -> dict[str, object]:
    """Once it is there."""
    until(path.exists, "a report")
    return dict(json.loads(path.read_text()))


def check(scope: str, folder: Path) -> None:
    """AssertionError."""
    SCOPE.write_text(scope)
    path, enough = (folder / f"{name}-{scope}" for name in ("report", "enough"))

    def meanwhile() -> None:
        if scope != "2":
            until(lambda: carried(folder), "shared memory carries it")
        enough.touch()

    # A shell, and a program between, which make no socket themselves.
    shell = f"env {sys.executable} -c '{TALK}' {enough}; true"
    done = run(folder, SDRUN, "--set", "upgrade=eager", "--report", path, "--", "sh", "-c", shell, meanwhile=meanwhile)
    assert done == (0, "talked\n", ""), done
    found = report(path)
    connections, processes = found["connections"], found["processes"]
    assert isinstance(connections, dict) and isinstance(processes, list)
    reasons = {process["reason"] for process in processes}
    print(f"scope {scope}: {connections['shm']} ends on shared memory, {len(processes)} programs, {reasons}",
          flush=True)
    if scope == "2":
        assert connections["shm"] == 0 and "ptrace-refused" in reasons, found
    else:
        assert connections["shm"] == 2 and "ptrace-refused" not in reasons, found
    with subprocess.Popen([*NOBODY, "--", "sleep", "6000"]) as sleeper:
        until(lambda: Path(f"/proc/{sleeper.pid}/comm").read_text() == "sleep\n", "a sleeper")
        status, _, errors = run(folder, SDRUN, "--attach", str(sleeper.pid))
        sleeper.kill()
    said = f"kernel.yama.ptrace_scope is {scope}"
    assert scope == "0" or (status == 125 and said in errors), (status, errors)
    assert scope != "0" or (status, errors) == (0, ""), (status, errors)


def main() -> int:
    """Exit status."""
    with tempfile.TemporaryDirectory(prefix="sdyama-") as name:
        folder = Path(name)
        os.chown(folder, 65534, 65534)
        monitor = start_monitor(folder)
        for scope in ("0", "1", "2"):
            check(scope, folder)
        monitor.terminate()
        monitor.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
