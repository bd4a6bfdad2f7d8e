# SPDX-License-Identifier: Apache-2.0
"""30 combinations of users, network namespaces, PID namespaces and monitors; the host's monitor is started for real.

Shared memory carries a connection only between ends of one network namespace and of one user, or of two that the
host's monitor may pair. In all combinations every byte arrives. Everything happens in namespaces that the test makes:
the host's /run is not touched.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_live_policy import STAGES
from tests.harness import SDRUN, Mode, Runner, free_port
from tests.monitor.support import THIS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces and become other users")

FIRST, SECOND = 65534, 65533
PORT = 7311
SERVER = f"""
import socket
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); l.bind(("0.0.0.0", {PORT})); l.listen()
s, _ = l.accept()
while data := s.recv(100): s.sendall(data)
"""
CLIENT = f"""
import socket, sys, time
for _ in range(1000):
    try: s = socket.create_connection((sys.argv[1], {PORT})); break
    except ConnectionRefusedError: time.sleep(0.01)
deadline = time.monotonic() + float(sys.argv[2])
n = 0
while n < 300 or time.monotonic() < deadline:
    time.sleep(0.001 * (n > 300))
    m = b"%d." % n; n += 1
    s.sendall(m); got = b""
    while len(got) < len(m): got += s.recv(100)
    assert got == m, (got, m)
print("whole")
"""


@dataclass
class Host:
    """A mount namespace with a /run of its own, two network namespaces with a veth pair, and folders for all users."""

    folder: Path
    mounts: int
    nets: tuple[int, int]

    def command(self, uid: int, net: int | None, own_pids: bool, words: list[str]) -> list[str]:
        """`words` as a user in these namespaces."""
        enter = ["nsenter", f"--mount=/proc/{self.mounts}/ns/mnt"]
        if net is not None:
            enter.append(f"--net=/proc/{self.nets[net]}/ns/net")
        # The namespace's first process waits for the report, as an init would live on: with it everybody is killed.
        init = ["sh", "-c", 'report=$1; shift; "$@"; s=$?; until [ -e "$report" ]; do sleep 0.05; done; exit $s', "sh"]
        pids = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *init, words[2]] if own_pids else []
        return [*enter, *pids, "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *words]

    def environment(self, uid: int) -> dict[str, str]:
        home = self.folder / str(uid)
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
        return {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(home), "HOME": str(home), "LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="sdhost-") as name:
        os.chmod(name, 0o777)
        script = "mount -t tmpfs sdrun /run && exec sleep 1000"
        mounts = subprocess.Popen(["unshare", "--mount", "sh", "-c", script])
        nets = [subprocess.Popen(["unshare", "--net", "sleep", "1000"]) for _ in range(2)]
        try:
            for process in (mounts, *nets):
                while (Path(f"/proc/{process.pid}/comm")).read_text() != "sleep\n":
                    time.sleep(0.01)
            _connect(nets[0].pid, nets[1].pid)
            yield Host(Path(name), mounts.pid, (nets[0].pid, nets[1].pid))
        finally:
            for process in (mounts, *nets):
                process.kill()
                process.wait()


def _connect(one: int, other: int) -> None:
    commands = [f"ip link add sd0 netns {one} type veth peer name sd0 netns {other}"]
    for number, pid in enumerate((one, other), 1):
        commands += [f"nsenter --net=/proc/{pid}/ns/net ip addr add 10.99.0.{number}/24 dev sd0"]
        commands += [f"nsenter --net=/proc/{pid}/ns/net ip link set {dev} up" for dev in ("lo", "sd0")]
    for command in commands:
        subprocess.run(command.split(), check=True)


def start_monitor(host: Host, *options: str) -> subprocess.Popen[bytes]:
    """The host's monitor."""
    enter = ["nsenter", f"--mount=/proc/{host.mounts}/ns/mnt"]
    process = subprocess.Popen([*enter, *THIS, "--system", *options], stderr=subprocess.DEVNULL)
    while subprocess.run([*enter, "test", "-S", "/run/socksdirect/monitor.sock"], check=False).returncode:
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.fixture(scope="module")
def monitor(request: pytest.FixtureRequest, host: Host) -> Iterator[str]:
    """The host's monitor, which may pair the two users (and the two networks), or each user's own."""
    if request.param == "own":
        yield "own"
        return
    options = ["--pair-users", f"{FIRST}:{SECOND}"]
    if request.param == "networks":
        options += ["--pair-networks", ":".join(f"/proc/{pid}/ns/net" for pid in host.nets)]
    process = start_monitor(host, *options)
    yield request.param
    process.terminate()
    assert process.wait(10) == 0
    subprocess.run(["nsenter", f"--mount=/proc/{host.mounts}/ns/mnt", "rm", "-r", "/run/socksdirect"], check=True)


