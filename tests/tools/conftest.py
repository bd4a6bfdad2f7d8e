# SPDX-License-Identifier: Apache-2.0
"""The tools look at all programs: those that other tests have left running must not be among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import runtime_of_our_own


@pytest.fixture(scope="module")
def sd_env() -> Iterator[dict[str, str]]:
    """Of each module its own."""
    with runtime_of_our_own() as env:
        yield env
