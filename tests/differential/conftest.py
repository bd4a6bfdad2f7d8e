# SPDX-License-Identifier: Apache-2.0
"""Worlds are started when the first test asks for them, and each behaviour runs once in each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.differential.runs import Runs
from tests.guestbuild import Guests
from tests.once import shared


@pytest.fixture(scope="session")
def runs(guests: Guests, tmp_path_factory: pytest.TempPathFactory, sd_env: dict[str, str]) -> Iterator[Runs]:
    """Runs of this session."""
    made = Runs(guests("agent"), tmp_path_factory.mktemp("differential"), sd_env,
                shared(tmp_path_factory, "references"))
    yield made
    made.close()
