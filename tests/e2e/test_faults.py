# SPDX-License-Identifier: Apache-2.0
"""What breaks around a program: it sees no error that it would not see natively, and every byte arrives."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.e2e.test_live_policy import STAGES, Pair
from tests.guestbuild import Guests
from tests.harness import ROOT, SDRUN, Mode, Program, Runner, end_monitor, free_port
from tests.monitor.support import MonitorProcess

LIMITED = """
import resource, socket, sys, errno
l = socket.create_server(("127.0.0.1", 0), backlog=100)
kept = []
used = int(open("/proc/self/statm").read().split()[0]) * 4096
kind, soft = getattr(resource, sys.argv[1]), eval(sys.argv[2])
resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
try:
    while len(kept) < 40:
        c = socket.socket(); c.connect(l.getsockname()); s, _ = l.accept(); kept.append((c, s))
        for n in range(60):
            c.sendall(b"%d" % n); assert s.recv(9) == b"%d" % n
            s.sendall(b"x"); assert c.recv(9) == b"x"
except OSError as error:
    print(errno.errorcode[error.errno])
for c, s in kept:
    for n in range(60):
        c.sendall(b"%d" % n); assert s.recv(9) == b"%d" % n
print(len(kept))
"""


@pytest.mark.parametrize(("limit", "value"), [("RLIMIT_NOFILE", 20), ("RLIMIT_NOFILE", 21), ("RLIMIT_FSIZE", 100)])
def test_limits_of_the_program(runner: Runner, limit: str, value: int, native: Runner) -> None:
    """As many descriptors as natively, with the same error after the last; areas that cannot be made bring none."""
    wanted = native.run(sys.executable, "-c", LIMITED, limit, str(value)).stdout
    assert runner.run(sys.executable, "-c", LIMITED, limit, str(value)).stdout == wanted


@pytest.mark.parametrize("room", [300, 4000])
def test_no_room_for_mappings(shm: Runner, room: int) -> None:
    """What can be mapped is; the other connections stay on TCP."""
    program = shm.run(sys.executable, "-c", LIMITED, "RLIMIT_AS", f"used + ({room} << 10)")
    assert program.stdout == b"40\n"
    assert program.report().shm < 80


TALKS = """
import socket
l = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(l.getsockname()); s = l.accept()[0]
for n in range(500):
    c.sendall(b"%d" % n); assert s.recv(9) == b"%d" % n
    s.sendall(b"x"); assert c.recv(9) == b"x"
"""


@pytest.mark.parametrize("limit", ["--fsize=0:", "--fsize=20000:", "--nofile=20:", "--as=400000000:"])
def test_limits_before_the_start(shm: Runner, limit: str) -> None:
    """The program's limits are not those of what works for it, up to the hard ones."""
    shm.before = ["prlimit", limit]
    program = shm.run(sys.executable, "-c", TALKS)
    shm.check(program, at_least=2)


def test_rings_are_as_large_as_files_may_be(shm: Runner) -> None:
    """By a hard limit, which holds for a monitor that the tree starts, too: four megabytes do not fit twice."""
    shm.before = ["prlimit", "--fsize=6000000"]
    shm.check(shm.run(sys.executable, "-c", TALKS), at_least=2)


