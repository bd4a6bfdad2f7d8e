# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that run real programs: see tests/harness.py for what they mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.guestbuild import Guests
from tests.harness import Mode, Runner, runtime_of_our_own
from tests.once import shared
from tests.workers import ByGroup, rank

hypothesis.settings.register_profile("sdrun", deadline=None)  # nothing here is about how busy the machine is
hypothesis.settings.load_profile("sdrun")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank(item.nodeid))


@pytest.fixture(autouse=True)
def few_descriptors() -> Iterator[None]:
    """Descriptors that tests leave open add up in a worker until those of others do not fit into select(2)."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    after = len(os.listdir("/proc/self/fd"))
    assert after - before < 64, f"left open: {after - before} descriptors"


@pytest.fixture(scope="session")
def sd_env() -> Iterator[dict[str, str]]:
    """Environment of every program of this test session. Others than a test's own are alive in it; the tests of what
    looks at all of them have one of their own (tools/conftest.py)."""
    with runtime_of_our_own() as env:
        yield env


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    """Compiles guest programs, each once per session."""
    return Guests(shared(tmp_path_factory, "guests"))


@pytest.fixture(params=list(Mode), ids=[mode.value for mode in Mode])
def runner(request: pytest.FixtureRequest, tmp_path: Path, sd_env: dict[str, str]) -> Iterator[Runner]:
    """Runs the test three times: natively, redirected without acceleration, and on shared memory."""
    made = Runner(request.param, tmp_path, sd_env)
    yield made
    made.close()


@pytest.fixture
def shm(tmp_path: Path, sd_env: dict[str, str]) -> Iterator[Runner]:
    """Runs the test on shared memory only."""
    made = Runner(Mode.SHM, tmp_path, sd_env)
    yield made
    made.close()


@pytest.fixture
def native(tmp_path: Path, sd_env: dict[str, str]) -> Iterator[Runner]:
    """Runs programs natively, for comparison beside `shm`."""
    folder = tmp_path / "native"
    folder.mkdir()
    made = Runner(Mode.NATIVE, folder, sd_env)
    yield made
    made.close()
