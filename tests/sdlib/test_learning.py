# SPDX-License-Identifier: Apache-2.0
"""How long a waiting call looks at the ring, from what it has learned of its sleeps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hostedbuild import HOSTED, ROOT, SRC


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("learning") / "learning"
    # Of what it needs of the rest of the library nothing is used here.
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-DSD_HOSTED=1", "-ffunction-sections",
                    "-Wl,--gc-sections", f"-I{ROOT / 'sdlib/include'}", f"-I{SRC}", "-o", made,
                    HOSTED / "learning.c"], check=True)
    return made


@pytest.mark.parametrize(("spin_us", "rung_us", "waking_us", "least", "most"), [
    (50, 60, 10, 0, 50),  # the policy's time is what counts where waking up takes less,
    (50, 60, 100, 60, 200),  # and where it takes longer a spin that would have seen the answer,
    (50, 150, 190, 150, 200),
    (50, 150, 1000, 150, 200),  # up to four times as long;
    (50, 400, 1000, 0, 200),  # an answer that takes longer than that is nothing to spin for
    (0, 60, 100, 0, 0),
])
def test_a_spin_lasts_as_long_as_waking_up(learning: Path, spin_us: int, rung_us: int, waking_us: int, least: int,
                                           most: int) -> None:
    printed = subprocess.run([learning, *map(str, (spin_us, rung_us, waking_us))], stdout=subprocess.PIPE, check=True)
    assert least <= int(printed.stdout) <= most
