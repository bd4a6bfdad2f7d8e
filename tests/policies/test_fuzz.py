# SPDX-License-Identifier: Apache-2.0
"""Garbled policy files: each is a policy or one line with file, line and column; nothing else may come out."""

from __future__ import annotations

import random
import re
from pathlib import Path

from policies import PolicyError
from policies.loader import PACKAGED_DIR, read_layer
from tests.fuzzing import cases

CASES = cases(400, 100_000)
PLACE = re.compile(r"[^\n]*fuzz\.yaml:\d+:\d+: [^\n]+; [^\n]+")
SEEDS = [path.read_text() for path in sorted(Path(PACKAGED_DIR).glob("*.yaml"))]
SEEDS.append("""version: 1
default: accelerate
apps:
  - match: {program: "nginx*", uid: 0}
    rules:
      - {dir: in, tcp: "0.0.0.0/0:80-443", action: accelerate}
      - {dir: out, tcp: "10.0.0.0/8:*", action: accelerate, transport: [shm]}
      - {dir: out, tcp: "*:25", action: deny, errno: EACCES}
    upgrade: {after_ops: 8}
    limits: {ring: 256KiB, total: 256MiB, connections: 10000, spin_us: 50}
    io_uring: deny
""")
TOKENS = ["&a", "*a", "<<: *a", "!!python/object:os.system", "{", "}", "[", "]", ": ", "- ", "\n", "  ", "\t", '"', "'",
          "|", ">", "---\n", "...\n", "null", "~", "true", "1e999", "-1", "0x7fffffffffffffff", "99999999999999999999",
          "\x00", "\x85", "\ufeff", "\ud7ff", "2001-01-01", "apps", "match", "rules", "version: 1\n", "kernel",
          "::/0:1-65536", "10.0.0.0/33:*"]


def garble(rng: random.Random, text: str) -> str:
    """A few edits as a person or a broken editor makes them."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(5):
            case 0:
                text = text[:at] + rng.choice(TOKENS) + text[at:]
            case 1:
                text = text[:at] + text[at + rng.choice([1, 2, 30]):]
            case 2:
                lines = text.splitlines(keepends=True)
                rng.shuffle(lines)
                text = "".join(lines) if rng.random() < 0.2 else text
            case 3:
                text = text[:at] + text[at:at + 40] + text[at:]
            case _:
                text = text[:at] + chr(rng.choice([rng.randrange(128), rng.randrange(0xd000)])) + text[at + 1:]
    return text


def test_any_file_is_a_policy_or_one_line_that_says_where(tmp_path: Path) -> None:
    rng = random.Random(8)
    file = tmp_path / "fuzz.yaml"
    accepted = refused = 0
    for case in range(CASES):
        text = garble(rng, rng.choice(SEEDS))
        file.write_bytes(text.encode(errors="surrogateescape"))
        try:
            read_layer(str(file))
            accepted += 1
        except PolicyError as error:
            assert PLACE.fullmatch(str(error)), (case, str(error), text)
            refused += 1
    assert accepted and refused > CASES // 4
