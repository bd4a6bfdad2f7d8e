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
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
SDRUN: Final = ROOT / ".venv/bin/sdrun"
SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
TALK: Final = """
import os, socket, time
with socket.create_server(("127.0.0.1", 0)) as listener:
    child = os.fork()
    end = time.monotonic() + 10
    if child == 0:
        with socket.create_connection(listener.getsockname()) as conn:
            while data := conn.recv(100): conn.sendall(data)
        os._exit(0)
    conn, _ = listener.accept()
with conn:
    while time.monotonic() < end:
        conn.sendall(b"x" * 50); got = b""
        while len(got) < 50: got += conn.recv(100)
        time.sleep(0.02)
os.waitpid(child, 0)
print("talked")
"""


def surroundings(folder: Path) -> dict[str, str]:
    """Of nobody; emulated, everything takes its time."""
    return {**os.environ, "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder), "SDRUN_START_S": "300"}


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """As nobody."""
    return subprocess.run([*NOBODY, "--", *map(str, words)], env=surroundings(folder), cwd=folder, capture_output=True,
                          text=True, check=False, timeout=300)


def start_monitor(folder: Path) -> subprocess.Popen[bytes]:
    """Before the programs, which would be over until it has come up."""
    monitor = subprocess.Popen([*NOBODY, "--", ROOT / ".venv/bin/sdmonitor"], env=surroundings(folder), cwd=folder)
    while not list(folder.glob("socksdirect/*.sock")):
        assert monitor.poll() is None
        time.sleep(0.1)
    return monitor


def report(path: Path) -> dict[str, object]:
    """Once it is there."""
    for _ in range(1200):
        if path.exists():
            return dict(json.loads(path.read_text()))
        time.sleep(0.1)
    raise SystemExit("no report")


def check(scope: str, folder: Path) -> None:
    """AssertionError."""
    SCOPE.write_text(scope)
    path = folder / f"report-{scope}.json"
    # A shell, and a program between, which make no socket themselves.
    shell = f"env {sys.executable} -c '{TALK}'; true"
    done = run(folder, SDRUN, "--set", "upgrade=eager", "--report", path, "--", "sh", "-c", shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "talked\n", ""), done
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
    with subprocess.Popen([*NOBODY, "--", "sleep", "600"]) as sleeper:
        time.sleep(1)
        attached = run(folder, SDRUN, "--attach", str(sleeper.pid))
        sleeper.kill()
    said = f"kernel.yama.ptrace_scope is {scope}"
    assert scope == "0" or (attached.returncode == 125 and said in attached.stderr), attached
    assert scope != "0" or (attached.returncode, attached.stderr) == (0, ""), attached


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
