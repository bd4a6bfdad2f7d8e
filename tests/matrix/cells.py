# SPDX-License-Identifier: Apache-2.0
"""Compile the programs of the matrix, run them, read what they say."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.guestbuild import C_COMPILERS, C_FLAGS
from tests.harness import Mode, Report, Runner
from tests.once import once

HERE: Final = Path(__file__).resolve().parent
STATES: Final = ("tcp", "offered", "switching", "unread", "full", "half-closed")
COLUMNS: Final = ("glibc", "glibc-static", "musl-static", "Python", "Go", "node", "Java")
IMPOSSIBLE: Final = 77
"""Exit status of a cell that this machine cannot have (no cgroup v2, no root)."""

ON_RING: Final = frozenset(STATES) - {"tcp", "offered"}
"""States in which shared memory must have carried the connection, whatever was done to the process."""


@dataclass(frozen=True)
class Cell:
    """What came of one."""

    holder: int
    peer: int
    path: str = ""
    """`shm`, or the reason why TCP; with what moved it back."""

    @property
    def possible(self) -> bool:
        """Could it be had here?"""
        return self.holder != IMPOSSIBLE

    @property
    def right(self) -> bool:
        """Did both ends see what they should?"""
        return self.holder == 0 and self.peer == 0


class Programs:
    """Each compiled once."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`."""
        self._folder = folder

    def c(self, flavour: str) -> Path:
        """The C program for a libc."""
        def make(target: Path) -> None:
            sources = [HERE / "cell.c", HERE / "rows.c", HERE / "children.c"]
            subprocess.run([*C_COMPILERS[flavour], *C_FLAGS, "-o", target, *sources], check=True)
            target.chmod(0o755)

        return once(self._folder / f"cell-{flavour}", make)

    def _go(self) -> Path:
        def make(target: Path) -> None:
            env = {**os.environ, "GOCACHE": str(self._folder / "gocache"), "GOPATH": str(self._folder / "gopath"),
                   "GO111MODULE": "off", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
            subprocess.run(["go", "build", "-o", target, HERE / "other.go"], check=True, env=env, cwd=HERE)

        return once(self._folder / "other-go", make)

    def _java(self) -> Path:
        def make(target: Path) -> None:
            subprocess.run(["javac", "-d", target, HERE / "other.java"], check=True)

        return once(self._folder / "java", make)

    def command(self, column: str, state: str) -> list[str | Path]:
        """What runs all rows of a column in a state."""
        if column in C_COMPILERS:
            return [self.c(column), "run", state]
        cell = self.c("glibc")
        if column == "Python":
            return ["python3", HERE / "other.py", cell, state]
        if column == "Java":
            return ["java", "-Xshare:auto", "-cp", self._java(), "Other", cell, state]
        return [self._go(), cell, state] if column == "Go" else ["node", HERE / "other.js", cell, state]


def _path(report: Report | None, pid: int) -> str:
    if report is None:
        return ""
    for line in report.raw["processes"]:
        connections = line.get("connections")
        if line["pid"] == pid and connections and connections["total"]:
            how = "shm" if connections["shm"] else "tcp: " + (", ".join(connections["tcp_reasons"]) or "?")
            back = ", ".join(connections["moved_back"])
            return f"{how}, back: {back}" if back else how
    return "tcp: not seen"


def options(state: str) -> list[str]:
    """What sdrun is told for a state."""
    return ["--set", "upgrade=never"] if state == "tcp" else []


def on_ring(found: dict[str, Cell]) -> bool:
    """Were all carried by shared memory? Who is killed early may not have come that far."""
    return all(cell.path.startswith("shm") for name, cell in found.items()
               if cell.possible and not name.startswith("SIGKILL"))


def run(runner: Runner, programs: Programs, column: str, state: str, *, pause_ms: int = 15) -> dict[str, Cell]:
    """All rows of a column in a state, by name. `pause_ms`: before each, for who brings its two ends together."""
    runner.options[:] = options(state)
    runner.env = {**runner.env, "CELL_PAUSE_MS": str(pause_ms)}
    program = runner.run(*programs.command(column, state), timeout=300)
    return parse(program.stdout, None if runner.mode is Mode.NATIVE else program.report())


def parse(printed: bytes, report: Report | None) -> dict[str, Cell]:
    """The cells of a run, from what it has printed and its report."""
    cells = {}
    for line in printed.decode().splitlines():
        name, pid, holder, peer = line.rsplit(" ", 3)
        cells[name] = Cell(int(holder), int(peer), _path(report, int(pid)))
    return cells
