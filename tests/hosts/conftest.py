# SPDX-License-Identifier: Apache-2.0
"""Two hosts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.world import VERBS, World

TIMEOUT_S = 600
"""Of a test here, which waits for several facts in turn; none takes so long on a machine that is five times slower."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("timeout") is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """With "tcp" as parameter: without a device."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with tempfile.TemporaryDirectory(prefix="sdhosts-") as name:
        made = World(Path(name), soft=not VERBS and getattr(request, "param", "") != "tcp")
        yield made
        made.close()
