# SPDX-License-Identifier: Apache-2.0
"""Which monitor a client talks to: the one it is told, the host's, or the user's own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.cli import listen
from sdlib.wire import MonitorClient, MonitorUnavailable, paths
from sdlib.wire.reach import HOST_RESTARTS_S
from tests.monitor.support import MonitorProcess


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[MonitorProcess]:
    """The user's own monitor, where XDG_RUNTIME_DIR = tmp_path says."""
    (tmp_path / "socksdirect").mkdir(mode=0o700)
    made = MonitorProcess(tmp_path / "socksdirect", name="monitor.sock")
    yield made
    made.close()


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Stands in for the name of the host's monitor; nobody listens there yet."""
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(paths, "SYSTEM_SOCKET", str(tmp_path / "system" / "m.sock"))
    return paths.SYSTEM_SOCKET


def opened(tmp_path: Path, **env: str) -> str:
    """Whom a client finds without starting one."""
    client = MonitorClient.open(spawn=False, env={"XDG_RUNTIME_DIR": str(tmp_path), **env})
    client.close()
    return client.path


def test_own_one_without_a_system_one(tmp_path: Path, mine: MonitorProcess, system: str) -> None:
    assert system and opened(tmp_path) == mine.path


def test_system_one_comes_first(tmp_path: Path, mine: MonitorProcess, system: str) -> None:
    host = MonitorProcess(Path(system).parent)
    assert opened(tmp_path) == system == host.path
    host.kill()
    assert opened(tmp_path) == mine.path, "a dead one is passed over"


def test_system_one_that_is_restarted(tmp_path: Path, mine: MonitorProcess, system: str) -> None:
    """Who has had it waits longer than its start takes, and does not go elsewhere meanwhile."""
    found: list[str] = []

    def find() -> None:
        client = MonitorClient.open(spawn=False, env={"XDG_RUNTIME_DIR": str(tmp_path)}, host_away_s=HOST_RESTARTS_S)
        found.append(client.path)
        client.close()

    finder = threading.Thread(target=find)
    finder.start()
    host = MonitorProcess(Path(system).parent)
    finder.join()
    host.close()
    assert found == [system] != [mine.path]


def test_told_one_is_the_only_one(tmp_path: Path, mine: MonitorProcess, system: str) -> None:
    host = MonitorProcess(Path(system).parent)
    assert opened(tmp_path, SOCKSDIRECT_MONITOR=mine.path) == mine.path
    with pytest.raises(MonitorUnavailable, match="no monitor at /nonexistent"):
        opened(tmp_path, SOCKSDIRECT_MONITOR="/nonexistent")
    with pytest.raises(MonitorUnavailable, match="must be absolute"):
        opened(tmp_path, SOCKSDIRECT_MONITOR="relative")
    host.close()


def test_unsafe_runtime_dir_is_one_clear_line(tmp_path: Path, system: str) -> None:
    (tmp_path / "socksdirect").mkdir(mode=0o755)
    with pytest.raises(MonitorUnavailable, match="open to others"):
        opened(tmp_path)
    assert system


@pytest.mark.parametrize(("for_all", "mode"), [(False, 0o600), (True, 0o666)])
def test_who_may_connect(tmp_path: Path, for_all: bool, mode: int) -> None:
    before = os.umask(0o022)
    listener, inode = listen(str(tmp_path / "m.sock"), for_all)
    assert os.umask(before) == 0o022, "the process's own mask is back"
    with listener:
        found = os.stat(tmp_path / "m.sock")
        assert (found.st_mode & 0o777, found.st_ino) == (mode, inode)
        assert listener.type == socket.SOCK_SEQPACKET
