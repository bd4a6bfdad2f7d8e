# SPDX-License-Identifier: Apache-2.0
"""What tests of traces share."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.harness import SDRUN
from tests.sdtrace.support import supervisor_of


def burst(guest: Path, option: str, count: int, env: dict[str, str]) -> None:
    """`guest` makes `count` calls, traced as `option` says, with the supervisor stopped: there is no room for all."""
    sdrun = (SDRUN, "--set", "upgrade=never", option, "--")  # so that nothing has to wait for it
    command = [*map(str, (*sdrun, guest, "burst", count))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as program:
        assert program.stdin and program.stdout
        assert program.stdout.readline() == b"ready\n"
        supervisor = supervisor_of(program.pid)
        os.kill(supervisor, signal.SIGSTOP)
        try:
            program.stdin.write(b"go\n")
            program.stdin.flush()
            assert program.stdout.readline() == b"done\n"
        finally:
            os.kill(supervisor, signal.SIGCONT)
        program.stdin.write(b"end\n")
        program.stdin.flush()
        assert program.wait(60) == 0
