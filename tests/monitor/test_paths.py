# SPDX-License-Identifier: Apache-2.0
"""Where a monitor's socket may live."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdlib.wire import paths
from sdlib.wire.paths import UnsafePath, runtime_dir

ME = os.geteuid()


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Stand-ins of /run/user and /tmp."""
    (tmp_path / "run").mkdir()
    (tmp_path / "tmp").mkdir()
    return {"run_user": str(tmp_path / "run"), "tmp": str(tmp_path / "tmp")}


def test_xdg_runtime_dir_comes_first(tmp_path: Path, places: dict[str, str]) -> None:
    (tmp_path / "run" / str(ME)).mkdir()
    found = runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}, ME, **places)
    assert found == f"{tmp_path}/socksdirect"
    assert os.stat(found).st_mode & 0o777 == 0o700
    assert runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}, ME, **places) == found, "and is found again"


def test_then_run_user(tmp_path: Path, places: dict[str, str]) -> None:
    (tmp_path / "run" / str(ME)).mkdir()
    for env in ({}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "relative"}, {"XDG_RUNTIME_DIR": "/nonexistent"}):
        assert runtime_dir(env, ME, **places) == f"{tmp_path}/run/{ME}/socksdirect"


def test_then_tmp(tmp_path: Path, places: dict[str, str]) -> None:
    assert runtime_dir({}, ME, **places) == f"{tmp_path}/tmp/socksdirect-{ME}"


@pytest.mark.skipif(ME != 0, reason="needs root to give things away")
def test_directories_of_others_are_not_used(tmp_path: Path, places: dict[str, str]) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    found = runtime_dir({"XDG_RUNTIME_DIR": str(theirs)}, ME, **places)
    assert found == f"{tmp_path}/tmp/socksdirect-{ME}"
    os.chown(found, 65534, 65534)
    with pytest.raises(UnsafePath, match="belongs to uid 65534"):
        runtime_dir({}, ME, **places)


def test_link_file_and_open_directory_are_refused(tmp_path: Path, places: dict[str, str]) -> None:
    name = tmp_path / "tmp" / f"socksdirect-{ME}"
    name.symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="not a directory"):
        runtime_dir({}, ME, **places)
    name.unlink()
    name.write_text("")
    with pytest.raises(UnsafePath, match="not a directory"):
        runtime_dir({}, ME, **places)
    name.unlink()
    name.mkdir(mode=0o755)
    with pytest.raises(UnsafePath, match=r"open to others \(mode 755\); chmod 700"):
        runtime_dir({}, ME, **places)


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UnsafePath, match="No such file or directory; set XDG_RUNTIME_DIR"):
        runtime_dir({}, ME, "/nonexistent", "/nonexistent")


def test_socket_names() -> None:
    assert paths.checked("/a/b") == "/a/b"
    for wrong in ("", "a", "/" + "x" * 107):
        with pytest.raises(UnsafePath):
            paths.checked(wrong)
