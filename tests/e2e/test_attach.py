# SPDX-License-Identifier: Apache-2.0
"""sdrun --attach: programs that run, with connections that carry bytes at that moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.test_servers import start_nginx, start_redis
from tests.guestbuild import Guests
from tests.harness import GUESTS, SDRUN, Program, Report, Runner, free_port

KINDS = 8  # of waits.c


class Attached:
    """sdrun --attach of one program."""

    def __init__(self, pid: int, folder: Path, env: Mapping[str, str], *options: str) -> None:
        self.path = folder / f"attached-{pid}-{time.monotonic_ns()}.json"
        self.result = subprocess.run(
            [SDRUN, "--set", "upgrade=eager", "--report", self.path, *options, "--attach", str(pid)],
            env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    def ok(self) -> Attached:
        """It has been, to all of it."""
        assert (self.result.returncode, self.result.stderr) == (0, ""), self.result
        return self

    def report(self, program: Program) -> Report:
        """After its end."""
        program._report = self.path
        return program.report()


def start_client(runner: Runner, port: int, connections: int, pause: float, kind: str) -> Program:
    """steady.py, all connections in use."""
    client = runner.start(sys.executable, GUESTS / "steady.py", str(port), str(connections), str(pause), kind)
    client.until(lambda: b"open" in client.stdout, "all connections in use")
    return client


def finish(client: Program, at_least: int = 3) -> int:
    """It has seen every byte; how many rounds it made."""
    client.send(signal.SIGUSR1)
    assert client.wait(60) == 0, client.describe()
    rounds = int(client.stdout.split()[-1])
    assert rounds >= at_least, client.describe()
    return rounds


def more_rounds(seconds: float = 0.5) -> None:
    """Some traffic: what the client has seen is asked at its end."""
    time.sleep(seconds)


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["busy", "waiting"])
def test_threads_that_wait_in_every_way(native: Runner, shm: Runner, guests: Guests, tmp_path: Path,
                                        pause: float) -> None:
    """A server with threads in accept, recv, epoll_wait, poll, select, futex and others; its client is under sdrun."""
    port = free_port()
    server = native.start(guests("waits"), str(port)).listening(port)
    client = start_client(shm, port, KINDS, pause, "echo")
    attached = Attached(server.pid, tmp_path, native.env).ok()
    more_rounds()
    finish(client)
    late = start_client(shm, port, KINDS, pause, "echo")  # accept goes on, and what it brings is ours
    finish(late, at_least=1)
    server.stop()
    report = attached.report(server)
    assert report.total == 2 * KINDS and report.shm == 2 * KINDS, report
    assert client.report().shm == KINDS


def start_server(name: str, runner: Runner, guests: Guests, port: int, folder: Path) -> Program:
    """Natively, or as the runner does it."""
    if name == "redis":
        return start_redis(runner, port, folder)
    if name == "nginx":
        return start_nginx(runner, port, folder)
    if name == "go":
        return runner.start(guests("echo", "go"), "server", str(port)).listening(port)
    return runner.start(sys.executable, GUESTS / "pyecho.py", "server", str(port)).listening(port)


SERVERS = ("python", "go", "redis", "nginx")
PROTOCOLS = {"redis": "resp", "nginx": "http"}


def detach(pid: int, env: Mapping[str, str]) -> None:
    """sdrun --detach."""
    result = subprocess.run([SDRUN, "--detach", str(pid)], env=dict(env), stdin=subprocess.DEVNULL,
                            capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result


def caught(pid: int) -> str:
    """Signals that it handles."""
    return Path(f"/proc/{pid}/status").read_text().split("SigCgt:\t")[1].split()[0]


def assert_own(pid: int, signals: str) -> None:
    """Its code is that of its files again, byte for byte, and it handles the signals that it did before."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights, offset, _, inode, *name = line.split(None, 5)
        if not rights.startswith("r-x") or inode == "0":
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        with Path(f"/proc/{pid}/mem").open("rb") as memory, Path(name[0]).open("rb") as file:
            memory.seek(start)
            file.seek(int(offset, 16))
            wanted = file.read(end - start)
            assert memory.read(len(wanted)) == wanted, line
    assert caught(pid) == signals


