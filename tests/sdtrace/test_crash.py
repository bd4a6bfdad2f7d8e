# SPDX-License-Identifier: Apache-2.0
"""The supervisor dies, at any moment: the programs go on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdtrace.keepsake import SIZE, Keepsake
from tests.guestbuild import Guests
from tests.harness import GUESTS, ROOT, SDRUN, Mode, Program, Runner, end_monitor
from tests.sdtrace.support import keeper_library, supervisor_of


@pytest.fixture
def plain(tmp_path: Path, sd_env: dict[str, str]) -> Iterator[Runner]:
    """No option that must be checked: the program starts without waiting for the supervisor."""
    made = Runner(Mode.NO_ACCEL, tmp_path, sd_env)
    yield made
    made.close()


def finish(program: Program) -> None:
    """The program has to come to its own good end."""
    assert program.wait(30) == 0, program.describe()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.parametrize("after_ms", [0, 5, 20, 60, 150, 400])
def test_kill_the_supervisor(plain: Runner, guests: Guests, after_ms: int) -> None:
    """From before it is ready to long after the injection: the calls of the program keep working."""
    program = plain.start("sh", "-c", f"sleep {0.6 + after_ms / 200} | {guests('first_socket')}")
    supervisor = supervisor_of(program)
    time.sleep(after_ms / 1000)
    os.kill(supervisor, signal.SIGKILL)
    finish(program)
    assert b"done" in program.stdout
    assert "ended before" in program.report().raw["error"]


def test_kill_before_the_verdict(shm: Runner) -> None:
    """Options that nobody has checked: nothing is started, and one line says so."""
    for _ in range(10):  # it may be faster than we find it
        program = shm.start("echo", "started")
        os.kill(supervisor_of(program), signal.SIGKILL)
        if program.wait() == 125:
            assert program.stdout == b"" and program.stderr.count("\n") == 1
            return
        assert program.stdout == b"started\n"
    raise AssertionError("the supervisor was never caught before its verdict")


def test_kill_while_programs_are_being_injected(shm: Runner, guests: Guests) -> None:
    """Many short programs, each injected; the kill comes somewhere in between."""
    guest = guests("first_socket")
    for _ in range(8):
        program = shm.start("sh", "-c", f"for i in $(seq 60); do {guest} </dev/null || exit 1; done")
        supervisor = supervisor_of(program)
        program.until(lambda program=program: b"done" in program.stdout, "the first one")  # type: ignore[misc]
        time.sleep(random.random() * 0.05)
        os.kill(supervisor, signal.SIGKILL)
        finish(program)
        assert program.stdout.count(b"done") == 60


def test_threads_survive_the_kill(shm: Runner, guests: Guests) -> None:
    """Killed right around the stop of a process with many blocked threads."""
    for delay in (0.10, 0.14, 0.15, 0.16, 0.18):
        program = shm.start(guests("blocked_threads"))
        supervisor = supervisor_of(program)
        program.until(lambda: os.readlink(f"/proc/{program.pid}/exe") != str(SDRUN), "execve")  # noqa: B023
        time.sleep(delay - 0.1)
        os.kill(supervisor, signal.SIGKILL)
        finish(program)


def test_kill_the_keeper(shm: Runner, guests: Guests) -> None:
    """The supervisor holds the listener as well."""
    program = shm.start("sh", "-c", f"sleep 0.8 | {guests('first_socket')}")
    supervisor = supervisor_of(program)
    keeper = parent_of(supervisor)
    program.until(lambda: os.readlink(f"/proc/{program.pid}/exe") != str(SDRUN), "execve")
    time.sleep(0.4)
    os.kill(keeper, signal.SIGKILL)
    finish(program)
    assert program.report().raw["exit_status"] == 0


def test_kill_the_keeper_while_programs_are_being_injected(shm: Runner, guests: Guests) -> None:
    """It receives for the supervisor: what it has just received is answered, too."""
    guest = guests("first_socket")
    for _ in range(6):
        program = shm.start("sh", "-c", f"for i in $(seq 40); do {guest} </dev/null & {guest} </dev/null; wait; done")
        keeper = parent_of(supervisor_of(program))
        program.until(lambda program=program: b"done" in program.stdout, "the first one")  # type: ignore[misc]
        time.sleep(random.random() * 0.05)
        os.kill(keeper, signal.SIGKILL)
        finish(program)
        assert program.stdout.count(b"done") == 80
        assert program.report().raw["exit_status"] == 0


@pytest.mark.parametrize("victims", ["supervisor", "monitor", "both"])
def test_connections_go_on_and_a_new_sdrun_serves(victims: str, shm: Runner, guests: Guests) -> None:
    """Killed while connections are made, switched and used; afterwards everything is as if nothing had been."""
    runtime = Path(shm.env["XDG_RUNTIME_DIR"])
    for _ in range(3):
        program = shm.start(guests("churn"))
        supervisor = supervisor_of(program)
        program.until(lambda: os.readlink(f"/proc/{program.pid}/exe") != str(SDRUN), "execve")  # noqa: B023
        time.sleep(random.random() * 0.3)
        if victims != "supervisor":
            end_monitor(runtime, signal.SIGKILL)
        if victims != "monitor":
            os.kill(supervisor, signal.SIGKILL)
        finish(program)
        assert program.stdout == b"ok\n"
    for _ in range(20):  # a monitor has to start first, which takes longer than a guest lives
        if shm.run(guests("dup")).report().shm == 2:
            return
    raise AssertionError("no connection on shared memory after the kill")


@pytest.mark.parametrize("moment", ["before the exec", "between exec and birth", "both"])
def test_killed_around_an_exec(moment: str, shm: Runner, guests: Guests, born: Path, tmp_path: Path) -> None:
    """A connection with unread bytes on its ring goes to the next program, though whoever has to give it is dead."""
    first, second = tmp_path / "first", tmp_path / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    program = shm.start(guests("handover"), first, born, second)
    program.until(lambda: b"handover" in parts_of(program, first), "in the middle of a conversation")
    if moment != "between exec and birth":
        os.kill(supervisor_of(program), signal.SIGKILL)
    let_go(first)
    program.until(lambda: b"born" in parts_of(program, second), "the next program, before its birth")
    if moment != "before the exec":
        os.kill(supervisor_of(program), signal.SIGKILL)
    let_go(second)
    finish(program)
    report = program.report()
    assert "ended before" in report.raw["error"]
    assert report.shm == 2 and report.shm_bytes > 4 * 5000


def parts_of(program: Program, fifo: Path) -> bytes:
    """Names of the processes of a program that wait for somebody to open `fifo` for writing."""
    with subprocess.Popen(["pgrep", "-g", str(program.pid)], stdout=subprocess.PIPE) as found:
        assert found.stdout
        pids = found.stdout.read().split()
    names = b""
    for pid in map(int, pids):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("2", "257"):  # open, openat
                names += Path(f"/proc/{pid}/comm").read_bytes()
    return names


def let_go(fifo: Path) -> None:
    """Whoever waits for the other end of it goes on."""
    fifo.open("wb").close()


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See tests/guests/born.c."""
    made = tmp_path_factory.mktemp("born") / "born"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-nostdlib", "-static", "-fno-stack-protector"]
    subprocess.run(["gcc", *flags, "-o", made, GUESTS / "born.c"], check=True)
    return made


