# SPDX-License-Identifier: Apache-2.0
"""nginx gives way to another nginx on the same listening sockets (USR2, WINCH, QUIT), under load."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.test_attach import family
from tests.e2e.test_servers import NGINX
from tests.harness import GUESTS, PATIENCE, Mode, Program, Runner, free_port, is_listening

CLIENTS = 6
SIZE = 612


def until(what: str, condition: object) -> None:
    """Not longer than that takes on a busy machine."""
    deadline = time.monotonic() + 20 * PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def pid_in(file: Path) -> int:
    """0: none yet."""
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return 0


@contextmanager
def daemon(runner: Runner, port: int, folder: Path) -> Iterator[tuple[Program, int]]:
    """nginx, which upgrades only as a daemon; what was started, which has ended, and the master."""
    (folder / "www").mkdir()
    (folder / "www" / str(SIZE)).write_bytes(random.Random(SIZE).randbytes(SIZE))
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, sendfile="on").replace("daemon off", "daemon on"))
    nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    assert nginx, "no nginx"
    program = runner.start(nginx, "-p", folder, "-c", config).ok()  # which executes what it was started as
    until("a pid file", lambda: pid_in(folder / "nginx.pid") and is_listening(port))
    try:
        yield program, pid_in(folder / "nginx.pid")
    finally:
        for file in folder.glob("nginx.pid*"):
            with suppress(OSError, ValueError):
                for pid in family(int(file.read_text())):
                    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Not even a zombie that nobody waits for."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_nginx_under_load(runner: Runner, tmp_path: Path) -> None:
    """No request fails, before, between and after; connections of old and of new workers are on shared memory."""
    port = free_port()
    with daemon(runner, port, tmp_path) as (program, old):
        client = runner.start(sys.executable, GUESTS / "keepalive.py", str(port), str(CLIENTS), f"/{SIZE}",
                              tmp_path / "www" / str(SIZE))
        client.until(lambda: b"open" in client.stdout, "answers for all")
        time.sleep(0.5)
        old_workers = family(old)[1:]
        os.kill(old, signal.SIGUSR2)
        until("another master", lambda: pid_in(tmp_path / "nginx.pid") not in (0, old))
        new = pid_in(tmp_path / "nginx.pid")
        until("its workers", lambda: len(family(new)) == 3)
        time.sleep(0.3)  # both serve
        os.kill(old, signal.SIGWINCH)
        until("the old workers' end", lambda: not any(map(alive, old_workers)))
        assert alive(old)
        os.kill(old, signal.SIGQUIT)
        until("the old master's end", lambda: not alive(old))
        time.sleep(0.5)
        new_workers = family(new)[1:]
        client.send(signal.SIGUSR1)
        assert client.wait() == 0, client.describe()
        answers, connections = map(int, client.stdout.split()[1:3])
        assert answers > 100 and connections > CLIENTS, client.describe()
        os.kill(new, signal.SIGQUIT)
        until("the new master's end", lambda: not alive(new))
    if runner.mode is Mode.SHM:
        report = program.report()
        on_shm = {line["pid"] for line in report.raw["processes"] if line["connections"]["shm"]}
        assert on_shm & set(old_workers) and on_shm & set(new_workers), report.raw["processes"]
        assert client.report().shm > CLIENTS  # one may be over before it moves
