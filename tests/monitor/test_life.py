# SPDX-License-Identifier: Apache-2.0
"""Starting, being killed, racing and leaving: a monitor is there when one is needed, one only, and not for longer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdlib import abi
from sdlib.wire import Lost, MonitorClient, MonitorUnavailable, Paired, Pending, messages, spawn
from tests.monitor.support import MAIN, RING, Link, MonitorProcess, events_of, wait_for


def pids_of(path: str) -> list[int]:
    """Monitors that serve `path`."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            words = Path(f"/proc/{int(entry)}/cmdline").read_bytes().split(b"\0")
            if path.encode() in words and os.path.basename(MAIN).encode() in b" ".join(words):
                found.append(int(entry))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Where monitors get spawned; they are ended afterwards."""
    name = str(tmp_path / "spawned.sock")
    yield name
    for pid in pids_of(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def run(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(MAIN), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env={**os.environ, **env})


def test_killed_monitor_is_noticed_and_a_new_one_serves(monitor: MonitorProcess, link: Link) -> None:
    client = monitor.client()
    assert client.offer(link.near.fileno(), 1, RING, 5) == Pending(1)
    assert client.offer(link.far.fileno(), 2, RING, 5)[0] == 2
    (paired,) = events_of(client)
    other = Link()
    assert client.offer(other.near.fileno(), 3, RING, 5) == Pending(3)
    monitor.kill()
    (lost,) = events_of(client)
    assert isinstance(lost, Lost) and lost.offer_ids == (3,) and not client.alive
    assert client.events() == []
    with pytest.raises(MonitorUnavailable):
        client.offer(link.near.fileno(), 4, RING, 5)
    client.withdraw(3)
    client.close()
    assert isinstance(paired, Paired) and os.fstat(paired.memfd).st_size, "what was paired stays"
    with pytest.raises(MonitorUnavailable, match="no monitor"):
        monitor.client()
    monitor.start()
    again = monitor.client()
    assert again.offer(other.near.fileno(), 3, RING, 5) == Pending(3)
    again.close()


def test_killed_in_the_middle_of_an_offer(monitor: MonitorProcess, link: Link) -> None:
    client = monitor.client()
    monitor.process.send_signal(signal.SIGSTOP)
    assert client.offer(link.near.fileno(), 1, RING, 0.05) == Pending(1), "late is Pending"
    assert client.offer(link.far.fileno(), 2, RING, 0.05) == Pending(2)
    monitor.process.send_signal(signal.SIGCONT)
    answers = events_of(client, 2)
    assert sorted(answer.offer_id for answer in answers if isinstance(answer, Paired)) == [1, 2], "by events(), later"
    monitor.process.send_signal(signal.SIGSTOP)
    assert client.offer(link.near.fileno(), 3, RING, 0.05) == Pending(3)
    monitor.kill()
    (lost,) = events_of(client)
    assert isinstance(lost, Lost) and lost.offer_ids == (3,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_cleans_up(monitor: MonitorProcess, number: int) -> None:
    client = monitor.client()
    assert monitor.kill(number) == 0
    assert not os.path.exists(monitor.path)
    assert [event for event in client.events() if isinstance(event, Lost)] == [Lost((), client_reason(monitor))]
    assert "leaving why=signal" in monitor.log.read_text()


def test_another_takes_over_from_what_a_client_has_started(path: str) -> None:
    """As a user's service does that systemd starts later: the one in the background leaves, and none is in between."""
    client = MonitorClient.open(path)
    (before,) = pids_of(path)
    assert run("--socket", path, "--detach").returncode == 0 and pids_of(path) == [before], "quietly: there is one"
    assert run("--socket", path, "--detach", "--take-over").returncode == 0
    (after,) = pids_of(path)
    assert after != before
    assert [event for event in client.events() if isinstance(event, Lost)] and not client.alive
    client.close()
    again = MonitorClient.open(path, spawn=False)
    assert again.pid == after, "its pid is the one that serves, not the one that has started it"
    again.close()


def test_nobody_is_sent_away_but_a_monitor(path: str) -> None:
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        done = run("--socket", path, "--take-over")
    os.close(lock)
    assert done.returncode == 1
    assert f"served by process {os.getpid()} (`" in done.stderr and "no monitor of yours" in done.stderr, done.stderr


def client_reason(_monitor: MonitorProcess) -> str:
    return "it threw us out: the monitor is leaving; come again"