@pytest.mark.parametrize("limit", ["--fsize=0", "--fsize=20000", "--fsize=2000000", "--nofile=12"])
def test_hard_limits_before_the_start(sd_env: dict[str, str], limit: str) -> None:
    """Where the memory that we need cannot be had, the program runs, on TCP: the tree has a keeper in any case."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="sdlim-", dir="/tmp") as folder:
        os.chmod(folder, 0o700)
        if user:
            os.chown(folder, 65534, 65534)
        env = {**sd_env, "XDG_RUNTIME_DIR": folder, "XDG_CONFIG_HOME": folder, "HOME": folder}
        try:
            for _ in range(5):  # once the listener was lost on its way to a keeper that had ended
                done = subprocess.run([*user, "prlimit", limit, SDRUN, "--", sys.executable, "-c", TALKS], env=env,
                                      capture_output=True, text=True, timeout=60, check=False)
                assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            if limit == "--fsize=0":  # what has to be checked cannot be: one line, and nothing is left waiting
                done = subprocess.run([*user, "prlimit", limit, SDRUN, "--set", "upgrade=eager", "--", "true"], env=env,
                                      capture_output=True, text=True, timeout=60, check=False)
                assert done.returncode == 125
                assert "supervisor did not start" in done.stderr
        finally:
            end_monitor(Path(folder))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_monitor_killed_or_stopped(shm: Runner, tmp_path: Path, number: signal.Signals) -> None:
    pair = Pair(shm, tmp_path)
    pair.open(0, 1)
    pair.monitor.process.send_signal(number)
    pair.open(2, 3)
    pair.beats(20)
    if number is signal.SIGSTOP:
        pair.monitor.process.send_signal(signal.SIGCONT)
        pair.open(4)
    server, driver = pair.finish()
    for program in (server, driver):
        assert program.report().shm >= 2


HANGS_UP = """
import socket, sys, time
first = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
first.sendall(b"here"); first.recv(1)
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
for _ in range(30): s.sendall(b"x")
if sys.argv[2] == "unread":
    while not s.recv(1, socket.MSG_PEEK): pass
if sys.argv[2] != "killed": s.close()
print("closed", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["closed", "unread", "killed"])
def test_monitor_stopped_keeps_no_connection_open(shm: Runner, tmp_path: Path, how: str) -> None:
    """The socket that it was offered lies in its queue; the peer hears of the end all the same, in the kernel's way."""
    monitor = MonitorProcess(tmp_path)
    shm.env = {**shm.env, "SOCKSDIRECT_MONITOR": monitor.path}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        port = str(listener.getsockname()[1])
        program = shm.start(sys.executable, "-c", HANGS_UP, port, how)
        first, _ = listener.accept()
        assert first.recv(4) == b"here"  # and offered
        monitor.process.send_signal(signal.SIGSTOP)
        first.sendall(b"!")
        peer, _ = listener.accept()
        with peer, first:
            peer.settimeout(60)
            if how == "unread":
                peer.sendall(b"never read")
            program.until(lambda: program.stdout == b"closed\n", "it closes", timeout=60)
            if how == "killed":
                program.stop(signal.SIGKILL)
            if how == "unread":
                with pytest.raises(ConnectionResetError):
                    read_all(peer)
            else:
                assert read_all(peer) == b"x" * 30
    monitor.process.send_signal(signal.SIGCONT)
    monitor.close()


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(100):
        data += part
    sock.sendall(b"?")  # whoever reset it says so now
    return data


def test_monitor_that_gets_no_memory(shm: Runner, tmp_path: Path) -> None:
    """memfds that cannot be given a size."""
    pair = Pair(shm, tmp_path)
    os.system(f"prlimit --pid {pair.monitor.process.pid} --fsize=4096")
    pair.open(0, 1)
    _, driver = pair.finish()
    assert driver.report().raw["connections"]["tcp_reasons"] == {"monitor-refused": 2}


def test_two_monitors(tmp_path: Path, sd_env: dict[str, str]) -> None:
    """Ends that know different monitors do not find each other, and need not."""
    programs: list[Program] = []
    port = free_port()
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "open-0").touch()
    runners = []
    for words in (("serve", str(port)), ("drive", str(port), str(tmp_path / "stages"))):
        folder = tmp_path / words[0]
        folder.mkdir()
        runners.append(Runner(Mode.SHM, folder, {**sd_env, "SOCKSDIRECT_MONITOR": str(folder / "m.sock")}))
        programs.append(runners[-1].start(sys.executable, STAGES, *words))
        if words[0] == "serve":
            programs[0].listening(port)
    programs[1].until((tmp_path / "stages" / "done-0").exists, "carries")
    (tmp_path / "stages" / "stop").touch()
    programs[1].ok()
    programs[0].stop(signal.SIGKILL)
    assert programs[1].report().raw["connections"]["tcp_reasons"] == {"peer-not-under-sdrun": 1}
    for runner in runners:
        runner.close()


