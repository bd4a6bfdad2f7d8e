# SPDX-License-Identifier: Apache-2.0
"""A supervisor has to stop a thread of another tree, which waits for its own supervisor: it asks that one."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sdlib.wire import paths, trees
from sdtrace import procfs, strangers
from sdtrace.leftover import _Peer
from sdtrace.ptrace import EVENT_STOP, INTERRUPT, SEIZE, RemoteError, ask, detach, poll_stop, wait
from sdtrace.requests import PASS, STOP
from tests.harness import Program, Runner

PIDFD_GETFD = 438
TAKES = """
import ctypes, os, signal, socket
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
child = os.fork()
if child == 0: signal.pause()
fd = ctypes.CDLL(None).syscall(438, os.pidfd_open(child), server.fileno(), 0)
socket.socket(fileno=fd).sendall(b"taken")
print(client.recv(10).decode(), flush=True)
os.kill(child, signal.SIGKILL)
"""


@pytest.fixture
def silent(shm: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A supervisor that is asked whether a connection is its, and does not answer."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", shm.env["XDG_RUNTIME_DIR"])
    folder = paths.runtime_dir(os.environ, os.geteuid())
    with (socket.socket(socket.AF_UNIX) as door,
          socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as requests):  # fmt: skip
        for sock, name in ((door, trees.socket_name(os.getpid())), (requests, trees.request_name(os.getpid()))):
            sock.bind(f"{folder}/{name}")
            sock.listen()
        yield requests
    for name in (trees.socket_name(os.getpid()), trees.request_name(os.getpid())):
        os.unlink(f"{folder}/{name}")


@pytest.fixture
def taker(shm: Runner, silent: socket.socket) -> Iterator[tuple[Program, socket.socket]]:
    """Its call of pidfd_getfd waits until all supervisors have answered."""
    program = shm.start(sys.executable, "-c", TAKES)
    client = asked(silent, 60)
    program.until(lambda: asleep(program.pid), "it waits")
    with client:
        yield program, client


def asked(silent: socket.socket, patience: float) -> socket.socket:
    """Who wants to know of a connection; others only look whether somebody is there. TimeoutError."""
    while True:
        silent.settimeout(patience)
        client, _ = silent.accept()
        if client.recv(100).startswith(PASS):
            return client
        client.close()


def asleep(pid: int) -> bool:
    return procfs.thread_states(pid)[pid] in "SD" and procfs.blocked_in(pid, PIDFD_GETFD)


def finish(program: Program, client: socket.socket, silent: socket.socket) -> None:
    """Whoever asks, is answered; the call may have begun anew."""
    client.send(b"\n")
    while program.stdout == b"" and procfs.running(program.pid):
        with suppress(TimeoutError), asked(silent, 0.1) as again:
            again.send(b"\n")
    program.ok()
    assert program.stdout == b"taken\n"


def test_it_comes_to_its_stop(taker: tuple[Program, socket.socket], silent: socket.socket) -> None:
    """And goes on as if nothing had been: the call is made anew."""
    program, client = taker
    ask(SEIZE, program.pid)
    ask(INTERRUPT, program.pid)
    with pytest.raises(RemoteError):  # it waits for its own supervisor, and for nothing else
        wait(program.pid, time.monotonic() + 0.3)
    strangers.have_stopped(program.pid)
    status = wait(program.pid, time.monotonic() + 20)
    assert status is not None and status >> 16 == EVENT_STOP
    assert detach(program.pid)
    finish(program, client, silent)


def test_whoever_stops_all_threads_asks(taker: tuple[Program, socket.socket], silent: socket.socket) -> None:
    program, client = taker
    with _Peer(program.pid):
        assert procfs.thread_states(program.pid)[program.pid] == "t"
    finish(program, client, silent)


def test_only_for_its_tracer(taker: tuple[Program, socket.socket], silent: socket.socket) -> None:
    """Whoever else asks would end a call of somebody else's."""
    program, client = taker
    known = trees.find(os.environ, os.geteuid())  # other tests' as well
    others = [path for path in known if not path.endswith(f"/{trees.socket_name(os.getpid())}")]
    answers = {}
    for path in others:
        with suppress(OSError):  # a name that a killed one has left
            answers[strangers._ask(path, STOP, program.pid)] = path
    its = answers["it does not wait here for who traces it"]
    assert strangers._ask(its, STOP, 1 << 30) == "no such thread"
    time.sleep(0.1)
    assert asleep(program.pid)
    assert poll_stop(program.pid) is None
    finish(program, client, silent)
