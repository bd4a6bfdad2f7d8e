# SPDX-License-Identifier: Apache-2.0
"""Groups end by pidfd, also when their leader is reaped, and never by a number that may be somebody else's."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import pytest

from sdlib.wire.ready import readable
from tools.groups import Leader


def orphans(ends: bool) -> tuple[Leader, int]:
    """A leader with another process in its group, and a descriptor that is at its end when both are gone."""
    alive, end = os.pipe()
    leader = Leader(["sh", "-c", "sleep 600 & echo; wait" if not ends else "sleep 600 & echo"], stdout=subprocess.PIPE,
                    pass_fds=[end])
    os.close(end)
    assert leader.stdout
    assert leader.stdout.readline() == b"\n"
    return leader, alive


def is_over(alive: int, within: float = 10) -> bool:
    return readable(alive, within) and os.read(alive, 1) == b""


@pytest.mark.parametrize("ends", [False, True])
def test_all_of_the_group(ends: bool) -> None:
    leader, alive = orphans(ends)
    if ends:
        assert leader.wait(10) == 0
        assert not is_over(alive, 0)
    leader.kill_group()
    leader.kill_group()
    leader.wait(10)
    assert is_over(alive)
    os.close(alive)


@pytest.mark.parametrize("reaped", [False, True])
def test_older_kernels(reaped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number as long as the leader keeps it, dead or alive."""
    killed: list[int] = []

    def refused(*_arguments: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    leader = Leader(["true"])
    os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        leader.wait(10)
    monkeypatch.setattr(signal, "pidfd_send_signal", refused)
    monkeypatch.setattr(os, "killpg", lambda group, _number: killed.append(group))
    leader.kill_group()
    leader.wait(10)
    assert killed == ([] if reaped else [leader.pid])
