# SPDX-License-Identifier: Apache-2.0
"""sshd and PostgreSQL under their packaged policies, as a user without privileges: PostgreSQL refuses to be root."""

from __future__ import annotations

import getpass
import hashlib
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_packaged_policies import says_packaged
from tests.harness import Mode, Program, Runner, end_monitor, free_port

# As root another one, with a shell, which the package has made.
USER = "postgres" if os.geteuid() == 0 else getpass.getuser()
BIN = max(Path("/usr/lib/postgresql").glob("*/bin"))
SSHD = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""


@pytest.fixture(params=[Mode.NATIVE, Mode.SHM], ids=["native", "shm"])
def packaged(request: pytest.FixtureRequest, sd_env: dict[str, str]) -> Iterator[Runner]:
    """A folder of that user's own, as home and for the monitor."""
    with tempfile.TemporaryDirectory(prefix="sdpkg-", dir="/tmp") as name:
        if os.geteuid() == 0:
            shutil.chown(name, USER)
        env = {**sd_env, "XDG_RUNTIME_DIR": name, "XDG_CONFIG_HOME": f"{name}/config", "HOME": name, "USER": USER}
        made = Runner(request.param, Path(name), env, eager=False, user=USER)
        yield made
        made.close()
        end_monitor(Path(name))


def prepare(runner: Runner, *argv: str | Path) -> None:
    """What has to be there before, natively, as that user."""
    Runner(Mode.NATIVE, Path(tempfile.mkdtemp(dir=runner.folder)), runner.env, user=USER).run(*argv)


def query(runner: Runner, port: int, sql: str, *words: str) -> Program:
    return runner.run(BIN / "psql", "-h", "127.0.0.1", "-p", str(port), "-U", "me", "-XAtq", *words, "postgres",
                      stdin=sql.encode())  # fmt: skip


def test_postgresql(packaged: Runner) -> None:
    """psql and pgbench; what was written comes back, a large value too, and copying in and out."""
    port, data = free_port(), packaged.folder / "data"
    prepare(packaged, BIN / "initdb", "-D", data, "-A", "trust", "-U", "me", "-N")
    server = packaged.start(BIN / "postgres", "-D", data, "-p", str(port), "-c", "fsync=off",
                            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=").listening(port)
    ready = data / "postmaster.pid"
    server.until(lambda: "ready" in ready.read_text(), "ready")
    rows = [random.Random(number).randbytes(400).hex() for number in range(3000)]
    text = "CREATE TABLE t (v text);\nCOPY t FROM STDIN;\n" + "\n".join(rows) + "\n\\.\n"
    filled = query(packaged, port, text + "SELECT count(*) FROM t;\nSELECT repeat('x', 3000000);\n")
    assert filled.stdout == b"3000\n" + b"x" * 3_000_000 + b"\n", filled.describe()
    some = "".join(f"SELECT v FROM t OFFSET {number} LIMIT 1;\n" for number in range(0, 3000, 100))
    got = query(packaged, port, some + "COPY t TO STDOUT;\n")
    assert got.stdout.decode().split() == [*rows[::100], *rows]
    bench: list[str | Path] = [BIN / "pgbench", "-h", "127.0.0.1", "-p", str(port), "-U", "me"]
    packaged.run(*bench, "-i", "-q", "postgres")
    load = packaged.run(*bench, "-n", "-c", "4", "-t", "50", "postgres")
    assert b"number of transactions actually processed: 200/200" in load.stdout, load.describe()
    assert server.stop(signal.SIGINT) == 0
    packaged.check(filled, got, load, at_least=1, of_bytes=50_000)
    packaged.check(server, at_least=6, of_bytes=5_000_000)
    if packaged.mode is Mode.SHM:
        for program in ("postgres", "psql", "pgbench"):
            says_packaged(str(BIN / program), packaged.env, "postgresql.yaml")


def test_sshd(packaged: Runner) -> None:
    """It forks, executes itself, and confines itself with seccomp: all of that as ever, every byte, on TCP, and why."""
    port, folder = free_port(), packaged.folder
    for key in ("host", "key"):
        prepare(packaged, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key)
    (folder / "sshd_config").write_text(SSHD.format(port=port, folder=folder))
    sshd = packaged.start("/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config").listening(port)
    ssh = ["ssh", "-F", "none", "-i", str(folder / "key"), "-p", str(port), "-o", "StrictHostKeyChecking=no",
           "-o", f"UserKnownHostsFile={folder}/known", "-o", "BatchMode=yes", f"{USER}@127.0.0.1"]  # fmt: skip
    sent = random.Random(1).randbytes(3_000_000)
    there = packaged.run(*ssh, f"cat >{folder}/copy && sha256sum <{folder}/copy", stdin=sent)
    assert there.stdout.split()[0].decode() == hashlib.sha256(sent).hexdigest(), there.describe()
    back = packaged.run(*ssh, f"cat {folder}/copy; exit 0")
    assert back.stdout == sent
    assert packaged.start(*ssh, "exit 7").wait() == 7
    assert sshd.stop() in (0, 255)  # by version
    if packaged.mode is Mode.SHM:
        report = sshd.report()
        daemons = [process for process in report.raw["processes"] if process["exe"] == "/usr/sbin/sshd"]
        assert len(daemons) >= 7 and not any(process["injected"] for process in daemons), report
        assert daemons[0]["reason"] == "policy" and report.shm == 0, report
        says_packaged("/usr/sbin/sshd", packaged.env, "sshd.yaml")


@pytest.mark.skipif(os.geteuid() != 0, reason="sshd gives up privileges only if it has some")
@pytest.mark.parametrize("mode", [Mode.NATIVE, Mode.SHM], ids=["native", "shm"])
def test_sshd_that_no_policy_leaves_alone(mode: Mode, sd_env: dict[str, str], tmp_path: Path) -> None:
    """By another name. In mid-conversation its child gets an empty root, another user and a strict seccomp filter."""
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # as Debian's unit does
    runner, port = Runner(mode, tmp_path, sd_env), free_port()
    daemon = shutil.copy("/usr/sbin/sshd", tmp_path / "daemon")
    for key in ("host", "key"):
        Runner(Mode.NATIVE, Path(tempfile.mkdtemp(dir=tmp_path)), sd_env).run(
            "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key)
    config = SSHD.format(port=port, folder=tmp_path) + "PermitRootLogin yes\n"
    (tmp_path / "sshd_config").write_text(config)
    try:
        sshd = runner.start(daemon, "-D", "-e", "-f", tmp_path / "sshd_config").listening(port)
        ssh = ["ssh", "-F", "none", "-i", str(tmp_path / "key"), "-p", str(port), "-o", "StrictHostKeyChecking=no",
               "-o", f"UserKnownHostsFile={tmp_path}/known", "-o", "BatchMode=yes", "root@127.0.0.1"]
        client = shutil.copy("/usr/bin/ssh", tmp_path / "client")
        sent = random.Random(1).randbytes(3_000_000)
        there = runner.run(client, *ssh[1:], "sha256sum", stdin=sent)
        assert there.stdout.split()[0].decode() == hashlib.sha256(sent).hexdigest(), there.describe()
        last = runner.start(client, *ssh[1:], "exit 7")
        assert last.wait() == 7
        assert sshd.stop() in (0, 255)
        if mode is Mode.SHM:
            report = sshd.report()
            assert report.total == 2, str(report)  # how far they have come on their way to the ring then, is chance
            assert sum(line["injected"] for line in report.raw["processes"]) > 2, str(report)
            assert report.raw["bytes"]["tcp"] > len(sent), "its child is confined, and has to be on TCP"
    finally:
        runner.close()