@pytest.mark.parametrize("name", ["threads", *SERVERS])
def test_detach_under_load(native: Runner, shm: Runner, guests: Guests, tmp_path: Path, name: str) -> None:
    """Attached, given back, and no byte is lost; nginx with its workers, redis, threads asleep in every way."""
    port = free_port()
    if name == "threads":
        server = native.start(guests("waits"), str(port)).listening(port)
    else:
        server = start_server(name, native, guests, port, tmp_path)
    client = start_client(shm, port, 5 if name != "threads" else KINDS, 0.0, PROTOCOLS.get(name, "echo"))
    signals = {pid: caught(pid) for pid in family(server.pid)}
    attached = Attached(server.pid, tmp_path, native.env).ok()
    more_rounds()
    detach(server.pid, native.env)
    for pid, before in signals.items():
        assert_own(pid, before)
    more_rounds()
    finish(client)
    late = start_client(native, port, KINDS, 0.0, PROTOCOLS.get(name, "echo"))
    finish(late, at_least=1)
    report = attached.report(server)
    assert report.shm >= 5, report
    again = start_client(shm, port, 5, 0.0, PROTOCOLS.get(name, "echo"))
    second = Attached(server.pid, tmp_path, native.env).ok()
    more_rounds()
    finish(again)
    assert again.report().shm == 5
    detach(server.pid, native.env)
    assert second.report(server).shm >= 5
    finish(start_client(native, port, KINDS, 0.0, PROTOCOLS.get(name, "echo")), at_least=1)
    server.stop()


def family(pid: int) -> list[int]:
    """It and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


@pytest.mark.parametrize("calls", ["none", "some"])
def test_threads_with_one_alternate_stack(native: Runner, guests: Guests, tmp_path: Path, calls: str) -> None:
    """Attached and given back twice; each thread has made calls under sdrun, or none: see guests/one_altstack.c."""
    program = native.start(guests("one_altstack"), "told", "3" if calls == "some" else "1")

    def work(times: int) -> None:
        program.until(lambda: program.stdout.count(b"waits") == times, "threads that wait")
        program.send(signal.SIGUSR2)

    for times in (1, 2):
        program.until(lambda: program.stdout.count(b"waits") >= (times if calls == "some" else 1), "threads")  # noqa: B023
        Attached(program.pid, tmp_path, native.env).ok()
        if calls == "some":
            work(times)
            program.until(lambda: program.stdout.count(b"waits") == times + 1, "calls")  # noqa: B023
        detach(program.pid, native.env)
    work(3 if calls == "some" else 1)
    assert (program.wait(), program.stdout.split()[-1]) == (0, b"ok"), program.describe()


def unread_at_detach(native: Runner, shm: Runner, tmp_path: Path, *how: str) -> tuple[Program, Program, Attached]:
    """A server that is attached, and given back with bytes on the rings; all of it has ended well."""
    server = native.start(sys.executable, "-c", UNREAD, "server", *how)
    server.until(lambda: b"\n" in server.stdout, "its port")
    client = shm.start(sys.executable, "-c", UNREAD, "client", server.stdout.split()[0].decode(), *how)
    client.until(lambda: b"moved" in client.stdout, "exchanges before")
    attached = Attached(server.pid, tmp_path, native.env).ok()
    client.send(signal.SIGUSR1)
    client.until(lambda: b"full" in client.stdout, "bytes on the rings")
    more_rounds(0.2)
    detach(server.pid, native.env)
    for program in (client, server):
        program.send(signal.SIGUSR1)
    assert client.wait() == 0, client.describe()
    assert server.wait() == 0, server.describe()
    return client, server, attached


def test_detach_with_unread_bytes(native: Runner, shm: Runner, tmp_path: Path) -> None:
    """What is in the rings at that moment, in both directions, arrives."""
    client, _, _ = unread_at_detach(native, shm, tmp_path)
    assert client.report().shm == 1


def test_detach_behind_bytes_that_a_peer_has_left_in_the_ring(native: Runner, shm: Runner, tmp_path: Path) -> None:
    """The peer lives, and went back to TCP by itself: it sends nothing again."""
    client, server, attached = unread_at_detach(native, shm, tmp_path, "left")
    report = client.report()
    assert (report.shm, report.raw["connections"]["moved_back"]) == (1, {"socket-option": 1}), report
    assert attached.report(server).shm == 1


UNREAD = """
import fcntl, os, random, signal, socket, sys, time
def ping(s, role, n):
    for i in range(n):
        if "left" in sys.argv: time.sleep(0.005)  # the connection moves meanwhile
        if role == "client": s.sendall(b"x"); assert s.recv(1) == b"x"
        else: assert s.recv(1) == b"x"; s.sendall(b"x")
