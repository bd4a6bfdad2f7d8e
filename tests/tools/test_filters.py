# SPDX-License-Identifier: Apache-2.0
"""sdss's filters: ss itself is the oracle for what is ss's, rows made up for what is ours."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.harness import SDRUN, Runner, free_port
from tools.observe.filters import FilterError, compile_filter, speaks_of_states
from tools.observe.sockets import Address, User
from tools.observe.view import Row

# Every state that stays: listeners on both families, established, and half-closed from either side.
WORLD = """
import signal, socket, sys
first, second = map(int, sys.argv[1:3])
one = socket.create_server(("127.0.0.1", first))
six = socket.create_server(("::1", second), family=socket.AF_INET6)
kept = []
for server, count in ((one, 3), (six, 2)):
    for _ in range(count):
        kept += [socket.create_connection(server.getsockname()[:2]), server.accept()[0]]
kept[0].shutdown(socket.SHUT_WR)
kept[7].shutdown(socket.SHUT_WR)
print("made", flush=True)
signal.pause()
"""
QUESTIONS = """
state established
state listening
state fin-wait-2 state close-wait
exclude established
exclude listening exclude close-wait
state connected exclude fin-wait-2
state synchronized
state big
state bucket
state all sport = :FIRST
sport = :FIRST
dport eq :FIRST
sport != :FIRST
sport gt :FIRST
dport <= :SECOND
sport geq :SECOND
dport lt 1024
src 127.0.0.1
src = 127.0.0.0/8
not dst 127.0.0.1
dst [::1]
dst [::1]:SECOND
src 127.0.0.1:FIRST or src [::1]:SECOND
not dport = :FIRST
! ( sport = :FIRST or dport = :SECOND )
( sport = :FIRST and dst 127.0.0.0/8 ) | dport = :SECOND
sport = :FIRST || sport = :SECOND
state close-wait ( sport = :FIRST or sport = :SECOND )
dport = :FIRST dst 127.0.0.1
src *:FIRST
""".strip().splitlines()


def test_ss_says_the_same(native: Runner, shm: Runner) -> None:
    """Of one program's sockets, each filter chooses those that ss chooses."""
    first, second = sorted((free_port(), free_port()))
    program = shm.start("python3", "-c", WORLD, str(first), str(second))
    program.until(lambda: b"made" in program.stdout, "all its sockets are there")
    assert len(by_sdss(shm, "")) == 12
    told = set()
    for question in QUESTIONS:
        words = question.replace("FIRST", str(first)).replace("SECOND", str(second))
        want, got = by_ss(program.pid, words), by_sdss(shm, words)
        assert got == want, (words, sorted(got ^ want))
        told.add(frozenset(want))
    assert len(told) > 12, "the questions tell states, addresses and ports apart"
    for flags in (("-l",), ("-4",), ("-6",), ("-l", "-4"), ()):
        assert by_sdss(shm, "", *flags) == by_ss(program.pid, "", *flags), flags


def by_ss(pid: int, words: str, *flags: str) -> set[int]:
    """Inodes."""
    default = () if flags else ("-a",)
    done = subprocess.run(["ss", "-tnHepO", *default, *flags, *words.split()], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, (words, done.stderr)
    return {int(found[1]) for line in done.stdout.splitlines()
            if f"pid={pid}," in line and (found := re.search(r"\bino:(\d+)", line))}


def by_sdss(runner: Runner, words: str, *flags: str) -> set[int]:
    default = () if flags else ("-a",)
    done = subprocess.run([SDRUN.parent / "sdss", "--json", "-tn", *default, *flags, *words.split()], env=runner.env,
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return {row["inode"] for row in json.loads(done.stdout)["connections"]}


ROW = Row(1, "ESTAB", Address("127.0.0.1", 80), Address("10.1.2.3", 40000), 0, 0, 4, "tcp", "policy/socket-option",
          [User("nginx", 7, 3)], [])


@pytest.mark.parametrize(("text", "matches"), [
    ("", True), ("sport = :http", True), ("sport http", True), ("sport = 81", False), ("src localhost", True),
    ("dport >= :40000 and path tcp", True), ("not path tcp", False), ("path != shm", True),
    ("dst != 10.0.0.0/8", False), ("path = rdma", False),
    ("dst 10.0.0.0/8", True), ("dst 10.1.2.3:41", False), ("dst inet:10.1.2.3", True), ("dst [2001:db8::/32]:5", False),
    ("( path shm or sport = 80 ) dport gt 1", True), ("reason policy", True), ("reason policy-*", False),
    ("reason != socket-*", False), ("program ngin? and pid 7", True), ("pid = 8", False), ("state closed", False),
    ("state listening state established", True), ("sport = 80 and state listening", False),
])  # fmt: skip
def test_filters(text: str, matches: bool) -> None:
    assert compile_filter(text.split())(ROW) is matches
    assert compile_filter([text])(ROW) is matches


@pytest.mark.parametrize("text", [
    "sport", "sport = x", "sport = 65536", "state no", "( path tcp", "path sctp", "src 1.2.3.4.5", "x 1", "pid me",
    "state listening or path tcp", "path tcp )", "dev = lo", "autobound", "not", "exclude",
])  # fmt: skip
def test_wrong_filters(text: str) -> None:
    with pytest.raises(FilterError):
        compile_filter(text.split())


@pytest.mark.parametrize(("text", "speaks"), [
    ("state listening", True), ("(state listening)", True), ("exclude time-wait", True), ("sport = :80", False),
])  # fmt: skip
def test_a_filter_about_states_says_which_are_shown(text: str, speaks: bool) -> None:
    assert speaks_of_states([text]) is speaks
