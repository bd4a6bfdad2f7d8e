# SPDX-License-Identifier: Apache-2.0
"""The supervisors' socket, which sdss, sdstat and sdtop ask: who is answered, how often, and what is no answer."""

from __future__ import annotations

import glob
import itertools
import json
import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdlib import abi
from sdlib.wire import trees
from sdtrace.inspection import Inspection
from tests.harness import Program, Runner, free_port
from tests.sdtrace.support import supervisor_of
from tests.tools.support import SERVER, ask, python, wait_for


def sockets(runner: Runner, program: Program) -> list[Path]:
    folder = Path(runner.env["XDG_RUNTIME_DIR"]) / "socksdirect"
    return list(folder.glob(trees.socket_name(supervisor_of(program))))


def test_clients_that_do_not_read_hold_up_nobody(shm: Runner) -> None:
    program = shm.start(*python(SERVER, str(free_port())))
    path = wait_for(lambda: next(iter(sockets(shm, program)), None))
    idle = [socket.socket(socket.AF_UNIX) for _ in range(60)]
    for client in idle:
        client.setblocking(False)
        client.connect_ex(str(path))
    with suppress(OSError):  # it may have been hung up on already
        idle[0].send(b"GET / HTTP/1.0\r\n" * 100)
    assert trees.ask(str(path))["supervisor"]["root_pid"] == program.pid
    for client in idle:
        client.close()
    program.stop()
    wait_for(lambda: not path.exists())


def test_a_killed_supervisor_leaves_a_name_that_the_next_removes(shm: Runner) -> None:
    first = shm.start("sleep", "60")
    path = wait_for(lambda: next(iter(sockets(shm, first)), None))
    os.kill(supervisor_of(first), signal.SIGKILL)
    with pytest.raises(trees.Unreachable):
        wait_for(lambda: trees.ask(str(path)) and None)
    assert str(path) not in ask(shm.env, "sdss", "-a")
    second = shm.start("sleep", "60")
    wait_for(lambda: sockets(shm, second) and not path.exists())


def test_only_its_user_and_root_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    inspection = Inspection(lambda: {"version": trees.VERSION})
    inspection.open()
    [path] = glob.glob(f"{tmp_path}/*/tree-*.sock")
    for uid, answer in ((os.geteuid(), b'{"version":1}\n'), (4711, b"")):
        monkeypatch.setattr(trees, "peer_of", lambda _, uid=uid: (1, uid))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            inspection.events()
            client.settimeout(10)
            assert client.recv(100) == answer
    inspection.close()
    assert not Path(path).exists()


def test_a_folder_with_a_long_name_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of services with a /tmp of their own are, seen from outside."""
    monkeypatch.setattr(trees, "well_formed", lambda _: True)
    short = tmp_path / "s"
    short.mkdir()
    document = {"version": trees.VERSION, "supervisor": {"pid": os.getpid()}}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "tree-1.sock"))
        listener.listen()
        long = short.rename(tmp_path / ("l" * 120)) / "tree-1.sock"

        def answer() -> None:
            conn, _ = listener.accept()
            conn.sendall(json.dumps(document).encode())
            conn.close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert trees.ask(str(long))["here"]
        thread.join()


def test_asking_takes_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks all the time, and however long an answer takes to build: by a clock of our own.

    But for the first answer, which is long for what it imports: the second is built as soon as it is asked for.
    """
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    clock = [1000.0]
    built: list[float] = []

    def build() -> dict[str, Any]:
        built.append(clock[0])
        clock[0] += 0.5
        return {"version": trees.VERSION}

    inspection = Inspection(build)
    inspection.open()
    monkeypatch.setattr("sdtrace.inspection.time", SimpleNamespace(monotonic=lambda: clock[0]))
    [path] = glob.glob(f"{tmp_path}/*/tree-*.sock")
    for _ in range(1000):
        clock[0] += 0.1
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            inspection.events()
            assert client.recv(100) == b'{"version":1}\n'
    inspection.close()
    assert built[1] - built[0] < 0.7
    gaps = [later - sooner for sooner, later in itertools.pairwise(built[1:])]
    assert len(gaps) > 5 and all(0.04 <= 0.5 / gap <= 0.05 for gap in gaps)


@pytest.mark.parametrize("change", [
    {"version": 2}, {"supervisor": None}, {"processes": [{"pid": 1}]}, {"connections": [1]}, {"counters": {}},
    {"connections": [{"inode": "x"}]}, {"tcp_reasons": {"x": "y"}}, {"monitor": {}},
])  # fmt: skip
def test_a_document_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            change: dict[str, Any]) -> None:
    counters = dict.fromkeys(abi.COUNTERS, 0)
    meter = {"times": 0, "seconds": 0.0}
    document: dict[str, Any] = {
        "version": trees.VERSION, "monitor": {"offers": meter}, "counters": counters, "tcp_reasons": {},
        "moved_back": {},
        "supervisor": {"pid": 1, "root_pid": 1, "command": "x", "errors": 0, "notifications": meter},
        "processes": [], "connections": [], "connections_left_out": 0,
    }  # fmt: skip
    assert trees.well_formed(document)
    monkeypatch.setattr(trees, "_read_all", lambda _: json.dumps(document | change).encode())
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(trees.Unreachable):
            trees.ask(path)
