# SPDX-License-Identifier: Apache-2.0
"""The machine that figures are from, and the files of this tool on it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build" / "bench"
SDRUN = Path(sys.executable).parent / "sdrun"


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip().splitlines()[0]
    except (OSError, IndexError):
        return ""


def congestion_controls() -> list[str]:
    """The default first, then the others that this kernel offers."""
    default = _first_line("/proc/sys/net/ipv4/tcp_congestion_control") or "cubic"
    offered = _first_line("/proc/sys/net/ipv4/tcp_available_congestion_control").split()
    return [default, *(name for name in offered if name != default)]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _virtual() -> str:
    """`hypervisor` is a CPU flag that only a guest has."""
    return "virtual" if " hypervisor" in Path("/proc/cpuinfo").read_text() else "physical"


def _commit() -> str:
    argv = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def describe() -> dict[str, Any]:
    """What a reader has to know to judge the figures."""
    return {
        "kernel": platform.release(), "cpus": len(os.sched_getaffinity(0)), "cpu": _cpu_model(), "machine": _virtual(),
        "congestion_control": congestion_controls()[0], "load_before": os.getloadavg()[0],
        "commit": _commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def placements() -> dict[str, tuple[int, int] | None]:
    """Where the two ends of a connection run; None: where the kernel puts them."""
    cpus = sorted(os.sched_getaffinity(0))
    result: dict[str, tuple[int, int] | None] = {}
    if len(cpus) > 1:
        result["two cores"] = (cpus[0], cpus[1])
    return {**result, "one core": (cpus[0], cpus[0]), "unpinned": None}
