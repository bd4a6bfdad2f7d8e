# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL of our own, in a temporary folder; as another user if we are root, which PostgreSQL refuses to be."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.net import is_listening
from tools.sdbench.stage import NotHere, Stage

Before = Callable[[Stage], list[str]]
SCALE = 5
USER = "postgres"


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    if not found:
        raise NotHere("PostgreSQL is not installed; `make bench` installs it")
    return found[-1].parent


def _as_user() -> list[str]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"] if os.geteuid() == 0 else []


class _Home:
    """The folder of the user that PostgreSQL runs as: data, sockets, reports, the monitor of sdrun."""

    def __init__(self, stage: Stage) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sdpg-", dir="/tmp"))
        self.env = {"XDG_RUNTIME_DIR": str(self.folder), "XDG_CONFIG_HOME": str(self.folder), "PGCONNECT_TIMEOUT": "10"}
        if os.geteuid() == 0:
            owner = pwd.getpwnam(USER)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self.data = self.folder / "data"
        bin_ = _programs()
        stage.run([*_as_user(), str(bin_ / "initdb"), "-D", str(self.data), "-A", "trust", "-U", "sdbench", "-N"])
        stage.at_end(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        self.filled = False


_homes: dict[int, _Home] = {}


def _home(stage: Stage) -> _Home:
    """One for each stage."""
    if id(stage) not in _homes:
        _homes[id(stage)] = _Home(stage)
    return _homes[id(stage)]


def _prefix(stage: Stage, before: Before, home: _Home) -> list[str]:
    """The user changes before sdrun: both ends and the monitor belong to the same one, and its reports are its own."""
    stage.report_folder = home.folder
    try:
        words = before(stage)
    finally:
        stage.report_folder = None
    return [*_as_user(), *words]


@contextmanager
def serve(stage: Stage, before: Before, port: int) -> Iterator[tuple[str, int]]:
    """A server on a port and on a socket in its folder."""
    home = _home(stage)
    options = ["-D", str(home.data), "-p", str(port), "-k", str(home.folder), "-c", "fsync=off",
               "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=40"]
    argv = [*_prefix(stage, before, home), str(_programs() / "postgres"), *options]
    with stage.server(argv, lambda: is_listening(port) and _accepts(home, port), env=home.env) as running:
        if not home.filled:
            pgbench = [str(_programs() / "pgbench"), *_where(home, str(port), True)]
            stage.run([*_as_user(), *pgbench, "-i", "-q", "-s", str(SCALE), "postgres"])
            home.filled = True
        yield str(port), running.pid


def _accepts(home: _Home, port: int) -> bool:
    """The lock file says so before connections are turned away."""
    with suppress(OSError):
        return "ready" in (home.data / "postmaster.pid").read_text() and (home.folder / f".s.PGSQL.{port}").exists()
    return False


def _where(home: _Home, port: str, local: bool) -> list[str]:
    return ["-U", "sdbench", "-p", port, "-h", str(home.folder) if local else "127.0.0.1"]


def bench(stage: Stage, before: Before, port: str, local: bool, clients: int, seconds: int) -> str:
    """What `pgbench -S` prints."""
    home = _home(stage)
    argv = [*_prefix(stage, before, home), str(_programs() / "pgbench"), *_where(home, port, local), "-n", "-S",
            "-c", str(clients), "-j", str(min(clients, 2)), "-T", str(seconds), "postgres"]
    return stage.run(argv, env=home.env)
