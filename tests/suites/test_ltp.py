# SPDX-License-Identifier: Apache-2.0
"""The Linux Test Project's programs for sockets, readiness and descriptors: none that passes natively may fail here.

No Debian package has them, so `make ltp` fetches a release and builds what is needed of it into build/ltp; where that
cannot be reached, and in `make test`, these tests are skipped and say so.  Each program runs under sdrun with eager
upgrade; one that does not pass there is run natively, and fails the test if it passes.  (Most make a connection for
one call, so few are carried by shared memory; what is proved is that the calls around are the kernel's.)
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import ROOT, Runner
from tools.groups import Leader

SYSCALLS = ROOT / os.environ.get("SDRUN_LTP", "build/none") / "testcases/kernel/syscalls"
CALLS = (
    "accept", "accept4", "bind", "close", "close_range", "connect", "dup", "dup2", "dup3", "epoll_create",
    "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "getpeername", "getsockname", "getsockopt", "listen",
    "pidfd_getfd", "poll", "ppoll", "pselect", "recv", "recvfrom", "recvmmsg", "recvmsg", "select", "send",
    "sendfile", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socket", "socketcall", "socketpair",
    "sockioctl", "splice", "tee", "vmsplice",
)
RACES = {"bind06", "setsockopt06", "setsockopt11"}
"""Try to hit a race of old kernels for minutes."""
NOT_HERE = 32
"""TCONF: not for this machine or kernel."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900),
              pytest.mark.skipif(not (SYSCALLS / "vmsplice/vmsplice01").exists(),
                                 reason="no Linux Test Project: `make ltp` could not fetch it, or was not run")]


def programs(call: str) -> list[Path]:
    """What is built for a call."""
    return sorted(path for path in (SYSCALLS / call).iterdir()
                  if path.is_file() and os.access(path, os.X_OK) and path.suffix == "" and path.name not in RACES)


def natively(program: Path, env: dict[str, str], folder: Path) -> int:
    """Its exit status; programs that it has started end with it."""
    with Leader([program], env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL) as process:
        try:
            return process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill_group()
            return -1


@pytest.mark.parametrize("call", CALLS)
def test_ltp(call: str, shm: Runner, tmp_path: Path) -> None:
    env = {"LTP_COLORIZE_OUTPUT": "0", "TMPDIR": str(tmp_path), "PATH": f"{os.environ['PATH']}:{SYSCALLS / call}"}
    failed = []
    for path in programs(call):
        program = shm.start(path, env=env, cwd=tmp_path)
        status = program.wait(120)
        program.close()
        if status not in (0, NOT_HERE) and natively(path, {**os.environ, **env}, tmp_path) == 0:
            failed.append(program.describe())
    assert not failed, "\n".join(failed)