def pause(): signal.sigwait({signal.SIGUSR1})
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
role = sys.argv[1]
if role == "server":
    l = socket.create_server(("127.0.0.1", 0)); print(l.getsockname()[1], flush=True)
    s, _ = l.accept()
else:
    s = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
mine, theirs = (random.Random(role == r).randbytes(50000) for r in ("client", "server"))
ping(s, role, 50)
if role == "client": print("moved", flush=True); pause()
ping(s, role, 200)
s.sendall(mine[:40000])
if "left" in sys.argv and role == "client":
    for flag in (os.O_ASYNC, 0): fcntl.fcntl(s, fcntl.F_SETFL, fcntl.fcntl(s, fcntl.F_GETFL) & ~os.O_ASYNC | flag)
s.sendall(mine[40000:])
print("full", flush=True)
pause()
got = b""
while len(got) < len(theirs): got += s.recv(len(theirs) - len(got))
assert got == theirs
ping(s, role, 200)
"""


def test_a_connection_that_was_refilled_stays_on_tcp(native: Runner, tmp_path: Path) -> None:
    """Its two kernel sockets count from different places, so neither knows what a position of the other means."""
    server = native.start(sys.executable, GUESTS / "refilled.py", "server")
    server.until(lambda: b"\n" in server.stdout, "its port")
    client = native.start(sys.executable, GUESTS / "refilled.py", "client", server.stdout.split()[0].decode())
    server.until(lambda: server.stdout.count(b"\n") == 2, "exchanges")
    if b"refused" in server.stdout:
        pytest.skip("no CAP_NET_ADMIN")
    client.until(lambda: b"ready" in client.stdout, "exchanges")
    attached = [Attached(program.pid, tmp_path, native.env).ok() for program in (client, server)]
    for program in (client, server):
        program.send(signal.SIGUSR1)
    for program, each in zip((client, server), attached, strict=True):
        program.until(lambda: b"300" in program.stdout, "exchanges under sdrun")  # noqa: B023
        program.send(signal.SIGTERM)
        assert program.wait() == 0, program.describe()
        assert each.report(program).raw["connections"]["shm"] == 0
    assert attached[1].report(server).raw["connections"]["tcp_reasons"] == {"socket-option": 1}


@pytest.mark.parametrize("name", SERVERS)
def test_real_programs_at_both_ends(native: Runner, guests: Guests, tmp_path: Path, name: str) -> None:
    """Server and client have been started natively; both are attached under load. nginx with its workers."""
    port = free_port()
    server = start_server(name, native, guests, port, tmp_path)
    client = start_client(native, port, 3, 0.0, PROTOCOLS.get(name, "echo"))
    attached = [Attached(program.pid, tmp_path, native.env).ok() for program in (server, client)]
    more_rounds()
    finish(client)
    assert attached[1].report(client).shm == 3
    server.stop()
    report = attached[0].report(server)
    assert report.shm == 3 and report.shm_bytes > 3 * 612, report


def refused(pid: int, folder: Path, env: Mapping[str, str], why: str) -> None:
    """One line that says so."""
    result = Attached(pid, folder, env).result
    assert result.returncode == 125 and result.stderr.count("\n") == 1, result
    assert why in result.stderr, result.stderr


def test_refusals(native: Runner, shm: Runner, tmp_path: Path) -> None:
    """Each with its reason; the program is as it was."""
    env = native.env
    sleeper = native.start("sleep", "60")
    os.kill(sleeper.pid, signal.SIGSTOP)
    refused(sleeper.pid, tmp_path, env, "job control")
    os.kill(sleeper.pid, signal.SIGCONT)
    ours = shm.start("sleep", "60")
    ours.until(lambda: "Seccomp_filters:\t0" not in Path(f"/proc/{ours.pid}/status").read_text(), "the filter")
    refused(ours.pid, tmp_path, env, "sdrun")
    with subprocess.Popen(["true"]) as ended:
        while Path(f"/proc/{ended.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        refused(ended.pid, tmp_path, env, "zombie")
    refused(ended.pid, tmp_path, env, "No such process")
    refused(2, tmp_path, env, "kernel")
    before = Path(f"/proc/{sleeper.pid}/maps").read_text()
    assert "551000000000" not in before


TRACED = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0  # PTRACE_SEIZE
print("traced", flush=True)
time.sleep(60)
"""


