# SPDX-License-Identifier: Apache-2.0
"""The last word: two programs under sdrun talk to each other, and the reports say what carried their bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tools.doctor.findings import Finding, ok, stops
from tools.doctor.setup import launcher_path

_ROUNDS: Final = 200
_PATIENCE_S: Final = 30.0
_PAUSES_S: Final = (0.0, 0.01, 0.05)
"""Between round trips: on a busy machine the first attempt may be over before anybody has paired the two ends."""
_TOO_SOON: Final = {"few-operations", "peer-not-under-sdrun", "closed-before-switch"}

# One program of two processes would share a supervisor, and miss half of the way that connections go.
_SERVER: Final = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    conn, _ = listener.accept()
    while data := conn.recv(64): conn.sendall(data)
"""
_CLIENT: Final = f"""
import socket, sys, time
conn = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
for number in range({_ROUNDS}):
    sent = b"%8d" % number
    conn.sendall(sent)
    got = b""
    while len(got) < 8: got += conn.recv(8 - len(got)) or sys.exit("the connection ended early")
    if got != sent: sys.exit("other bytes than were sent")
    time.sleep(float(sys.argv[2]))
conn.close()
"""


def _sdrun(report: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [str(launcher_path()), "--report", str(report), "--set", "upgrade=eager", "--",
               sys.executable, "-I", "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def _read(report: Path) -> dict[str, Any]:
    """It is there once the last process is gone, or very soon after."""
    deadline = time.monotonic() + _PATIENCE_S
    while not report.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("no report was written")
        time.sleep(0.02)
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def _talk(folder: Path, pause_s: float) -> dict[str, Any] | Finding:
    """The client's report, or why there is none."""
    name = "trial"
    server = _sdrun(folder / "server.json", _SERVER)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        if not port:
            return stops(name, f"the server did not start: {server.communicate(timeout=_PATIENCE_S)[1].strip()[-300:]}")
        client = _sdrun(folder / "client.json", _CLIENT, port, str(pause_s))
        _, complaint = client.communicate(timeout=_PATIENCE_S)
        if client.returncode:
            return stops(name, f"the client failed with {client.returncode}: {complaint.strip()[-300:]}")
        server.wait(_PATIENCE_S)
    finally:
        server.kill()
        server.communicate()
    return _read(folder / "client.json")


def _judge(report: dict[str, Any]) -> Finding:
    name = "trial"
    ends = report["connections"]
    if ends["shm"]:
        return ok(name, f"{_ROUNDS} round trips, {report['bytes']['shm']} bytes through shared memory")
    refusals = [line["reason"] for line in report["processes"] if line["reason"]]
    why = ", ".join([*ends["tcp_reasons"], *refusals]) or "no reason was given"
    return stops(name, f"the programs ran, but their connection stayed on TCP: {why}")


def run() -> Finding:
    """Start them, let them talk, read the report."""
    report: dict[str, Any] = {}
    try:
        for pause_s in _PAUSES_S:
            with tempfile.TemporaryDirectory(prefix="sddoctor-") as folder:
                said = _talk(Path(folder), pause_s)
            if isinstance(said, Finding):
                return said
            report = said
            if said["connections"]["shm"] or not _TOO_SOON & set(said["connections"]["tcp_reasons"]):
                break
    except (OSError, subprocess.TimeoutExpired, TimeoutError) as error:
        return stops("trial", f"{type(error).__name__}: {error}")
    return _judge(report)
