# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md, from what the behaviours did: `python -m tests.differential.table` writes it (`make table`).

A row is a call with a flag or an option. What carried it is the report's word about the processes of that behaviour,
on connections that were in shared memory when it began; that nothing differs from the kernel is what its test shows.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import tests.differential.behaviours  # noqa: F401  registers them
from tests.differential.runs import Runs
from tests.differential.worlds import BEHAVIOURS, WORLDS, Behaviour, Ends
from tests.guestbuild import Guests
from tests.harness import ROOT, end_monitor

PAGE: Final = ROOT / "docs" / "compatibility.md"
_WORLD: Final = "before"
_TRIES: Final = 4
_HEAD: Final = """\
# Compatibility

What happens to each call on a connection that is in shared memory. Made by `make table` from the results of
`tests/differential`; a test fails when this page is not what they say. Each row's test runs the same calls natively
and under `sdrun`, in {worlds} placements and moments of upgrade (`tests/differential/worlds.py`), and compares
every value, errno, event mask and byte count.

| under sdrun | |
|---|---|
| accelerated | shared memory carried every byte of the test, and nothing moved back |
| moves back | the connection, or one direction, went on by TCP; the report counts the reason given |
| kernel | no connection was in shared memory: what the call is about happens before, or without, one |
| differs | not as the kernel does it: a known gap, and the test is expected to fail |

"""


def carried(behaviour: Behaviour, ends: Ends, sent: int) -> str:
    """The third column."""
    why = behaviour.broken.get(_WORLD, behaviour.broken.get("all"))
    if why:
        return f"differs: {why}"
    if ends.moved_back:
        # The other end answers with this; whether before it has moved itself depends on the moment.
        own = set(ends.moved_back) - {"unsupported-call"} or set(ends.moved_back)
        return f"moves back: {', '.join(sorted(own))}"
    return "accelerated" if ends.shm >= 2 and ends.shm_bytes >= sent else "kernel"


def _as_expected(runs: Runs, behaviour: Behaviour) -> bool:
    """Is it as natively, or differs if it is known to? A busy machine gets more tries: packets come late there."""
    broken = _WORLD in behaviour.broken or "all" in behaviour.broken
    for attempt in range(_TRIES):
        natively = runs.reference(behaviour.name, anew=attempt > 0)
        if (natively != runs.outcome(_WORLD, behaviour.name, anew=attempt > 0).transcript) == broken:
            return True
    return False


def page(runs: Runs) -> str:
    """The whole page. AssertionError if a behaviour is not what the page would say."""
    shown = [each for each in BEHAVIOURS.values() if not each.only or _WORLD in each.only]
    wrong = [each.name for each in shown if not _as_expected(runs, each)]
    assert not wrong, f"not as expected: {wrong}"
    rows: list[tuple[str, str, str, str]] = []
    for behaviour in shown:
        outcome = runs.outcome(_WORLD, behaviour.name)
        what = carried(behaviour, runs.ends(_WORLD, behaviour.name), outcome.sent)
        rows += [(call, flag, what, behaviour.name) for call, flag in behaviour.rows]
    lines = [f"| {call} | {flag} | {what} | `{name}` |" for call, flag, what, name in sorted(rows)]
    head = _HEAD.format(worlds=len(WORLDS)) + "| call | with | under sdrun | test |"
    return "\n".join([head, "|---|---|---|---|", *lines, ""])


def main() -> None:
    """Write it."""
    with tempfile.TemporaryDirectory(prefix="sdtable-") as name:
        folder = Path(name)
        env = {**os.environ, "XDG_RUNTIME_DIR": name, "XDG_CONFIG_HOME": f"{name}/config"}
        (folder / "references").mkdir()
        runs = Runs(Guests(folder)("agent"), folder / "runs", env, folder / "references")
        for behaviour in BEHAVIOURS:
            runs.reference(behaviour)
            runs.outcome(_WORLD, behaviour)
        try:
            PAGE.write_text(page(runs))
        finally:
            runs.close()
            end_monitor(folder)


if __name__ == "__main__":
    main()
