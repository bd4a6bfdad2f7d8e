# SPDX-License-Identifier: Apache-2.0
"""Faults that take a while to be noticed, or a world of their own: `make faults`.

A supervisor that hangs, disks that are full.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.harness import GUESTS, ROOT, SDRUN, Runner, end_monitor
from tests.sdtrace.support import supervisor_of

pytestmark = pytest.mark.skipif(os.environ.get("SDRUN_FAULTS") != "all", reason="long: make faults")

CONNECTS_LATER = """
import socket, sys, time
l = socket.create_server(("127.0.0.1", 0))
def connect():
    c = socket.create_connection(l.getsockname()); s, _ = l.accept()
    for n in range(50):
        c.sendall(b"%d" % n); assert s.recv(9) == b"%d" % n
    return c, s
kept = connect()
print("ready", flush=True)
sys.stdin.readline()
"""
STUCK = CONNECTS_LATER.replace("sys.stdin.readline()", "time.sleep(1)\nagain = connect()\nprint('again', flush=True)")


@pytest.mark.parametrize("rules", [[], ["-r", "out tcp *:25 deny"]], ids=["open", "strict"])
def test_a_supervisor_that_hangs_is_ended(shm: Runner, rules: list[str]) -> None:
    """What waited for it is let through, or where something may be denied, denied: nobody waits for ever."""
    shm.options = rules
    program = shm.start(sys.executable, "-c", STUCK)
    program.until(lambda: program.stdout == b"ready\n", "the first connection works", timeout=60)
    os.kill(supervisor_of(program), signal.SIGSTOP)
    status = program.wait(120)
    if rules:
        assert status == 1 and "PermissionError" in program.stderr, program.describe()
    else:
        assert status == 0 and program.stdout == b"ready\nagain\n", program.describe()
    assert "ended before" in program.report().raw["error"]


FULL = """
set -e
for place in "$@"; do
    mount -t tmpfs -o size=64k,nr_inodes=20 full "$place"
    cat /dev/zero > "$place/filler" 2>/dev/null || true
    for n in $(seq 30); do touch "$place/$n" 2>/dev/null || true; done
    ! touch "$place/room" 2>/dev/null
done
exec "$SDRUN" --report /tmp/report.json --explain --set upgrade=eager -- "$PYTHON" -c "$GUEST"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.skipif(ROOT.is_relative_to("/tmp"), reason="mounts over /tmp, where this checkout lies")
@pytest.mark.parametrize("runtime", [False, True], ids=["disk-and-shm", "runtime-folder"])
def test_full_disks(sd_env: dict[str, str], runtime: bool) -> None:
    """/dev/shm and the report's place are full: carried as ever. Where the monitor's socket would lie, too: by TCP."""
    with tempfile.TemporaryDirectory(prefix="sdfull-", dir="/var/tmp") as own:
        env = {**sd_env, "XDG_RUNTIME_DIR": own, "SDRUN": str(SDRUN), "PYTHON": sys.executable,
               "GUEST": (GUESTS / "edge_bell.py").read_text()}  # fmt: skip
        places = ["/dev/shm", "/tmp", *([own] if runtime else [])]
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", FULL, "sh", *places]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
        carried = "by shared memory 0" if runtime else "by shared memory 2"
        assert carried in done.stderr, done.stderr
        end_monitor(Path(own))
