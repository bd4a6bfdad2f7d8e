# SPDX-License-Identifier: Apache-2.0
"""`sdrun --trace` and `sdtrace`: what they tell is compared with what strace tells of the same program run natively."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.guestbuild import Guests
from tests.harness import SDRUN, Program
from tests.once import reachable
from tests.trace.support import burst
from tools.observe.sdtrace import parser

BIN = SDRUN.parent
TRIPS = 40

ECHO = """
import os, socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
child = os.fork()
if child == 0:
    conn, _ = listener.accept()
    while data := conn.recv(100): conn.sendall(data)
    os._exit(0)
client = socket.create_connection(listener.getsockname())
for number in range(TRIPS):
    client.sendall(b"x" * (number % 50 + 1))
    client.recv(100)
    if number == 5: time.sleep(0.3)  # so that most of it is carried by the ring, if there is one
client.setblocking(False)
try: client.recv(1)
except BlockingIOError: pass
client.close()
os.waitpid(child, 0)
""".replace("TRIPS", str(TRIPS))
DATA = ("sendto", "recvfrom")


def sdtrace(trace: Path, *options: str, status: int = 0) -> str:
    done = subprocess.run([BIN / "sdtrace", trace, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr + done.stdout[-500:]
    return done.stdout


def records(trace: Path, *options: str, status: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sdtrace(trace, "--json", *options, status=status).splitlines()]


FORMS = pytest.mark.parametrize("form", ["trace", "trace.sdtrace"], ids=["lines", "records"])


@FORMS
def test_the_same_calls_as_strace(form: str, tmp_path: Path, sd_env: dict[str, str]) -> None:
    """Name, descriptor, length, flags and result of every data call, in the order of each process."""
    native = tmp_path / "strace"
    command = ("python3", "-c", ECHO)
    subprocess.run(["strace", "-ff", "-o", native, "-e", "trace=sendto,recvfrom", *command], env=sd_env, timeout=60,
                   check=True)
    pattern = re.compile(r'^(\w+)\((\d+), .*?, (\d+), (\w+), .* = (-?\d+)(?: (\w+))?', re.MULTILINE)
    want = sorted(calls for path in tmp_path.glob("strace.*") if (calls := [
        (name, *map(int, (fd, size, flags, result)), error)
        for name, fd, size, flags, result, error in pattern.findall(path.read_text())]))
    assert len(want) == 2

    trace = tmp_path / form
    report = tmp_path / "report"
    sdrun = (SDRUN, "--set", "upgrade=eager", f"--trace={trace}", "--report", report, "--")
    subprocess.run([*sdrun, *command], env=sd_env, timeout=60, check=True)
    got: dict[int, list[Any]] = {}
    for call in records(trace, "-e", ",".join(DATA)):
        fd, _, size, flags = call["args"]
        result = -1 if call["error"] else call["result"]
        got.setdefault(call["pid"], []).append((call["call"], fd, size, flags, result, call["error"] or ""))
    assert sorted(got.values()) == want
    # Filters and sums say the same.
    everything = records(trace)
    ring = records(trace, "--path", "ring")
    assert ring == [call for call in everything if call["path"] == "ring"]
    assert sum(max(call["result"], 0) for call in ring) == json.loads(report.read_text())["bytes"]["shm"]
    assert [call["error"] for call in records(trace, "-Z", "-e", "recvfrom")] == ["EAGAIN"]
    assert records(trace, "-E", "EAGAIN", "-e", "!sendto") == records(trace, "-Z", "-e", "recvfrom")
    fd = ring[0]["args"][0]
    by_fd = records(trace, "--fd", str(fd), "-p", str(ring[0]["pid"]))
    assert by_fd and by_fd == [call for call in everything
                               if call["pid"] == ring[0]["pid"] and call["args"][:1] == [fd]
                               and call["call"] not in ("clone", "socket", "exit_group", "rt_sigaction")]
    sums = json.loads(sdtrace(trace, "-c", "--json"))
    assert {name: one["calls"] for name, one in sums["calls"].items()} == Counter(call["call"] for call in everything)
    assert sums["lost"] == 0 and sums["ended"] and any("python" in exe for exe in sums["programs"].values())
    table = sdtrace(trace, "-c", "-S", "calls").splitlines()
    assert table[2].split()[-1] in DATA and table[-1].split()[-1] == "total"
    assert re.search(r"sendto\(\d+, 0x\w+, 1, 0\) = 1 <0\.\d{9}> \w", sdtrace(trace))
    if form == "trace":  # it is what sdtrace shows, in between what is no call
        assert [line for line in trace.read_text().splitlines() if line.startswith("[")] == sdtrace(trace).splitlines()
    assert len(sdtrace(trace, "-n", "3").splitlines()) == 3


@FORMS
@pytest.mark.parametrize("flavour", ["glibc", "glibc-static"])
def test_threads_forks_and_execs(
    flavour: str, form: str, guests: Guests, tmp_path: Path, sd_env: dict[str, str]
) -> None:
    """Every round trip of every one of them, under its own number."""
    trace = tmp_path / form
    done = subprocess.run([SDRUN, "--set", "upgrade=eager", f"--trace={trace}", "--", guests("traced", flavour), "0",
                           str(TRIPS)], env=sd_env, timeout=60, check=True, capture_output=True, text=True)
    said = {name: (int(pid), int(tid)) for name, pid, tid in map(str.split, done.stdout.splitlines())}
    assert set(said) == {"main", "thread", "fork", "exec"} and said["main"] == said["exec"]
    assert said["thread"][0] == said["main"][0] != said["thread"][1]
    sends = Counter((call["pid"], call["tid"]) for call in records(trace, "-e", "sendto", "-z"))
    assert {sends.pop(said[name]) for name in ("thread", "fork")} == {TRIPS}
    assert sends.pop(said["main"]) == 2 * TRIPS  # before and after exec
    assert list(sends.values()) == [TRIPS] * 4  # the echoing ones
    assert [call["pid"] for call in records(trace, "-e", "execve,execveat")] == [said["main"][0]]


@FORMS
def test_losses_are_counted_to_the_last_one(form: str, guests: Guests, tmp_path: Path, sd_env: dict[str, str]) -> None:
    """The supervisor is stopped while a hundred thousand calls are made: what it has not, it knows of."""
    trace, count = tmp_path / form, 50_000
    burst(guests("traced"), f"--trace={trace}", count, sd_env)
    sums = json.loads(sdtrace(trace, "-c", "--json", status=3))
    data = {name: sums["calls"][name]["calls"] for name in DATA}
    assert sums["lost"] > 0
    others = sums["lost"] + sum(data.values()) - 2 * (count + 100)
    assert 0 <= others <= 3  # close, close and exit_group may be among the lost


def test_lines_on_standard_error(tmp_path: Path, sd_env: dict[str, str]) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    program = Program([SDRUN, "--trace", "--", "python3", "-c", ECHO], folder, sd_env, None, None, None)
    program.ok()
    found = re.findall(r"^\[pid (\d+)\] [\d:.]+ (\w+)\(.*\) = \S+", program.stderr, re.MULTILINE)
    calls = Counter(name for _, name in found)
    assert len({pid for pid, _ in found}) == 2
    assert calls["sendto"] == 2 * TRIPS and calls["recvfrom"] == 2 * TRIPS + 2
    program.close()


def test_a_program_without_sockets_leaves_an_empty_trace(tmp_path: Path, sd_env: dict[str, str]) -> None:
    trace = tmp_path / "trace"
    subprocess.run([SDRUN, f"--trace={trace}", "--", "true"], env=sd_env, timeout=60, check=True)
    assert sdtrace(trace) == ""


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"something else")
    done = subprocess.run([BIN / "sdtrace", tmp_path / "other"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "does not begin" in done.stderr
    assert parser().parse_args(["x", "-c"]).summary


@pytest.mark.skipif(os.geteuid() != 0, reason="to be somebody else")
@pytest.mark.parametrize("option", ["--trace=", "--pcap="])
def test_a_file_that_cannot_be_written_is_said_before_the_start(option: str, tmp_path: Path) -> None:
    (tmp_path / "mine").touch(0o644)
    sdrun = shutil.copy(SDRUN, tmp_path / "sdrun")  # the checkout may be out of their reach
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    reachable(tmp_path)
    tmp_path.chmod(0o777)
    done = subprocess.run([*nobody, sdrun, f"{option}{tmp_path}/mine", "echo", "started"], capture_output=True,
                          text=True, timeout=60, check=False)
    assert done.returncode == 2 and "Permission denied" in done.stderr and not done.stdout


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path, sd_env: dict[str, str]) -> None:
    done = subprocess.run([SDRUN, "--trace=/dev/full", "--", "python3", "-c", ECHO + "print('over')"], env=sd_env,
                          timeout=60, check=True, capture_output=True, text=True)
    assert done.stdout == "over\n" and not done.stderr
