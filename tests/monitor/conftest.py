# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the monitor's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdlib.wire import MonitorClient
from tests.monitor.support import Link, MonitorProcess, Raw


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
