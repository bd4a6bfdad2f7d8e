# SPDX-License-Identifier: Apache-2.0
"""Where Yama restricts ptrace, every process names who may trace it, and gets the library at its birth.

This kernel need not have Yama: a mount namespace shows a file that says so, and strace what is done about it. Whether
that is enough for a real one is asked by tests/vm/yama.py (`make test-rdma`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.guestbuild import Guests
from tests.harness import REPORT_WITHIN_S, SDRUN, Report, Runner, end_monitor

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")

SCOPE = """
mount -t tmpfs tmpfs /proc/sys/kernel && mkdir /proc/sys/kernel/yama && echo $0 >/proc/sys/kernel/yama/ptrace_scope &&
exec "$@"
"""
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
# To look at the launcher alone: a tracer that stays would keep the supervisor out.
STRACE = ["strace", "-qq", "-o", "calls", "-e", "trace=prctl", "-b", "execve"]


@pytest.mark.parametrize(("scope", "user"), [("1", NOBODY), ("0", NOBODY), ("2", NOBODY), ("1", [])],
                         ids=["1", "0", "2", "root"])
def test_who_names_a_tracer(scope: str, user: list[str], shm: Runner, guests: Guests) -> None:
    """A shell starts the guest, which forks. Where nobody needs to be named, the shell stays as it is."""
    named = scope == "1" and bool(user)
    with tempfile.TemporaryDirectory(prefix="sdyama-", dir="/tmp") as name:
        folder = Path(name)
        guest = shutil.copy(guests("blocking"), folder / "blocking")
        (folder / "run").mkdir(0o700)
        for place in (folder, folder / "run"):
            os.chown(place, 65534 if user else 0, 65534 if user else 0)
        shm.env = {**shm.env, "XDG_RUNTIME_DIR": str(folder / "run")}
        shm.at_end.append(lambda: end_monitor(folder / "run"))
        before = ["unshare", "-m", "sh", "-c", SCOPE, scope, *user]
        words = [*before, *STRACE, SDRUN, "--set", "upgrade=eager", "--report", folder / "report",
                 "sh", "-c", f"{guest}; true"]
        done = subprocess.run([str(word) for word in words], env=shm.env, cwd=folder, capture_output=True, text=True,
                              timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "ok\n"), done
        assert bool(re.search(r"prctl\(PR_SET_PTRACER, \d+", (folder / "calls").read_text())) == named
        report = read_report(folder / "report")
        shm.close()
    lines = {os.path.basename(line["exe"]): line["injected"] for line in report.raw["processes"]}
    assert lines == {"dash": named, "blocking": True}, report
    assert (report.shm, report.total, report.raw["supervisor_errors"]) == (2, 2, 0), report


def read_report(path: Path) -> Report:
    """Once it is there."""
    deadline = time.monotonic() + REPORT_WITHIN_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return Report(json.loads(path.read_text()))
