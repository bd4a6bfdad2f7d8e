# SPDX-License-Identifier: Apache-2.0
"""strace and gdb before sdrun, at its start, and in between; programs that nobody may trace; set-uid programs.

In each case the program does what it does natively. The report says why it stayed on TCP, and that it did not as soon
as nothing kept us out.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_attach import tracer_of
from tests.guestbuild import Guests
from tests.harness import Mode, Program, Report, Runner, end_monitor

# Connections with a child, one for each line of its input, of some hundred exchanges each. The pauses are for the
# supervisor: on a busy machine a connection without any is over before its two ends have been brought together.
CONNECTIONS = """
import os, socket, sys, time
print("ready", flush=True)
for line in sys.stdin:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            with socket.create_connection(listener.getsockname()) as conn:
                while data := conn.recv(100): conn.sendall(data)
            os._exit(0)
        conn, _ = listener.accept()
    with conn:
        for number in range(300):
            if number % 50 == 10: time.sleep(0.02)
            conn.sendall(b"%d." % number); got = b""
            while not got.endswith(b"."): got += conn.recv(100)
            assert got == b"%d." % number
    assert os.waitpid(child, 0)[1] == 0
    print(line.strip(), flush=True)
"""


def process_of(report: Report, pid: int) -> dict[str, Any]:
    """What the report says of one."""
    (found,) = [process for process in report.raw["processes"] if process["pid"] == pid]
    return dict(found)


class Fed:
    """A program that does something for each line, with a pipe to say when."""

    def __init__(self, runner: Runner, folder: Path) -> None:
        os.mkfifo(folder / "lines")
        script = 'exec "$0" -c "$1" <"$2"'
        self.program = runner.start("sh", "-c", script, sys.executable, CONNECTIONS, folder / "lines")
        self._lines = (folder / "lines").open("w")
        self._said = ["ready"]
        self._heard()

    def _heard(self) -> None:
        wanted = "".join(f"{line}\n" for line in self._said).encode()
        self.program.until(lambda: self.program.stdout == wanted, f"{self._said[-1]}")

    def does(self, line: str) -> None:
        """Once."""
        self._lines.write(f"{line}\n")
        self._lines.flush()
        self._said.append(line)
        self._heard()

    def end(self) -> Program:
        """No more lines."""
        self._lines.close()
        return self.program.ok()


@pytest.fixture(params=[Mode.NATIVE, Mode.SHM], ids=["native", "shm"])
def either(request: pytest.FixtureRequest, tmp_path: Path, sd_env: dict[str, str]) -> Iterator[Runner]:
    """Natively and on shared memory."""
    made = Runner(request.param, tmp_path, sd_env)
    yield made
    made.close()


def test_strace_is_there_first(either: Runner, tmp_path: Path) -> None:
    """While it looks on, TCP; when it has gone, shared memory; when it comes back, nothing breaks."""
    folder = tmp_path / "fed"
    folder.mkdir()
    fed = Fed(either, folder)
    pid = fed.program.pid
    for line, follow in (("one", True), ("two", False), ("three", True), ("four", False)):
        if follow:
            strace = Runner(Mode.NATIVE, Path(tempfile.mkdtemp(dir=tmp_path)), either.env).start(
                "strace", "-f", "-o", folder / line, "-p", str(pid))
            strace.until(lambda: tracer_of(pid) == strace.pid, "attached")  # noqa: B023
        fed.does(line)
        if follow:
            strace.stop(signal.SIGINT)
            assert "socket(AF_INET" in (folder / line).read_text()
    program = fed.end()
    if either.mode is Mode.SHM:
        report = program.report()
        assert report.total == report.shm == 6, str(report)
        assert process_of(report, pid)["injected"], report
        traced = [process for process in report.raw["processes"] if process["reason"] == "already-traced"]
        assert traced, report


@pytest.mark.parametrize("tracer", ["strace", "gdb"])
def test_sdrun_under_a_tracer(tracer: str, either: Runner, guests: Guests, tmp_path: Path) -> None:
    """All of it, from the start: the program is right, and its report says what kept it on TCP."""
    calls = tmp_path / "calls"
    tracers = {"strace": f"strace -D -f -qq -o {calls} --seccomp-bpf -e trace=connect",
               "gdb": "gdb -q -nx -batch -ex run --args"}
    either.before = [*tracers[tracer].split()]
    program = either.run(guests("blocking"))
    assert b"ok\n" in program.stdout
    if tracer == "strace":
        assert "sin_port" in calls.read_text()
    else:
        assert b"exited normally" in program.stdout
    if either.mode is Mode.SHM:
        report = program.report()
        first = report.raw["processes"][0]
        assert (first["injected"], first["reason"]) == (False, "already-traced"), report
        assert report.shm == 0, report


def test_not_dumpable(either: Runner, guests: Guests) -> None:
    """Before its first socket: nobody looks into it, so TCP. Later: the library is there, so shared memory."""
    before = either.run(guests("undumpable"), "before")
    after = either.run(guests("undumpable"), "after")
    assert before.stdout == after.stdout == b"ok\n"
    if either.mode is Mode.SHM:
        report = before.report()
        assert {process["reason"] for process in report.raw["processes"]} == {"not-dumpable"}, report
        assert report.shm == 0, report
        either.check(after, at_least=2, of_bytes=200)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges to give up")
def test_privileges_given_up(either: Runner, guests: Guests) -> None:
    """Daemons that go on as another user are not dumpable by that alone: root may look into what it has started.

    Not into what has become undumpable behind an execve as that user, nor without CAP_SYS_PTRACE.
    """
    with tempfile.TemporaryDirectory(prefix="sddrop-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        program = shutil.copy(guests("undumpable"), f"{name}/guest")
        found = either.run(program, "drop")
        twice = either.run(program, "drop-twice")
        either.before = ["setpriv", "--bounding-set=-sys_ptrace", "--"]
        held = either.run(program, "drop")
        assert {found.stdout, twice.stdout, held.stdout} == {b"ok\n"}
        if either.mode is Mode.SHM:
            either.check(found, at_least=2, of_bytes=200)
            for ended, reason in ((twice, "not-dumpable"), (held, "ptrace-refused")):
                report = ended.report()
                assert process_of(report, ended.pid)["reason"] == reason and report.shm == 0, report


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a set-uid program")
@pytest.mark.parametrize("user", ["root", "nobody"])
def test_set_uid_program(user: str, either: Runner, guests: Guests, tmp_path: Path) -> None:
    """Under root's sdrun it gains privilege and stays on TCP; a user's sdrun had to promise that nothing gains any."""
    with tempfile.TemporaryDirectory(prefix="sduid-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        program = shutil.copy(guests("undumpable"), f"{name}/guest")
        shutil.chown(program, 65533)
        os.chmod(program, 0o4755)
        words = [program, "who"]
        if user == "nobody":
            os.mkdir(f"{name}/run", 0o700)
            shutil.chown(f"{name}/run", 65534)
            env = {**either.env, "XDG_RUNTIME_DIR": f"{name}/run"}
            either.at_end.append(lambda: end_monitor(Path(f"{name}/run")))
            either.folder, either.env, either.user = Path(name), env, 65534
        else:
            words = ["setpriv", "--reuid=65534", "--clear-groups", "--", *words]
        found = either.run(*words)
        gains = user == "root" or either.mode is Mode.NATIVE
        assert found.stdout == (b"65534 65533\nok\n" if gains else b"65534 65534\nok\n"), found.describe()
        if either.mode is Mode.SHM and gains:
            report = found.report()
            assert process_of(report, found.pid)["reason"] == "not-dumpable" and report.shm == 0, report
        elif either.mode is Mode.SHM:
            either.check(found, at_least=2, of_bytes=200)
        either.close()
