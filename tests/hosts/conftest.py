# SPDX-License-Identifier: Apache-2.0
"""Two hosts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.world import World


@pytest.fixture
def world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with tempfile.TemporaryDirectory(prefix="sdhosts-") as name:
        made = World(Path(name))
        yield made
        made.close()
