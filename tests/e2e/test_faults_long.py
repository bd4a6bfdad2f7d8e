# SPDX-License-Identifier: Apache-2.0
"""Faults that take a while to be noticed, or a world of their own: `make faults`.

A supervisor that hangs, a clock that jumps, disks that are full.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

import pytest

from tests.e2e.test_live_policy import Pair
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


def test_clocks_that_jump(shm: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten years ahead and back, for the monitor: connections are paired and carried as ever."""
    (library,) = glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    clock = tmp_path / "clock"
    clock.write_text("+0d\n")
    faked = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
             "DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    for name, value in faked.items():
        monkeypatch.setenv(name, value)
    now = [sys.executable, "-c", "import time; print(time.time())"]
    said = subprocess.run(now, check=True, capture_output=True)
    pair = Pair(shm, tmp_path)
    for number, jump in enumerate(("+3650d", "-3650d", "+0d")):
        clock.write_text(f"{jump}\n")
        then = subprocess.run(now, check=True, capture_output=True)
        assert jump == "+0d" or abs(float(then.stdout) - float(said.stdout)) > 1e8, "the clock does not jump"
        pair.open(2 * number, 2 * number + 1)
        pair.beats(5)
    _, driver = pair.finish()
    assert (driver.report().shm, driver.report().total) == (6, 6)
    assert re.search(r"^20[0-9]{2}-", pair.monitor.log.read_text(), re.MULTILINE)


def test_the_supervisor_asks_no_clock_that_jumps() -> None:
    """It strips LD_PRELOAD, so its own is shown like this: nothing it does is by the time of day."""
    for folder in ("sdtrace", "sdlib/wire"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"\btime\.time\(|datetime", file.read_text()), file
    for file in (ROOT / "sdlib/src").rglob("*.[ch]"):
        assert "CLOCK_REALTIME" not in file.read_text(), file


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