def report(path: Path) -> dict[str, Any]:
    for _ in range(1000):
        if path.exists():
            loaded: dict[str, Any] = json.loads(path.read_text())
            return loaded
        time.sleep(0.01)
    raise AssertionError(f"no {path}")


USERS = {"same": (FIRST, FIRST), "allowed": (FIRST, SECOND), "strange": (FIRST, 65532)}
COMBINATIONS = [
    *itertools.product(("host", "own"), USERS, ("one-net", "veth"), ("one-pid", "own-pids")),
    *itertools.product(("networks",), USERS, ("veth",), ("one-pid", "own-pids")),
]


@pytest.mark.parametrize(("monitor", "users", "net", "pids"), COMBINATIONS, indirect=["monitor"])
def test_combination(host: Host, monitor: str, users: str, net: str, pids: str, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=host.folder))
    folder.chmod(0o777)
    together = net == "one-net" or monitor == "networks"
    carried = together and (users == "same" or (users == "allowed" and monitor != "own"))
    address = "10.99.0.1" if net == "veth" else "127.0.0.1"
    running = []
    for number, (uid, code) in enumerate(zip(USERS[users], (SERVER, CLIENT), strict=True)):
        where = number if net == "veth" else 0
        words = [
            str(SDRUN),
            "--report",
            f"{folder}/{number}.json",
            "--set",
            "upgrade=eager",
            "--",
            sys.executable,
            "-c",
            code,
        ]
        # Nobody tells the client when it is on shared memory; a user's own monitor has to be started first.
        words += [address, "0" if not carried else "3" if monitor == "own" else "0.5"]
        command = host.command(uid, where, pids == "own-pids" and number == 1, words)
        out = (folder / f"{number}.out").open("w+")
        running.append((subprocess.Popen(command, env=host.environment(uid), stdout=out, stderr=out), out))
    for process, out in reversed(running):
        status = process.wait(60)
        out.seek(0)
        assert status == 0, out.read()
    assert (folder / "1.out").read_text() == "whole\n"
    for number in range(2):
        found = report(folder / f"{number}.json")["connections"]
        assert (found["shm"], found["tcp"]) == ((1, 0) if carried else (0, 1)), found


def test_the_hosts_monitor_is_restarted(host: Host, tmp_path: Path) -> None:
    """Trees of before wait for it and do not start monitors of their own: they meet those that come after it."""
    port, stages = free_port(), host.folder / "stages"
    stages.mkdir(mode=0o777)
    stages.chmod(0o777)
    process = start_monitor(host)
    enter: list[str | Path] = ["nsenter", f"--mount=/proc/{host.mounts}/ns/mnt"]
    runner = Runner(Mode.SHM, stages, host.environment(FIRST), before=enter, user=FIRST)
    try:
        server = runner.start(sys.executable, STAGES, "serve", str(port)).listening(port)
        for number in range(2):
            folder = stages / f"drive-{number}"
            folder.mkdir()
            os.chown(folder, FIRST, FIRST)
            driver = runner.start(sys.executable, STAGES, "drive", str(port), folder)
            (folder / "open-0").touch()
            driver.until((folder / "done-0").exists, "carries")
            if number == 0:
                process.terminate()
                assert process.wait(10) == 0
                (folder / "open-1").touch()
                driver.until((folder / "done-1").exists, "carries without a monitor")
                process = start_monitor(host)
        for number, driver in enumerate(runner.programs[1:]):
            (stages / f"drive-{number}" / "stop").touch()
            driver.ok()
            report = driver.report()
            assert report.shm == report.total == 2 - number, report
        server.stop(signal.SIGKILL)
        assert (server.report().shm, server.report().total) == (3, 3), server.report()
    finally:
        runner.close()
        process.terminate()
        process.wait(10)
