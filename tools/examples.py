# SPDX-License-Identifier: Apache-2.0
"""Runs the examples, natively and under sdrun in turn, and draws what came out: `python -m tools.examples DIRECTORY`.

An example is examples/NAME/run.sh, which is told `sdrun --` or nothing and prints "result: N", requests in a second.
Under sdrun its programs' reports are kept, so that it can be said how many ends of connections were on shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from tools.net import free_port

ROOT: Final = Path(__file__).resolve().parent.parent
BIN: Final = Path(sys.executable).parent
TITLES: Final = {
    "web": "nginx, gunicorn and redis: requests/s",
    "go-service": "a Go service and its clients: requests/s",
    "postgres": "PostgreSQL, pgbench -S, one client: transactions/s",
}
_PORTS: Final = ("REDIS_PORT", "APP_PORT", "WEB_PORT", "PG_PORT")
_LIMIT_S: Final = 120


@dataclass
class Outcome:
    """Of one example."""

    name: str
    native: list[float] = field(default_factory=list)
    sdrun: list[float] = field(default_factory=list)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the last run under sdrun, by program."""

    @property
    def ratio(self) -> float:
        """Medians."""
        return median(self.sdrun) / median(self.native)


class ExampleFailed(Exception):
    """What it has printed."""


@contextmanager
def _surroundings() -> Iterator[dict[str, str]]:
    """An own runtime directory, so an own monitor, which leaves when it is idle; the commands of this environment."""
    with tempfile.TemporaryDirectory(prefix="sdex-", dir="/tmp", ignore_cleanup_errors=True) as runtime:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SD_", "SOCKSDIRECT_", "XDG_"))}
        yield {**env, "XDG_RUNTIME_DIR": runtime, "XDG_CONFIG_HOME": f"{runtime}/config",
               "PATH": f"{BIN}:{env['PATH']}"}


def _once(name: str, prefix: tuple[str, ...], env: dict[str, str], seconds: int) -> float:
    ports = {variable: str(free_port()) for variable in _PORTS}
    done = subprocess.run([ROOT / "examples" / name / "run.sh", *prefix], capture_output=True, text=True, check=False,
                          env={**env, **ports, "SECONDS_EACH": str(seconds)}, timeout=_LIMIT_S)
    found = re.search(r"^result: ([\d.]+)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise ExampleFailed(f"{name} {' '.join(prefix)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return float(found[1])


def run(name: str, rounds: int, seconds: int) -> Outcome:
    """One example, natively and under sdrun in turn."""
    outcome = Outcome(name)
    with _surroundings() as env, tempfile.TemporaryDirectory(prefix="sdexr-", dir="/tmp") as reports:
        for _ in range(rounds):
            outcome.native.append(_once(name, (), env, seconds))
            outcome.sdrun.append(_once(name, ("sdrun", "--"), {**env, "EXAMPLE_REPORTS": reports}, seconds))
        for path in Path(reports).glob("*.json"):
            outcome.reports[path.stem] = json.loads(path.read_text())
    return outcome


def draw(outcome: Outcome, target: Path) -> None:
    """Before and after, each run a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    panel = figure.subplots()
    for place, (samples, colour) in enumerate(((outcome.native, "#404040"), (outcome.sdrun, "#c02020"))):
        panel.bar(place, median(samples), 0.6, color=colour, alpha=0.75)
        panel.plot([place] * len(samples), samples, "k.", markersize=5)
        panel.annotate(f"{median(samples):,.0f}", (place, median(samples)), ha="center", va="bottom",
                       xytext=(0, 6), textcoords="offset points")
    panel.set_xticks([0, 1], ["natively", f"under sdrun: {outcome.ratio:.2f} x"])
    panel.set_ylim(0, 1.2 * max(*outcome.native, *outcome.sdrun))
    panel.set_title(TITLES[outcome.name], fontsize="medium")
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tools.examples", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where the plots go")
    parser.add_argument("names", nargs="*", default=list(TITLES), help=", ".join(TITLES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args(argv)
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        outcome = run(name, options.rounds, options.seconds)
        draw(outcome, options.directory / f"{name}.svg")
        print(f"{name}: {median(outcome.native):,.0f} -> {median(outcome.sdrun):,.0f} ({outcome.ratio:.2f} x)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
