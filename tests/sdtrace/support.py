# SPDX-License-Identifier: Apache-2.0
"""What the tests of the supervisor have in common."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from tests.harness import ROOT, Program

_KEEPER = ("keeper", "notifs", "rescue", "vault", "channel", "spawn", "obituary", "filter")


def keeper_library(folder: Path) -> Path:
    """The keeper's functions, to be called one by one (keeper_by_hand.c), built in `folder`."""
    library, launch = folder / "keeper.so", ROOT / "sdtrace" / "launch"
    sources = [Path(__file__).parent / "keeper_by_hand.c", *(launch / f"{part}.c" for part in _KEEPER)]
    include = [f"-I{launch}", f"-I{ROOT / 'sdlib' / 'include'}"]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, *include, "-o", library, *sources], check=True)
    return library


def lines_of(program: Program) -> list[dict[str, Any]]:
    """The processes of a program's report."""
    lines: list[dict[str, Any]] = program.report().raw["processes"]
    return lines


def own_line(program: Program) -> dict[str, Any]:
    """The report's line of the root process."""
    return next(line for line in lines_of(program) if line["pid"] == program.pid)


def supervisor_of(program: Program | int, timeout: float = 10.0) -> int:
    """Pid of the supervisor of a running program (or of its pid): the process that was told this root pid."""
    wanted = f"--root-pid={program if isinstance(program, int) else program.pid}".encode()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"sdtrace.supervisor" in words and wanted in words:
                return int(folder.name)
        time.sleep(0.01)
    raise AssertionError(f"no supervisor of {program if isinstance(program, int) else program.describe()}")
