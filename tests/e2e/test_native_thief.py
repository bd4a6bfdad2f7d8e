# SPDX-License-Identifier: Apache-2.0
"""A process under no sdrun takes a connection by pidfd_getfd: it has not the bytes, and does the stream no harm."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from sdtrace import procfs
from tests.harness import GUESTS, Runner


@pytest.mark.parametrize("what", ["looks", "sends"])
def test_no_byte_of_the_stream_changes(what: str, shm: Runner, tmp_path: Path) -> None:
    program = shm.start(sys.executable, GUESTS / "robbed.py", tmp_path)
    program.until((tmp_path / "fd").exists, "it has moved")
    pidfd = os.pidfd_open(program.pid)
    with socket.socket(fileno=procfs.get_fd(pidfd, int((tmp_path / "fd").read_text()))) as stolen:
        os.close(pidfd)
        stolen.getpeername()
        stolen.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 100)
        if what == "sends":
            stolen.send(b"bytes of a stranger")
        (tmp_path / "go").touch()
        if what == "sends":
            for _ in range(20):
                stolen.send(b"and more")
        program.ok()
    assert program.stdout == b"ok\n"
    shm.check(program, at_least=2, of_bytes=1_000_000)
