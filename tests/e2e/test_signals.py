# SPDX-License-Identifier: Apache-2.0
"""Signals where there is little room, or many of them: a small stack, a run time that interrupts itself."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.test_attach import finish, more_rounds, start_client
from tests.e2e.test_detach_part import CONNECTIONS, carried
from tests.guestbuild import Guests
from tests.harness import REPORT_WITHIN_S, SDRUN, Runner, free_port, is_listening
from tests.sdtrace.support import supervisor_of


def test_go_interrupts_itself(runner: Runner, guests: Guests) -> None:
    """See tests/guests/preempt.go."""
    program = runner.run(guests("preempt", "go"))
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=100_000)


@pytest.mark.parametrize("what", ["library", "bare"])
def test_a_ticking_timer_does_not_keep_a_program_from_ending(what: str, runner: Runner, guests: Guests) -> None:
    """Go's scheduler is such a timer, for who ends. The report is made meanwhile, which takes longer than a tick."""
    program = runner.start(guests("exit_ticking"), what)
    assert program.wait(30) == 7
    assert program.stdout == b"ends\n"


@pytest.mark.parametrize("flavour", ["glibc", "glibc-static", "musl-static"])
def test_small_alternate_stack(flavour: str, runner: Runner, guests: Guests) -> None:
    """See tests/guests/small_stack.c."""
    program = runner.run(guests("small_stack", flavour))
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=400)


def test_a_daemon_outlives_the_terminal_that_started_it(shm: Runner, guests: Guests, tmp_path: Path) -> None:
    """The shell on it ends by SIGHUP; what it has started goes on, on shared memory, as do connections made later."""
    port, own = free_port(), tmp_path / "pid"
    words = [SDRUN, "--set", "upgrade=eager", "--", "sh", "-c",
             f"setsid sh -c 'echo $$ >{own}; exec {guests('waits')} {port}' & read nothing"]
    shell, terminal = pty.fork()
    if shell == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and stays so
        os.execve(SDRUN, list(map(str, words)), shm.env)
    deadline = time.monotonic() + REPORT_WITHIN_S
    while not is_listening(port):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    daemon = int(own.read_text())
    try:
        client = start_client(shm, port, CONNECTIONS, 0.0, "echo")
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1]) == -signal.SIGHUP
        more_rounds(0.2)
        finish(client)
        assert client.report().shm == CONNECTIONS
        assert carried(shm, port) == CONNECTIONS
    finally:
        os.kill(daemon, signal.SIGTERM)


TICKS = """
import signal, socket
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, {interrupt})
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server = listener.accept()[0]
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for _ in range(3000):
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    server.sendall(b"y")
    assert client.recv(1) == b"y"
signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.parametrize("interrupt", [True, False], ids=["plain", "restart"])
def test_a_connection_moves_while_a_timer_ticks(runner: Runner, interrupt: bool) -> None:
    """What asks for it takes longer than a tick, and was asked for anew behind each, or given up."""
    runner.check(runner.run(sys.executable, "-c", TICKS.format(interrupt=interrupt)), at_least=2)


def test_the_first_socket_is_not_interrupted(native: Runner, guests: Guests) -> None:
    """It waits for the supervisor, which is started for it: see tests/guests/first_tick.c."""
    assert native.run(guests("first_tick")).stdout == b"failed 0\n"
    program = native.run(SDRUN, "--", guests("first_tick"))
    assert program.stdout == b"failed 0\n"
    assert program.stderr == "inside 4, shared 1\n"  # else it has shown nothing


def test_nor_while_the_supervisor_is_busy(native: Runner, guests: Guests, tmp_path: Path) -> None:
    """Who injects into another program, or waits for a monitor, hears of nothing meanwhile; here it stands still."""
    go, guest = tmp_path / "go", guests("first_tick")
    program = native.start(SDRUN, "--", "sh", "-c", f"{guests('first_socket')} </dev/null; exec {guest} {go}")
    program.until(lambda: os.readlink(f"/proc/{program.pid}/exe") == str(guest), "the supervisor serves")
    time.sleep(0.1)  # libraries are loaded
    supervisor = supervisor_of(program)
    os.kill(supervisor, signal.SIGSTOP)
    try:
        go.touch()
        time.sleep(0.5)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    program.ok()
    assert program.stdout.endswith(b"failed 0\n")
    assert program.stderr == "inside 4, shared 1\n"
