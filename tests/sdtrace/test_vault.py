# SPDX-License-Identifier: Apache-2.0
"""What a supervisor finds of the one before it."""

from __future__ import annotations

import os

import pytest

import policies
from sdlib import abi
from sdtrace.areas import Area
from sdtrace.control import Record
from sdtrace.vault import Inheritance, Vault


def left_by(version: int) -> Inheritance:
    """An area and a connection in it, as the keeper gives them to a successor."""
    settings = policies.effective(policies.load(None), "/bin/program", [], 0, [])
    area = Area.make(0, "/bin/program", 0, settings, accelerate=True)
    area.view.version = version
    origin = {"tid": 1, "fd": 3, "cookie": 7, "direction": "out", "local": ["127.0.0.1", 1], "peer": ["127.0.0.1", 2],
              "exe": "/bin/program", "uid": 0}  # fmt: skip
    records = [
        Record(0, {"kind": "area", "index": 0, "exe": area.exe, "uid": 0, "host_pids": True}, os.dup(area.fd)),
        Record(1, {"kind": "segment", "area": area.inode, "block": 5, "generation": 1, "socket": 9, "side": 0,
                   "far": False, "origin": origin}, os.memfd_create("segment")),
    ]  # fmt: skip
    return Vault(None).inherit(records)


def test_of_this_version() -> None:
    left = left_by(abi.const.SD_ABI_VERSION)
    assert (len(left.areas), len(left.segments)) == (1, 1)


@pytest.mark.parametrize("other", [-1, 1])
def test_of_another_version(other: int) -> None:
    """The installation was replaced under a program that runs: what its libraries share has another layout."""
    fds = set(os.listdir("/proc/self/fd"))
    left = left_by(abi.const.SD_ABI_VERSION + other)
    assert not left.areas and not left.segments
    assert len(set(os.listdir("/proc/self/fd")) - fds) <= 1, "what is of no use is closed"
