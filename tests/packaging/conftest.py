# SPDX-License-Identifier: Apache-2.0
"""What a new user has: the packages, built from the sdist, and the wheel in an environment where nothing was."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, runtime_of_our_own
from tests.once import reachable

NEEDED = ("cffi", "dpkt", "jsonschema", "prometheus_client", "pyyaml", "rich")
"""As pyproject.toml says; from the lock, so that nothing new comes in by itself."""


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 150) -> str:
    done = subprocess.run([str(word) for word in command], env=env, cwd=cwd, capture_output=True, text=True,
                          timeout=timeout, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def pip(home: Path, *words: str | Path) -> None:
    """The pip of our own environment, for the one at `home`."""
    run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", home / "bin" / "python", *words)


@pytest.fixture(scope="module")
def sd_env() -> Iterator[dict[str, str]]:
    """Of each module its own: what the pages say is said of one who has nothing else under sdrun."""
    with runtime_of_our_own() as env:
        yield env


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make package` builds it from nothing but the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run("make", "-C", ROOT, "package", f"DIST={folder}", timeout=600)
    [sdist], [made], [_] = (list(folder.glob(pattern)) for pattern in ("*.tar.gz", "*.whl", "*.deb"))
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert not [name for name in names if name.endswith((".so", ".img", ".o"))], "the sdist holds what was built"
    return made


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's folder; the commands are in bin/. Others than its maker may enter it."""
    home = tmp_path_factory.mktemp("installed") / "env"
    reachable(home.parent)
    run(sys.executable, "-m", "venv", "--without-pip", home)
    pip(home, "install", "-c", ROOT / "requirements.lock", *NEEDED)
    pip(home, "install", "--no-index", wheel)
    return home
