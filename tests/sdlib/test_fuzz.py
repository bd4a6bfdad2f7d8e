# SPDX-License-Identifier: Apache-2.0
"""A hostile peer writes anything into the segment while this side works; under the address and undefined sanitizers.

Seeds that have found something are kept in tests/hosted/seeds.txt. `make fuzz` makes ten million calls and more.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.fuzzing import cases
from tests.hostedbuild import HOSTED, SANITIZED, build

CALLS = cases(300_000, 12_000_000)
FOUND = [line.split()[0] for line in (HOSTED / "seeds.txt").read_text().splitlines() if line[:1].isdigit()]
DRIVERS = ("fuzz.c", "fuzz_peer.c", "fuzz_kernel.c", "around.c")


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fuzzer"), DRIVERS, SANITIZED)


def fuzz(program: Path, seed: str, calls: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, seed, str(calls)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=1500, check=False)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_hostile_peer(fuzzer: Path, seed: str) -> None:
    result = fuzz(fuzzer, seed, CALLS)
    assert result.returncode == 0, result.stdout[-3000:]
    numbers = re.search(r"(\d+) calls, (\d+) sent, (\d+) received.* (\d+) dropped, (\d+) on ring, (\d+) back",
                        result.stdout)
    assert numbers
    calls, sent, received, dropped, on_ring, back = map(int, numbers.groups())
    assert calls == CALLS and min(sent, received) > calls // 10, "hardly anything was carried"
    assert dropped and on_ring and back


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once(fuzzer: Path, seed: str) -> None:
    result = fuzz(fuzzer, seed, 200_000)
    assert result.returncode == 0, result.stdout[-3000:]


CUT = "    first = min_u64(n, e->bytes - at);\n"
TAKE, PUT = "    if (unlikely(sd_copy_user(dst", "    if (unlikely(put(e, e->tx_ring"


@pytest.mark.parametrize("file, old, new, what", [
    ("ring/ring.c", f"{CUT}{TAKE}", f"    first = n;\n{TAKE}", "heap-buffer|param-overlap"),
    ("ring/ring.c", f"{CUT}{PUT}", f"    first = n;\n{PUT}", "heap-buffer"),
    ("ring/ring.c", "if (unlikely(n > e->bytes))", "if (false)", "heap-buffer|cannot be"),
    ("sock/fast.c", "at + n > s->e.bytes || ", "", "heap-buffer"),
    ("sock/tx.c", "    return room < 0 || (u64)room >= need;\n}\n\nstatic inline u64 spare",
     "    return room >= (i64)need;\n}\n\nstatic inline u64 spare", "does not come to an end"),
])
def test_the_fuzzer_would_see_it(fuzzer: Path, tmp_path: Path, file: str, old: str, new: str, what: str) -> None:
    """A check less, and the same run fails: neither the driver nor the sanitizer is asleep."""
    original = (HOSTED.parent.parent / "sdlib/src" / file).read_text()
    assert original.count(old) == 1, f"{file} has changed: adapt the mutant"
    mutated = build(tmp_path, DRIVERS, SANITIZED, {file: original.replace(old, new)}, reuse=fuzzer.parent)
    result = fuzz(mutated, "1", 300_000)
    assert result.returncode != 0 and re.search(what, result.stdout), result.stdout[-2000:]
