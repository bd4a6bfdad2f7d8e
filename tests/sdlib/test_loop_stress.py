# SPDX-License-Identifier: Apache-2.0
"""The monitor's loop in C with its threads (sdlib/src/verbs), under ThreadSanitizer and AddressSanitizer.

Two processes with a device made of sockets; programs, and somebody in Python's place (tests/hosted/loop_stress.c).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzzing import cases
from tests.hostedbuild import HOSTED, ROOT, SRC

BYTES = cases(1_000_000, 50_000_000)
CODE = ("py/bell.c", "py/copy.c", "py/end.c", "py/membarrier.c", "ring/bell.c", "ring/dates.c", "ring/ring.c",
        "ring/switch.c", "verbs/called.c", "verbs/carried.c", "verbs/held.c", "verbs/loop.c", "verbs/say.c",
        "verbs/threads.c", "verbs/verbs.c")
# It warns of fences, which ThreadSanitizer does not know: what they order are atomics, of which it complains of none.
FLAGS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-tsan", "-D_GNU_SOURCE", "-DSD_HOSTED=1",
         "-DSD_LOOP_QUEUE=512", "-DSD_LOOP_CALLED=2", "-pthread", "-fno-omit-frame-pointer")


def build(folder: Path, sanitizer: str, source: Path = SRC) -> tuple[Path, Path]:
    """The program and its device."""
    program, device = folder / "stress", folder / "libsoft.so"
    flags = [*FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{ROOT / 'sdlib/include'}",
             f"-I{source}", f"-I{HOSTED}"]
    sources = [HOSTED / "loop_stress.c", *(source / name for name in CODE)]
    subprocess.run(["gcc", *flags, "-o", program, *sources, "-ldl"], check=True)
    subprocess.run(["gcc", *flags, "-shared", "-fPIC", "-o", device, HOSTED / "softverbs.c"], check=True)
    return program, device


def run(folder: Path, program: Path, device: Path) -> subprocess.CompletedProcess[str]:
    wire = folder / "wire"
    wire.mkdir()
    env = os.environ | {"SOFTVERBS": str(wire), "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([program, device, str(BYTES)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=900, check=False)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_bytes_both_ways(tmp_path: Path, sanitizer: str) -> None:
    result = run(tmp_path, *build(tmp_path, sanitizer))
    assert result.returncode == 0 and f"{BYTES} bytes each way" in result.stdout, result.stdout[-4000:]


@pytest.mark.timeout(1000)
def test_a_look_without_the_lock_is_seen(tmp_path: Path) -> None:
    shutil.copytree(SRC, tmp_path / "src")
    file = tmp_path / "src" / "verbs" / "threads.c"
    text, look = file.read_text(), "        int ms = pause_ms(t);\n"
    unlock = "        pthread_mutex_unlock(&t->lock);\n        poll("
    assert text.count(look) == text.count(unlock) == 1
    file.write_text(text.replace(look, "").replace(unlock, unlock.replace("        poll(", f"{look}        poll(")))
    result = run(tmp_path, *build(tmp_path, "thread", tmp_path / "src"))
    assert result.returncode != 0 and "data race" in result.stdout, result.stdout[-4000:]