def test_spawned_when_none_answers(path: str) -> None:
    client = MonitorClient.open(path)
    (pid,) = pids_of(path)
    assert os.getsid(pid) not in (os.getsid(0), 0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert Path(f"/proc/{pid}/comm").read_text() == "sdmonitor\n"
    assert os.stat(path).st_mode & 0o777 == 0o600
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert str(pid) not in children, "a monitor must never become its client's zombie"
    kinds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    files = [kind for kind in kinds if kind.startswith("/") and not kind.startswith(path)]
    assert set(files) <= {"/dev/null"}, "nothing inherited"
    client.close()


def test_spawned_one_inherits_no_descriptor(path: str) -> None:
    """The supervisor holds inheritable descriptors (the seccomp listener) that must not live on in the monitor."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    client = MonitorClient.open(path)
    os.close(writer)
    assert os.read(reader, 1) == b"", "end of file: nobody else has the writing end"
    os.close(reader)
    client.close()


def test_blocked_signals_of_the_starter_do_not_matter(path: str) -> None:
    """A supervisor blocks signals; a monitor that inherited that could not be ended, and could hang in close(2)."""
    blocked = {signal.SIGTERM, signal.SIGALRM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        client = MonitorClient.open(path)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    (pid,) = pids_of(path)
    os.kill(pid, signal.SIGTERM)
    assert isinstance(events_of(client)[0], Lost)
    wait_for(lambda: not pids_of(path), "it has ended")
    client.close()


def test_environment_of_the_program_does_not_matter(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "monitor.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "logging.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    MonitorClient.open(path).close()


def test_clients_that_race_to_spawn_get_one_monitor(path: str, tmp_path: Path) -> None:
    """Ten processes at once; both ends of a connection in different processes must meet at the same monitor."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from sdlib.wire import MonitorClient\n"
        "sys.stdin.readline(); c = MonitorClient.open(sys.argv[1], timeout_s=15); print('ok', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    root = str(MAIN.parents[1])
    command = [sys.executable, "-c", code, path, root]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, text=True, bufsize=1, stdin=pipe, stdout=pipe) for _ in range(10)]
    try:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
        for racer in racers:
            assert racer.stdout is not None and racer.stdout.readline() == "ok\n"
        wait_for(lambda: len(pids_of(path)) == 1, "one monitor is left")
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_second_monitor_leaves_quietly(monitor: MonitorProcess) -> None:
    done = run("--socket", monitor.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    monitor.client().close()


def test_stale_socket_of_a_killed_monitor_is_replaced(monitor: MonitorProcess) -> None:
    monitor.kill()
    assert os.path.exists(monitor.path)
    monitor.start()
    monitor.client().close()


def test_idle_exit(tmp_path: Path) -> None:
    monitor = MonitorProcess(tmp_path, "--idle-exit", "0.3")
    client = monitor.client()
    time.sleep(0.8)
    assert monitor.process.poll() is None, "not while there is a client"
    started = time.monotonic()
    client.close()
    assert monitor.process.wait(10) == 0
    assert time.monotonic() - started > 0.25
    assert not os.path.exists(monitor.path)


def test_idle_exit_loses_no_client(path: str) -> None:
    """Clients that come at the very moment when a monitor leaves are served, by it or by the next one."""
    link = Link()
    monitors = set()
    for round_ in range(12):
        spawn.spawn_monitor(path, 5, idle_exit_s=0.05)
        time.sleep(0.03 + 0.003 * round_)
        client = MonitorClient.open(path)
        assert client.offer(link.near.fileno(), round_, RING, 5) == Pending(round_)
        monitors.update(pids_of(path))
        client.close()
    assert len(monitors) > 1, "some did leave meanwhile"
    link.close()


def test_socket_taken_away_makes_room_for_a_new_monitor(tmp_path: Path) -> None:
    """A cleaner of temporary directories removed the name: `start` must not be blocked for ever by the old lock."""
    monitor = MonitorProcess(tmp_path, "--check-interval", "0.1")
    os.unlink(monitor.path)
    assert monitor.process.wait(10) == 0
    assert "leaving why=socket-lost" in monitor.log.read_text()


def test_version_and_help() -> None:
    version = run("--version")
    wanted = f"protocol {messages.PROTOCOL_VERSION}, ABI {abi.const.SD_ABI_VERSION}"
    assert version.returncode == 0 and wanted in version.stdout
    assert "--idle-exit" in run("--help").stdout


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--bogus"], 2, "unrecognized arguments: --bogus"),
        (["--idle-exit", "-1"], 2, "--idle-exit"),
        (["--max-ring", "5000"], 2, "--max-ring"),
        (["--socket", "relative"], 1, "must be absolute"),
        (["--socket", "/" + "x" * 200], 1, "at most 107 bytes"),
        (["--socket", "/nonexistent/m.sock"], 1, "/nonexistent/m.sock.lock: No such file or directory"),
    ],
)
def test_mistakes_are_one_clear_line(options: list[str], status: int, said: str) -> None:
    done = run(*options)
    assert done.returncode == status
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_spawn_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(MonitorUnavailable, match="No such file or directory"):
        MonitorClient.open(str(tmp_path / "missing" / "m.sock"))


def test_no_spawn_no_monitor(tmp_path: Path) -> None:
    with pytest.raises(MonitorUnavailable, match="no monitor at"):
        MonitorClient.open(str(tmp_path / "m.sock"), spawn=False)


def test_something_else_listens_there(path: str) -> None:
    """A stream socket, or one that never answers: a clear refusal within the limit, no hang."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(path)
        stream.listen()
        with pytest.raises(MonitorUnavailable):
            MonitorClient.open(path, spawn=False)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(path)
        silent.listen()
        with pytest.raises(MonitorUnavailable, match="does not answer"):
            MonitorClient.open(path, spawn=False, timeout_s=0.2)