def test_a_thousand_programs_at_once(shm: Runner, guests: Guests) -> None:
    """One tree; each makes sockets; all come to their own good end."""
    guest = guests("first_socket")
    program = shm.start(
        "sh", "-c", f"for i in $(seq 1000); do {guest} </dev/null >/dev/null || echo bad & done; wait; echo end"
    )
    assert program.wait(120) == 0
    assert program.stdout == b"end\n", program.describe()
    lines = [line for line in program.report().raw["processes"] if line["exe"] == str(guest)]
    assert len(lines) == 1000 and sum(line["injected"] for line in lines) > 900, sum(line["injected"] for line in lines)


def test_supervisor_out_of_descriptors(shm: Runner, tmp_path: Path) -> None:
    """More connections than the supervisor may hold segments of: the others stay on TCP."""
    pair = Pair(shm, tmp_path, "--set", "ring=4KiB")
    pair.open(0)
    pair.until(lambda: [row["state"] for row in pair.rows()] == ["shm"], "the first one is paired")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"sdtrace.supervisor" in words and b"--root-pid=%d" % pair.driver.pid in words:
            os.system(f"prlimit --pid {folder.name} --nofile=40")
    pair.open(*range(1, 60), wait=False)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all((pair.folder / f"done-{n}").exists() for n in range(60)):
        pair.beats(5)
    assert all((pair.folder / f"done-{n}").exists() for n in range(60))
    _, driver = pair.finish()
    assert 0 < driver.report().shm < 60


POKED = """
import errno, os, select, socket, sys, time
def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    two = listener.accept()[0]
    for _ in range(300):
        one.sendall(b"x"); two.sendall(two.recv(1)); one.recv(1)
    return one, two
def wait(name):
    print(name, flush=True)
    while not os.path.exists(name):
        time.sleep(0.01)
pairs = [pair()]
waits = select.epoll()
waits.register(pairs[0][1], select.EPOLLIN)
pairs[0][0].sendall(b"x")
assert waits.poll(1)
wait("broken")
try:
    waits.poll(1)
except OSError as error:
    print(errno.errorcode[error.errno])
wait("mended")
assert waits.poll(1)
pairs.append(pair())
"""


def test_a_fault_of_the_library_itself_is_counted(shm: Runner, tmp_path: Path) -> None:
    """A wild pointer of its own: the call says EFAULT, as for one of the program's, but that is told, and what is
    opened from then on stays on TCP."""
    names = subprocess.run(["nm", ROOT / "sdlib/_image/sdlib.elf"], capture_output=True, text=True, check=True).stdout
    table = int(next(line for line in names.splitlines() if line.endswith(" ep_table")).split()[0], 16)
    program = shm.start(sys.executable, "-c", POKED, cwd=tmp_path)

    def poke(words: list[int], then: str) -> list[int]:
        with Path(f"/proc/{program.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(table)
            before = list(struct.unpack("=8Q", memory.read(64)))
            memory.seek(table)
            memory.write(struct.pack("=8Q", *words))
        (tmp_path / then).touch()
        return before

    program.until(lambda: b"broken" in program.stdout, "a connection on shared memory")
    was = poke([0x5EAD00000000] * 8, "broken")
    program.until(lambda: b"mended" in program.stdout, "the fault")
    poke(was, "mended")
    program.ok()
    assert program.stdout == b"broken\nEFAULT\nmended\n"
    report = program.report(faults_inside=1)
    assert report.shm == 2, report
    assert report.raw["connections"]["tcp_reasons"] == {"fault-inside": 2}, report