def test_killed_again_and_again_while_programs_hand_a_connection_on(shm: Runner, guests: Guests) -> None:
    """Sixty programs, one after the other, have the same connection; supervisors, and those after them, are killed."""
    kills = 0
    for _ in range(4):
        program = shm.start(guests("handover"), "chain", "60")
        program.until(lambda: os.readlink(f"/proc/{program.pid}/exe") != str(SDRUN), "execve")  # noqa: B023
        for _ in range(6):
            time.sleep(random.random() * 0.15)
            with contextlib.suppress(AssertionError, ProcessLookupError):  # it has come to its end
                os.kill(supervisor_of(program, 0.5), signal.SIGKILL)
                kills += 1
        finish(program)
        assert program.stdout == b"ok\n"
    assert kills > 4


def test_a_connection_on_tcp_moves_up_after_an_exec(shm: Runner, guests: Guests) -> None:
    """The side that is handed on comes to its four hundredth operation only in a later program."""
    shm.eager = False
    shm.options = ["--set", "upgrade=after_ops:400"]
    program = shm.run(guests("handover"), "chain", "60")
    report = program.report()
    assert (report.shm, report.total) == (2, 2), report


def test_killed_where_something_may_be_denied(shm: Runner, guests: Guests, born: Path, tmp_path: Path) -> None:
    """The successor knows no more who may do what: connections of before go on, new ones are denied."""
    first, second = tmp_path / "first", tmp_path / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    shm.options = ["-r", "out tcp *:25 deny"]
    connect = "try: socket.create_connection(('127.0.0.1', 9))\nexcept PermissionError: print('denied')"
    command = f'"$1" "$2" "$3" "$4"; python3 -c "import socket\n{connect}"'
    program = shm.start("sh", "-c", command, "sh", guests("handover"), first, born, second)
    program.until(lambda: b"handover" in parts_of(program, first), "in the middle of a conversation")
    os.kill(supervisor_of(program), signal.SIGKILL)
    let_go(first)
    program.until(lambda: b"born" in parts_of(program, second), "the next program, before its birth")
    let_go(second)
    finish(program)
    assert program.stdout == b"ok\ndenied\n"