def test_another_tracer_is_there_first(native: Runner, tmp_path: Path) -> None:
    """It stays the only one."""
    sleeper = native.start("sleep", "60")
    tracer = native.start(sys.executable, "-c", TRACED, str(sleeper.pid))
    tracer.until(lambda: b"traced" in tracer.stdout, "traced")
    refused(sleeper.pid, tmp_path, native.env, "debugger")


def test_strace_and_gdb_afterwards(native: Runner, shm: Runner, guests: Guests, tmp_path: Path) -> None:
    """They may look at what was attached, under load, and go again; while they are there, nothing is given back."""
    port = free_port()
    server = native.start(guests("waits"), str(port)).listening(port)
    client = start_client(shm, port, KINDS, 0.001, "echo")
    attached = Attached(server.pid, tmp_path, native.env).ok()
    strace = native.start("strace", "-f", "-o", tmp_path / "calls", "-p", str(server.pid))
    strace.until(lambda: tracer_of(server.pid) == strace.pid, "attached")
    more_rounds(0.3)
    result = subprocess.run([SDRUN, "--detach", str(server.pid)], env=native.env, capture_output=True, text=True,
                            timeout=60, check=False)
    assert result.returncode == 125 and "debugger" in result.stderr, result
    strace.stop(signal.SIGINT)
    native.run("gdb", "-p", str(server.pid), "-batch", "-ex", "info threads")
    more_rounds(0.3)
    detach(server.pid, native.env)
    native.run("gdb", "-p", str(server.pid), "-batch", "-ex", "info threads")
    finish(client)
    server.stop()
    assert attached.report(server).shm == KINDS


@pytest.mark.parametrize("line", [["--attach", "x"], ["--attach", "0"], ["--attach", "1", "true"], ["--no-children"],
                                  ["--attach", "1", "--learn", "/tmp/x"], ["--attach"],
                                  ["--detach", "1", "--explain"], ["--detach", "y"], ["--detach", "1", "true"]])
def test_wrong_usage(line: list[str]) -> None:
    """One line, exit 2."""
    result = subprocess.run([SDRUN, *line], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result


def tracer_of(pid: int) -> int:
    """Who traces it at this moment; 0: nobody."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("TracerPid:\t")[1].split()[0])


def catch(pid: int, attaching: subprocess.Popen[bytes]) -> int:
    """The supervisor, as soon as it has stopped the program; 0: too late."""
    while attaching.poll() is None:
        tracer = tracer_of(pid)
        if tracer:
            return tracer
    return 0


@pytest.mark.parametrize("part", range(2))
def test_supervisor_killed_while_it_attaches(native: Runner, guests: Guests, part: int) -> None:
    """At random moments of the stop: no byte is lost, new connections are made, and nothing of ours is left open."""
    port = free_port()
    server = native.start(guests("waits"), str(port)).listening(port)
    client = start_client(native, port, KINDS, 0.01, "echo")
    caught = 0
    for _ in range(8):
        with subprocess.Popen([SDRUN, "--set", "upgrade=eager", "--attach", str(server.pid)], env=native.env,
                              stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as attaching:
            supervisor = catch(server.pid, attaching)
            if supervisor:
                time.sleep(random.random() * 0.015 * (part + 1))
                with suppress(FileNotFoundError, ProcessLookupError):  # nor somebody else who has its number now
                    if b"sdtrace" in Path(f"/proc/{supervisor}/cmdline").read_bytes():
                        os.kill(supervisor, signal.SIGKILL)
                        caught += 1
            attaching.wait(30)
        if "Seccomp_filters:\t0" not in Path(f"/proc/{server.pid}/status").read_text():
            break  # from here on there is a filter, and a keeper that answers
    more_rounds(0.3)
    finish(client, at_least=1)
    late = start_client(native, port, KINDS, 0.0, "echo")
    finish(late, at_least=1)
    assert caught
    assert not [name for name in os.listdir(f"/proc/{server.pid}/fd")
                if "seccomp" in os.readlink(f"/proc/{server.pid}/fd/{name}")]
    assert server.process.poll() is None, server.describe()
