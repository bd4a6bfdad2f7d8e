# SPDX-License-Identifier: Apache-2.0
"""What is made once for all workers of a session (pytest-xdist runs several, each with session fixtures of its own)."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest


def shared(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all workers of this session see."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    folder.mkdir(exist_ok=True)
    return folder


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, which the first who needs it has made under another name; the others wait for it."""
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            fresh = target.with_name(f"{target.name}.new")
            make(fresh)
            fresh.rename(target)
    return target


def reachable(folder: Path) -> None:
    """Others than who runs the tests may look into `folder`, however deep a worker's lies."""
    for place in (folder, *folder.parents):
        if place == Path(tempfile.gettempdir()):
            break
        place.chmod(place.stat().st_mode | 0o055)


__all__ = ["once", "reachable", "shared"]
