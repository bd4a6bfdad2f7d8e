# SPDX-License-Identifier: Apache-2.0
"""sdrun --detach of one program among others that go on under the same sdrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.test_attach import PROTOCOLS, Attached, caught, detach, family, finish, more_rounds, start_client
from tests.e2e.test_servers import start_nginx
from tests.guestbuild import Guests
from tests.harness import SDRUN, Program, Runner, free_port

CONNECTIONS = 4
SHARED = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
conn = listener.accept()[0]
for _ in range(100):  # it has moved by then
    conn.sendall(conn.recv(9000))
if os.fork():
    os.wait()
while data := conn.recv(9000):
    conn.sendall(data)
"""


def carried(runner: Runner, port: int, kind: str = "echo") -> int:
    """Ends on shared memory of a client that comes now."""
    client = start_client(runner, port, CONNECTIONS, 0.0, kind)
    more_rounds(0.2)
    finish(client, at_least=1)
    return client.report().shm


def detach_alone(pid: int, env: Mapping[str, str]) -> None:
    """Not those that it has started."""
    result = subprocess.run([SDRUN, "--no-children", "--detach", str(pid)], env=dict(env), capture_output=True,
                            text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def attach_again(pid: int, env: Mapping[str, str]) -> None:
    """By the sdrun that has given it back, which lives."""
    result = subprocess.run([SDRUN, "--attach", str(pid)], env=dict(env), capture_output=True, text=True, timeout=60,
                            check=False)
    assert (result.returncode, result.stderr) == (0, "")


def library_in(pid: int) -> bool:
    """Is an area of ours mapped there? A program that was given back has none."""
    return "sd-area" in Path(f"/proc/{pid}/maps").read_text()


def two_servers(shm: Runner, guests: Guests) -> tuple[Program, dict[int, int]]:
    """Two echo servers of one shell under one sdrun, and their pids by port."""
    ports = [free_port(), free_port()]
    script = "".join(f"{guests('waits')} {port} & pids=\"$pids $!\"; " for port in ports)
    script += "trap 'kill $pids' TERM; wait; wait"
    shell = shm.start("sh", "-c", script)
    for port in ports:
        shell.listening(port)
    pids = {}
    for pid in family(shell.pid)[1:]:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        pids[int(words[1])] = pid
    return shell, pids


def test_one_of_two_servers(native: Runner, shm: Runner, guests: Guests) -> None:
    """What is given back goes on by TCP and stays there until it is attached again; the other one's connections stay on
    shared memory."""
    shell, pids = two_servers(shm, guests)
    (first, one), (second, two) = pids.items()
    clients = [start_client(shm, port, CONNECTIONS, 0.0, "echo") for port in pids]
    more_rounds()
    assert library_in(one) and library_in(two)
    detach(one, native.env)
    assert not library_in(one) and library_in(two)
    assert not int(caught(one), 16) >> signal.SIGSYS - 1 & 1
    more_rounds()
    for client in clients:
        finish(client)
        assert client.report().shm == CONNECTIONS
    assert carried(shm, first) == 0
    assert carried(shm, second) == CONNECTIONS
    for pid in pids.values():
        refused = subprocess.run([SDRUN, "--set", "upgrade=eager", "--attach", str(pid)], env=dict(native.env),
                                 capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 125 and "without any" in refused.stderr, refused
    attach_again(one, native.env)
    assert carried(shm, first) == carried(shm, second) == CONNECTIONS
    again = subprocess.run([SDRUN, "--attach", str(one)], env=dict(native.env), capture_output=True, text=True,
                           timeout=60, check=False)
    assert again.returncode == 125 and "under sdrun already" in again.stderr, again
    detach(one, native.env)
    assert carried(shm, first) == 0
    shell.stop()
    report = shell.report()
    assert report.shm == 5 * CONNECTIONS, report
    moved = report.raw["connections"]["moved_back"]
    assert moved == {"detached": 2 * CONNECTIONS}, moved  # it never closes those of clients that have ended


def test_a_shell_that_has_never_used_a_socket(native: Runner, shm: Runner, guests: Guests, tmp_path: Path) -> None:
    """The whole tree is given back, and attached again by its root, in which nothing was ever mapped."""
    shell, pids = two_servers(shm, guests)
    port = next(iter(pids))
    assert carried(shm, port) == CONNECTIONS
    detach(shell.pid, native.env)
    assert not library_in(shell.pid) and carried(shm, port) == 0
    Attached(shell.pid, tmp_path, native.env).ok()
    assert [carried(shm, port) for port in pids] == [CONNECTIONS, CONNECTIONS]
    detach(shell.pid, native.env)
    assert carried(shm, port) == 0
    shell.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at filters")
def test_a_shell_whose_first_process_has_ended(native: Runner, shm: Runner, guests: Guests, tmp_path: Path) -> None:
    """Nothing leads from it to its tree but its filter."""
    port, told = free_port(), tmp_path / "pid"
    inner = f"echo $$ >{told}; {guests('waits')} {port} & trap 'kill $!' TERM; wait; wait"
    shm.start("sh", "-c", f'sh -c "$0" & while ! [ -s {told} ]; do sleep 0.01; done', inner).wait()
    pid = int(told.read_text())
    try:
        assert carried(shm, port) == CONNECTIONS
        detach(pid, native.env)
        assert not library_in(pid) and carried(shm, port) == 0
        Attached(pid, tmp_path, native.env).ok()
        assert carried(shm, port) == CONNECTIONS
        detach(pid, native.env)
    finally:
        os.kill(pid, signal.SIGTERM)


def test_a_worker_and_its_master(native: Runner, shm: Runner, tmp_path: Path) -> None:
    """nginx: one worker alone, under load, then the master alone: whom it starts from then on is not ours, the other
    worker is."""
    port = free_port()
    server = start_nginx(shm, port, tmp_path)
    client = start_client(shm, port, 5, 0.0, PROTOCOLS["nginx"])
    more_rounds()
    master, one, two = family(server.pid)
    detach(one, native.env)
    assert not library_in(one) and library_in(two)
    more_rounds()
    detach_alone(master, native.env)
    assert library_in(two)
    more_rounds()
    finish(client)
    subprocess.run(["kill", "-HUP", str(master)], check=True)
    server.until(lambda: not {one, two} & set(family(master)) and len(family(master)) == 3, "new workers")
    assert carried(shm, port, "http") == 0
    attach_again(master, native.env)  # with its new workers, which have been forked with an image that nobody uses
    assert carried(shm, port, "http") == CONNECTIONS
    server.stop()


STACKS = """
import ctypes, socket, sys, threading
libc = ctypes.CDLL(None)
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
def serve(conn):
    memory = ctypes.create_string_buffer(8192)
    mine, now = Stack(ctypes.addressof(memory), 0, 8192), Stack()
    assert libc.sigaltstack(ctypes.byref(mine), None) == 0
    while conn.recv(100):
        assert libc.sigaltstack(None, ctypes.byref(now)) == 0
        conn.sendall(b"own" if (now.at, now.flags, now.size) == (mine.at, 0, 8192) else b"another's")
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
threads = [threading.Thread(target=serve, args=(listener.accept()[0],)) for _ in range(2)]
for thread in threads:
    thread.start()
"""
ASKS = """
import signal, socket, sys
conns = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(2)]
def ask(conn):
    conn.sendall(b"?")
    return conn.recv(100)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print({ask(conn) for conn in conns for _ in range(100)}, flush=True)
signal.sigwait([signal.SIGUSR1])
print({ask(conn) for conn in conns for _ in range(100)}, flush=True)
"""


def test_alternate_stacks_are_the_programs_own_again(native: Runner, shm: Runner) -> None:
    """Small ones, in the place of which the kernel has had one of the library's for each thread."""
    port = free_port()
    server = shm.start(sys.executable, "-c", STACKS, str(port)).listening(port)
    client = shm.start(sys.executable, "-c", ASKS, str(port))
    client.until(lambda: b"\n" in client.stdout, "answers")
    detach(server.pid, native.env)
    client.send(signal.SIGUSR1)
    assert client.wait() == 0, client.describe()
    assert client.stdout.split() == [b"{b'own'}"] * 2
    assert server.wait() == 0, server.describe()
    assert client.report().shm == 2


@pytest.mark.parametrize("which", ["who sleeps on it", "who holds it, too"])
def test_a_connection_of_two_processes(native: Runner, shm: Runner, which: str) -> None:
    """One of them is given back, and it goes back to TCP for both; who sleeps on it meanwhile hears of what comes."""
    port = free_port()
    server = shm.start(sys.executable, "-c", SHARED, str(port)).listening(port)
    client = start_client(shm, port, 1, 0.02, "echo")
    server.until(lambda: len(family(server.pid)) == 2, "a child")
    parent, child = family(server.pid)
    one, other = (child, parent) if which == "who sleeps on it" else (parent, child)
    detach_alone(one, native.env)
    assert not library_in(one) and library_in(other)
    more_rounds()
    finish(client)
    assert server.wait() == 0, server.describe()
    assert server.report().raw["connections"]["moved_back"] == {"detached": 1}
    assert client.report().shm == 1


def test_programs_that_it_starts(native: Runner, shm: Runner, guests: Guests) -> None:
    """A shell that was given back alone: what it starts is not ours; what it had started before is."""
    before, after = free_port(), free_port()
    waits = guests("waits")
    script = f"{waits} {before} & pids=$!; trap '{waits} {after} & pids=\"$pids $!\"' USR1; "
    script += "trap 'kill $pids; exit' TERM; while :; do wait; sleep 0.1; done"
    shell = shm.start("sh", "-c", script)
    shell.listening(before)
    assert carried(shm, before) == CONNECTIONS
    detach_alone(shell.pid, native.env)
    subprocess.run(["kill", "-USR1", str(shell.pid)], check=True)
    shell.listening(after)
    assert carried(shm, after) == 0
    assert carried(shm, before) == CONNECTIONS
    shell.stop()
