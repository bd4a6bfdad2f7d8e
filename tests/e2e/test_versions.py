# SPDX-License-Identifier: Apache-2.0
"""Two versions on one host: nothing is lost, nothing refused, and what cannot be spoken about stays on TCP.

Two builds that can speak with each other work together as one; but one does not touch the other's libraries.

The other version is made of this checkout, so that it needs no history: other layouts of what is shared, other numbers
of hypercalls, other messages, and so other version numbers; built as a wheel is, in an environment of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.test_live_policy import Pair
from tests.harness import ROOT, SDRUN, Program, Runner
from tests.monitor import support
from tests.sdtrace.support import supervisor_of

pytestmark = pytest.mark.skipif(os.environ.get("SDRUN_FAULTS") != "all", reason="builds it all: make faults")

PARTS = ("sdlib", "sdtrace", "monitor", "policies", "tools", "setup.py", "pyproject.toml", "Makefile", "README.md",
         "LICENSE")
CHANGES = {
    "sdlib/include/sd_abi.h": (
        (r"#define SD_ABI_VERSION (\d+)", r"#define SD_ABI_VERSION 9\1"),
        (r"SD_HC_OFFER = 2", "SD_HC_OFFER = 3"),
        (r"SD_HC_ATTACH = 3", "SD_HC_ATTACH = 2"),
    ),
    "sdlib/include/sd_area.h": ((r"#define SD_AREA_MAGIC 0x\w+", "#define SD_AREA_MAGIC 0x5959595959595959"),),
    "sdlib/include/sd_segment.h": (
        (r"#define SD_SEG_MAGIC 0x\w+", "#define SD_SEG_MAGIC 0x5858585858585858"),
        (r"#define SD_SEG_HDR_BYTES 4096", "#define SD_SEG_HDR_BYTES 8192"),
    ),
    "sdlib/wire/messages.py": (
        (r"PROTOCOL_VERSION: Final = (\d+)", r"PROTOCOL_VERSION: Final = 9\1"),
        (r'Type.OFFER: Layout\(Offer, Struct\("<QQ"\)', 'Type.OFFER: Layout(Offer, Struct("<QQ16x")'),
        (r'Type.PAIRED: Layout\(Paired, Struct\("<QIIII"\)', 'Type.PAIRED: Layout(Paired, Struct("<QIIII8x")'),
    ),
}
TWIN_CHANGES = {"sdlib/build_image.py": ((r'"-O2", "-g"', '"-O1", "-g"'),)}
"""What is shared and said is as it was, but in the library nothing is where it was."""


LINK = "other.pth"


@dataclass
class Version:
    """How to start its programs and its monitor."""

    sdrun: Path
    monitor: Sequence[str | Path]


THIS = Version(SDRUN, support.THIS)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return made_of(tmp_path_factory.mktemp("other"), CHANGES)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Of the same version numbers."""
    return made_of(tmp_path_factory.mktemp("twin"), TWIN_CHANGES)


def made_of(home: Path, all_changes: Mapping[str, tuple[tuple[str, str], ...]]) -> Version:
    """An environment like the one that the wheel makes, with this one's third-party packages."""
    tree, environment = home / "tree", home / "env"
    tree.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tree / part)
    for generated in (*(tree / "sdlib").glob("_sdffi*"), tree / "sdlib" / "_image"):
        shutil.rmtree(generated) if generated.is_dir() else generated.unlink()
    for name, changes in all_changes.items():
        text = (tree / name).read_text()
        for old, new in changes:
            text, count = re.subn(old, new, text)
            assert count == 1, (name, old)
        (tree / name).write_text(text)
    build: list[str | Path] = [sys.executable, "setup.py", "-q", "build", "--build-base", home / "build"]
    subprocess.run(build, cwd=tree, check=True, timeout=300)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    shutil.copytree(tree / "build" / "wheel" / "filters", environment / "share" / "sdrun")
    (script,) = (home / "build").glob("scripts-*/sdrun")
    shutil.copy2(script, environment / "bin" / "sdrun")
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / LINK).write_text(f"{tree}\n{sysconfig.get_path('purelib')}\n")
    return Version(environment / "bin" / "sdrun", [environment / "bin" / "python", "-I", tree / "monitor/__main__.py"])


