# SPDX-License-Identifier: Apache-2.0
"""Injection into real programs: who gets the library, who does not and why, and that nobody notices."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.guestbuild import C_COMPILERS, Guests
from tests.harness import Runner
from tests.sdtrace.support import lines_of, own_line


@pytest.mark.parametrize("flavour", C_COMPILERS)
def test_blocked_threads_are_undisturbed(shm: Runner, guests: Guests, flavour: str) -> None:
    """Threads in recv, epoll_wait, futex, nanosleep, ppoll, sigtimedwait, semop see no EINTR and wait in full."""
    program = shm.run(guests("blocked_threads", flavour))
    assert program.stdout == b"undisturbed\n"
    assert own_line(program)["injected"]


@pytest.mark.parametrize("flavour", C_COMPILERS)
def test_first_socket(shm: Runner, guests: Guests, flavour: str) -> None:
    program = shm.run(guests("first_socket", flavour))
    line = own_line(program)
    assert line["injected"] and line["reason"] == ""
    assert line["exe"] == str(guests("first_socket", flavour))
    assert program.report().raw["supervisor_errors"] == 0


def test_children_killed_meanwhile(shm: Runner, guests: Guests) -> None:
    """See tests/guests/killed_young.c."""
    program = shm.run(guests("killed_young"))
    assert program.stdout == b"ok\n"
    assert any(line["injected"] for line in lines_of(program))


def test_python(shm: Runner) -> None:
    program = shm.run("python3", "-c", "import socket; socket.socket(); print('fine')")
    assert program.stdout == b"fine\n" and own_line(program)["injected"]


HARD = ["not-dumpable", "gs-in-use", "address-taken", "own-seccomp-filter"]


@pytest.mark.parametrize("how", HARD)
def test_stays_on_the_kernel_with_a_reason(shm: Runner, guests: Guests, how: str) -> None:
    program = shm.run(guests("first_socket"), how)
    line = own_line(program)
    assert (line["injected"], line["reason"]) == (False, how)


PLACES = {"random": [], "not random": ["setarch", "-R"], "upwards": ["prlimit", "--stack=unlimited:", "--"]}


@pytest.mark.parametrize("before", PLACES.values(), ids=PLACES)
def test_programs_that_reserve_terabytes(shm: Runner, guests: Guests, before: list[str]) -> None:
    """The library's place is not one that mmap comes to, in either direction."""
    program = shm.run(*before, guests("first_socket"), "reserves")
    line = own_line(program)
    assert line["injected"] and line["reason"] == ""


def test_an_ignored_sigtrap_stays_ignored(shm: Runner, guests: Guests) -> None:
    """Injection uses no signal: a disposition that a forced one would reset is still there."""
    program = shm.run(guests("first_socket"), "ignores-sigtrap")
    assert own_line(program)["injected"] and program.stdout.endswith(b"still ignored\n")


def test_signals_that_come_sooner_than_we_do(shm: Runner, guests: Guests) -> None:
    """Each ends the notified call, which is then made anew; Go's preemption is such a timer on a busy machine."""
    program = shm.run(guests("first_socket"), "ticks")
    line = own_line(program)
    assert line["injected"], line
    assert program.report().raw["supervisor_errors"] == 0


def test_traced_program_stays_on_the_kernel(shm: Runner, guests: Guests) -> None:
    program = shm.run("strace", "-f", "-o", "/dev/null", guests("first_socket"))
    line = next(line for line in lines_of(program) if line["exe"] == str(guests("first_socket")))
    assert (line["injected"], line["reason"]) == (False, "already-traced")


def test_policy_keeps_a_program_on_the_kernel(shm: Runner, guests: Guests) -> None:
    shm.options = ["--set", "default=kernel"]
    program = shm.run(guests("first_socket"))
    assert own_line(program)["reason"] == "policy"


def test_program_without_sockets_is_not_touched(shm: Runner) -> None:
    program = shm.run("sh", "-c", "cat /proc/self/maps; true")
    assert b"551000000000" not in program.stdout
    assert [line["reason"] for line in lines_of(program)] == ["no-socket-call"] * len(lines_of(program))


def test_unix_and_datagram_sockets_are_not_touched(shm: Runner) -> None:
    code = (
        "import socket, threading\n"
        "a, b = socket.socketpair(); a.send(b'x'); b.recv(1)\n"
        "u = socket.socket(socket.AF_UNIX); u.bind('\\0sdrun-test-' + str(__import__('os').getpid())); u.listen()\n"
        "d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.bind(('127.0.0.1', 0))\n"
    )
    program = shm.run("python3", "-c", code)
    assert own_line(program)["reason"] == "no-socket-call"


def test_inherited_listener_is_the_first_use(shm: Runner) -> None:
    """Socket activation: the program never calls socket(), only accept()."""
    code = (
        "import os, socket, sys\n"
        "listener = socket.create_server(('127.0.0.1', 0)); peer = socket.create_connection(listener.getsockname())\n"
        "listener.set_inheritable(True); peer.set_inheritable(True)\n"
        "child = 'import socket, sys; l = socket.socket(fileno=int(sys.argv[1])); print(l.accept()[0].fileno() > 0)'\n"
        "os.execv(sys.executable, [sys.executable, '-c', child, str(listener.fileno())])\n"
    )
    program = shm.run("python3", "-c", code)
    assert program.stdout == b"True\n"
    assert any(line["injected"] for line in lines_of(program))


def test_descriptors_are_the_same(shm: Runner, native: Runner) -> None:
    """The library owns no descriptor: the next free number is what it is natively."""
    code = "import os, socket; s = socket.socket(); print(s.fileno(), os.dup(0), sorted(os.listdir('/proc/self/fd')))"
    assert shm.run("python3", "-c", code).stdout == native.run("python3", "-c", code).stdout


def test_exit_status_in_the_report(shm: Runner) -> None:
    for script, status in (("exit 7", 7), ("kill -TERM $$", 143)):
        program = shm.start("sh", "-c", script)
        program.wait()
        assert program.report().raw["exit_status"] == status


def test_report_is_there_when_the_parent_sees_the_end(shm: Runner, guests: Guests) -> None:
    program = shm.run(guests("first_socket"))
    report = program._report
    assert report is not None and report.exists()


def test_children_of_the_shell_are_listed(shm: Runner, guests: Guests) -> None:
    program = shm.run("bash", "-c", f"{guests('first_socket')} </dev/null; {guests('first_socket', 'musl-static')}")
    injected = {line["exe"] for line in lines_of(program) if line["injected"]}
    assert injected == {str(guests("first_socket")), str(guests("first_socket", "musl-static"))}


def test_gdb_works_before_the_first_socket(shm: Runner) -> None:
    """A process that was not injected is an ordinary one to a debugger."""
    program = shm.start("sleep", "30")
    program.until(lambda: os.readlink(f"/proc/{program.pid}/exe").endswith("sleep"), "exec")
    done = subprocess.run(["gdb", "-nx", "-batch", "-p", str(program.pid), "-ex", "info registers rip"],
                          capture_output=True, text=True, timeout=60, check=False)
    assert "rip" in done.stdout, done.stderr
