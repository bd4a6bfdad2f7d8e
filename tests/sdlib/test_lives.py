# SPDX-License-Identifier: Apache-2.0
"""Whether a connection is worth an offer, from what has become of those before it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from sdlib import abi
from tests.hostedbuild import HOSTED, ROOT, SRC

OFFERED, SHORT, STRANGER = (
    int(getattr(abi.const, f"SD_REASON_{name}")) for name in ("none", "short_lived", "peer_plain")
)
Lives = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    made = tmp_path_factory.mktemp("lives") / "lives"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-DSD_HOSTED=1",
                    f"-I{ROOT / 'sdlib/include'}", f"-I{SRC}", "-o", made, HOSTED / "lives.c"], check=True)

    def ask(age: int, *before: int | str) -> tuple[int, int]:
        ahead, reason = subprocess.check_output([made, str(age), *map(str, before)], text=True).split()
        return int(ahead), int(reason)

    return ask


def test_with_nothing_known_all_are_offered(lives: Lives) -> None:
    for age in (0, 1, 8, 9, 100, 5000, 1 << 40):
        assert lives(age)[1] == OFFERED
    assert lives(8)[0] == 4096 - 8


@pytest.mark.parametrize(("life", "offered"), [(20, False), (60, False), (200, False), (400, False), (1500, True),
                                               (3000, True), (50_000, True)])
def test_who_lives_as_long_as_those_before(lives: Lives, life: int, offered: bool) -> None:
    ahead, reason = lives(8, *[life] * 20)
    assert (reason == OFFERED) is offered
    assert ahead < 2 * life


def test_few_are_needed_to_learn_it(lives: Lives) -> None:
    assert lives(8, *[200] * 3)[1] == OFFERED
    assert lives(8, *[200] * 8)[1] == SHORT


def test_who_has_outlived_those_before_is_offered(lives: Lives) -> None:
    before = [200] * 50
    assert [lives(age, *before)[1] for age in (8, 64, 128, 256, 300)] == [SHORT, SHORT, SHORT, OFFERED, OFFERED]


def test_one_long_among_many_short_ones_pays_for_all(lives: Lives) -> None:
    assert lives(8, *([200] * 3 + [100_000]) * 10)[1] == OFFERED
    assert lives(8, *([200] * 30 + [100_000]) * 3 + [200] * 20)[1] == SHORT


def test_what_has_become_of_late_counts(lives: Lives) -> None:
    assert lives(8, *[200] * 100, *[4000] * 5)[1] == OFFERED
    assert lives(8, *[4000] * 100, *[200] * 10)[1] == SHORT


def test_whatever_was_before_an_old_one_is_offered(lives: Lives) -> None:
    never = [8 * (n & -n) + 1 for n in range(1, 2000)]  # of those of any age half are over before they are twice as old
    assert lives(8, *never)[1] == SHORT
    assert lives(1 << 14, *never, *["away"] * 50)[1] == OFFERED


def test_strangers(lives: Lives) -> None:
    assert lives(8, *["away"] * 4)[1] == OFFERED
    strangers = ["away"] * 20
    assert [lives(age, *strangers)[1] for age in (8, 1000, 4095, 4096)] == [STRANGER, STRANGER, STRANGER, OFFERED]
    assert lives(8, *strangers, "came")[1] == OFFERED
    assert lives(8, *["away"] * 7, "came", *["away"] * 2)[1] == OFFERED
    # Of one friend in sixteen, who is found when he has proved long, only strangers are left out before.
    assert lives(8, *(["away"] * 15 + ["came"]) * 4, *["away"] * 15)[1] == STRANGER


def test_both_at_once(lives: Lives) -> None:
    assert lives(8, *[200, "away"] * 20)[1] == STRANGER, "what is mostly so is what is said"
    assert lives(8, *[200] * 20, "away")[1] == SHORT
    assert lives(8, *[1500] * 20, *["away"] * 2)[1] == OFFERED
    assert lives(8, *[1500] * 20, *["away"] * 4)[1] == STRANGER, "too little ahead for what is little likely"