@pytest.mark.parametrize("newer", ["monitor", "programs"])
def test_monitor_of_another_version_takes_over(shm: Runner, tmp_path: Path, other: Version, newer: str) -> None:
    """Upgrade, or roll back, the monitor under programs that run, and then back again.

    Connections on shared memory stay there. New ones stay on TCP, until there is a monitor that can be spoken with.
    """
    own, strange = (THIS, other) if newer == "monitor" else (other, THIS)
    shm.sdrun = own.sdrun
    pair = Pair(shm, tmp_path, monitor=own.monitor)
    pair.open(0, 1)
    for command, number in ((strange.monitor, 2), (own.monitor, 4)):
        pair.monitor.replace(command)
        pair.open(number, number + 1)
        pair.beats(20)
    pair.until(lambda: pair.monitor.log.read_text().count(" paired ") == 6, "all are paired")
    pair.beats(20)
    assert "this monitor speaks protocol version" in pair.monitor.log.read_text()
    for program in pair.finish():
        report = program.report()
        assert (report.shm, report.total) == (6, 6), report
        assert not report.raw["connections"]["moved_back"], report


@pytest.mark.parametrize("server_is", ["this", "other"])
@pytest.mark.parametrize("monitor_is", ["this", "other"])
def test_two_versions_connect(shm: Runner, tmp_path: Path, other: Version, server_is: str, monitor_is: str) -> None:
    """One end of each; whose ever monitor it is, the bytes go by TCP, and both programs know nothing of it."""
    versions = (THIS, other) if server_is == "this" else (other, THIS)
    monitor = THIS if monitor_is == "this" else other
    shm.sdrun = versions[0].sdrun
    pair = Pair(shm, tmp_path, monitor=monitor.monitor, driver_sdrun=versions[1].sdrun)
    pair.open(0, 1)
    pair.beats(10)
    for program in pair.finish():
        report = program.report()
        assert (report.shm, report.total) == (0, 2), report
        (reason,) = report.raw["connections"]["tcp_reasons"]
        assert reason in ("monitor-unreachable", "peer-not-under-sdrun"), report


@contextlib.contextmanager
def replaced(version: Version) -> Iterator[None]:
    """What starts from there now is of this version."""
    (link,) = version.sdrun.parent.parent.glob(f"lib/python*/site-packages/{LINK}")
    was = link.read_text()
    link.write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    try:
        yield
    finally:
        link.write_text(was)


def kill_supervisor(program: Program) -> None:
    """And wait for the one that comes after it."""
    before = supervisor_of(program)
    os.kill(before, signal.SIGKILL)
    program.until(lambda: supervisor_of(program) != before, "a successor")


def test_the_installation_is_replaced_under_programs(shm: Runner, tmp_path: Path, other: Version) -> None:
    """And then supervisors are killed: those that come are of this version, keepers and libraries of the other one."""
    shm.sdrun = other.sdrun
    pair = Pair(shm, tmp_path, monitor=other.monitor)
    pair.open(0, 1)
    with replaced(other):
        for program in (pair.server, pair.driver):
            kill_supervisor(program)
        pair.open(2, 3)
        pair.beats(20)
    pair.finish()


@pytest.mark.parametrize("server_is", ["this", "twin"])
def test_two_builds_of_the_same_version(shm: Runner, tmp_path: Path, twin: Version, server_is: str) -> None:
    """One end of each, and each one's monitor in turn: all connections are on shared memory, and stay there."""
    versions = (THIS, twin) if server_is == "this" else (twin, THIS)
    shm.sdrun = versions[0].sdrun
    pair = Pair(shm, tmp_path, monitor=versions[0].monitor, driver_sdrun=versions[1].sdrun)
    pair.open(0, 1)
    for command, number in ((versions[1].monitor, 2), (versions[0].monitor, 4)):
        pair.monitor.replace(command)
        pair.open(number, number + 1)
        pair.beats(20)
    for program in pair.finish():
        report = program.report()
        assert (report.shm, report.total) == (6, 6), report
        assert not report.raw["connections"]["moved_back"], report


def test_an_unknown_library_is_not_touched(shm: Runner, tmp_path: Path, twin: Version) -> None:
    """The installation is replaced by another build, a supervisor killed. Its successor goes on with the connections
    and pairs new ones, but what it would have to stop and change programs for is refused, and says why."""
    shm.sdrun = twin.sdrun
    pair = Pair(shm, tmp_path, monitor=twin.monitor)
    pair.open(0, 1)
    with replaced(twin):
        for program in (pair.server, pair.driver):
            kill_supervisor(program)
        pair.open(2, 3)
        for options in ([], ["--no-children"]):
            command: list[str | Path] = [SDRUN, "--detach", str(pair.server.pid), *options]
            detach = subprocess.run(command, env=pair.env, capture_output=True, text=True, timeout=30, check=False)
            assert detach.returncode and "another version" in detach.stderr, detach
        pair.open(4, 5)
        pair.beats(20)
    pair.finish()
