# SPDX-License-Identifier: Apache-2.0
"""sdrun --attach of a program whose epoll set another process has as well: what comes into it later is the kernel's."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.e2e.test_attach import Attached, finish, start_client
from tests.harness import GUESTS, Runner, free_port


def test_a_set_that_a_child_has_too(native: Runner, shm: Runner, tmp_path: Path) -> None:
    port = free_port()
    server = native.start(sys.executable, GUESTS / "shared_set.py", str(port)).listening(port)
    attached = Attached(server.pid, tmp_path, native.env).ok()
    client = start_client(shm, port, 1, 0.0, "echo")
    finish(client)
    assert server.wait(30) == 0, server.describe()
    report = attached.report(server)
    assert (report.total, report.shm) == (1, 0), report
