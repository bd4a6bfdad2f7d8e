# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the monitor's tests."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdlib.wire import MonitorClient
from tests.guestbuild import C_FLAGS
from tests.harness import ROOT
from tests.monitor.queues import Fake
from tests.monitor.support import Link, MonitorProcess, Raw


@pytest.fixture(scope="session")
def fake_libibverbs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In the place of libibverbs: whoever opens one of that name in this process gets it."""
    path = tmp_path_factory.mktemp("fake") / "libibverbs.so.1"
    source = ROOT / "tests" / "hosted" / "fakeverbs.c"
    subprocess.run(["gcc", *C_FLAGS, "-shared", "-fPIC", "-Wl,-soname,libibverbs.so.1", "-o", path, source], check=True)
    Fake.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[MonitorProcess]:
    made = MonitorProcess(tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(monitor: MonitorProcess) -> Iterator[MonitorClient]:
    made = monitor.client()
    yield made
    made.close()


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.close()


@pytest.fixture
def raw(monitor: MonitorProcess) -> Iterator[Callable[..., Raw]]:
    """Makes clients without manners, and closes them."""
    made: list[Raw] = []

    def make(*, greet: bool = True) -> Raw:
        made.append(Raw(monitor.path, greet=greet))
        return made[-1]

    yield make
    for one in made:
        one.close()
