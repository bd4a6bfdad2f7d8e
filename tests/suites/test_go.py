# SPDX-License-Identifier: Apache-2.0
"""The Go library's own tests, written by others: none that passes natively may fail or hang under sdrun.

Debian's golang packages have them.  Go makes its system calls itself, from many threads, waits for edges of epoll, and
its tests start the same program several times with the same sockets.  A package's tests run under sdrun with eager
upgrade; those that do not pass there are run again natively, and fail the test if one of them passes.  The report says
how many ends of connections shared memory carried.

`make suites` runs them, `make test` does not: they take minutes to compile.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness import Runner

# About half of the ends that shared memory carries on an idle machine.
PACKAGES = {"net": 20, "net/http": 300, "net/rpc": 3, "net/smtp": 3, "net/http/httputil": 50, "crypto/tls": 120}
LIMIT_S = 400
_OUTCOME = re.compile(rb"^\s*--- (PASS|FAIL|SKIP): (\S+)", re.MULTILINE)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500),
              pytest.mark.skipif(not os.environ.get("SDRUN_SUITES"), reason="minutes: make suites")]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Where Go's sources are, and an environment to compile in, offline."""
    folder = tmp_path_factory.mktemp("go")
    env = {**os.environ, "GOCACHE": str(folder / "cache"), "GOPATH": str(folder / "path"), "GOFLAGS": "-mod=mod",
           "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    root = subprocess.run(["go", "env", "GOROOT"], env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Path(root.strip()) / "src", env


def outcomes(said: bytes) -> dict[str, str]:
    """What became of each test."""
    return {name.decode(): outcome.decode() for outcome, name in _OUTCOME.findall(said)}


@pytest.mark.parametrize("package", PACKAGES)
def test_go(package: str, go: tuple[Path, dict[str, str]], shm: Runner, tmp_path: Path) -> None:
    sources, env = go
    binary = tmp_path / "package.test"
    subprocess.run(["go", "test", "-c", "-o", binary, package], env=env, cwd=sources, check=True)
    command: list[str | Path] = [binary, "-test.short", "-test.v", f"-test.timeout={LIMIT_S}s"]
    program = shm.start(*command, cwd=sources / package)
    status = program.wait(LIMIT_S + 60)
    program.close()
    here = outcomes(program.stdout)
    assert "PASS" in here.values(), program.describe()
    if status:
        done = subprocess.run(command, cwd=sources / package, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env=env, check=False)
        there = outcomes(done.stdout)
        worse = [name for name, outcome in there.items() if outcome == "PASS" and here.get(name) != "PASS"]
        assert not worse, f"{worse} pass natively\n{program.describe()}"
    report = program.report()
    assert report.shm >= PACKAGES[package], report
