# SPDX-License-Identifier: Apache-2.0
"""All behaviours of tests/differential between two hosts, natively and on mirrored rings: what differs, as a list.

    python -m tests.hosts.behaviours [NAME...]

Minutes, so by hand; test_behaviours.py has a part.  Those that two hosts cannot have natively are left out.  Each that
differs is tried twice more: how much fits where, and what is there already, depends on the moment, natively as well.
"""

from __future__ import annotations

import difflib
import sys
import tempfile
from pathlib import Path

import tests.differential.behaviours  # noqa: F401  registers them
from tests.differential import side
from tests.differential.worlds import BEHAVIOURS
from tests.guestbuild import Guests
from tests.hosts.stage import FarPlace
from tests.hosts.world import World

SETTLE_S = 0.02
"""A FIN overtakes the words of two monitors, and theirs are what a program is told by."""
TRIES = 3


def differs(native: FarPlace, far: FarPlace, name: str) -> str:
    """How; "" if it does not."""
    for last in range(1 - TRIES, 1):
        wanted = native.run(BEHAVIOURS[name]).transcript
        if wanted and wanted[-1].startswith("failed"):
            return f"natively: {wanted[-1][:200]}"
        got = far.run(BEHAVIOURS[name]).transcript
        if got == wanted:
            return ""
        if not last:
            return "\n".join(difflib.unified_diff(wanted, got, "native", "far", lineterm="", n=4))
    return ""


def main(names: list[str]) -> int:
    """How many differ."""
    side.Pace.settle_s = SETTLE_S
    found: dict[str, str] = {}
    chosen = names or [name for name, each in BEHAVIOURS.items() if not each.only]
    with tempfile.TemporaryDirectory(prefix="sdhosts-") as folder:
        agent = Guests(Path(folder))("agent")
        world = World(Path(folder), soft=True)
        try:
            world.start()
            native, far = FarPlace(world, agent, native=True), FarPlace(world, agent)
            for name in chosen:
                how = differs(native, far, name)
                print("same   " if not how else "DIFFERS", name, flush=True)
                if how:
                    found[name] = how
                    print(how, flush=True)
        finally:
            world.close()
    print(f"{len(chosen)} behaviours, {len(found)} differ: {' '.join(found)}")
    return len(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