HALF_DONE = """
import os, sys
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Notification
from sdtrace import ptrace, remote
pid, keepsake = int(sys.argv[1]), Keepsake(int(sys.argv[2]))
words = open(f"/proc/{pid}/syscall").read().split()
notif = Notification(0, pid, int(words[0]), int(words[-1], 16), ())
with remote.Stopped(pid, notif, keepsake) as stopped:
    stopped.prepare_calls()
    leader = stopped._leader
    registers = leader.registers.copy()
    registers.rip, registers.rax, registers.orig_rax = notif.ip - 2, 39, ptrace.ALL_SIGNALS
    registers.rbx = remote.MARK
    ptrace.set_registers(pid, registers)
    ptrace.ask(ptrace.CONT, pid)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def keeper_rescue(tmp_path_factory: pytest.TempPathFactory) -> ctypes._NamedFuncPointer:
    """The keeper's function, from its source."""
    return ctypes.CDLL(str(keeper_library(tmp_path_factory.mktemp("rescue")))).keeper_rescue


def test_rescue_of_a_thread_in_a_remote_call(keeper_rescue: ctypes._NamedFuncPointer) -> None:
    """A tracer that ends in the middle of a remote call leaves a thread with wrong registers, a loop in its code and
    blocked signals; the rescue gives all of them back, and the interrupted read() delivers what comes."""
    victim = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert victim.stdin is not None and victim.stdout is not None
    memory = os.memfd_create("keepsake", 0)
    os.ftruncate(memory, SIZE)
    os.set_inheritable(memory, True)
    try:
        until_in_call(victim.pid, 0)
        subprocess.run([sys.executable, "-c", HALF_DONE, str(victim.pid), str(memory)], check=True, cwd=ROOT,
                       pass_fds=[memory], timeout=20)
        assert Path(f"/proc/{victim.pid}/syscall").read_text().startswith("running")
        page = Keepsake(memory).page
        keeper_rescue((ctypes.c_char * SIZE).from_buffer(page))
        until_in_call(victim.pid, 0)
        victim.stdin.write(b"as if nothing had been\n")
        victim.stdin.close()
        assert victim.stdout.read() == b"as if nothing had been\n"
        assert victim.wait(10) == 0
    finally:
        victim.kill()
        victim.wait()
        os.close(memory)


def until_in_call(pid: int, number: int) -> None:
    """Wait until the process waits in system call `number`."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/syscall").read_text().split()[0] != str(number):
        assert time.monotonic() < deadline
        time.sleep(0.01)
