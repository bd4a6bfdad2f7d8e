# SPDX-License-Identifier: Apache-2.0
"""One behaviour of a connection per guest program: the same natively, redirected, and on shared memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guestbuild import Guests
from tests.harness import GUESTS, Mode, Runner

# Guest and arguments. Each runs its two sides in two processes, so a report has two ends of each connection.
BEHAVIOURS = [
    "blocking", "recv_flags", "vectors", "sendfile", "dup", "nonblock", "epoll_edges", "epoll_shared", "half_close",
    "timeouts",
    "threads", "exec_keeps", "exec_epoll", "waiters poll", "waiters ppoll", "waiters select", "waiters pselect",
    "waiters epoll",
    "reset unread", "reset linger", "reset kill", "reset close", "descriptors", "jumps", "spawn",
    "gone close", "gone exit", "gone kill", "gone unread", "mid_switch", "lowat",
    "early_epoll thread", "early_epoll set", "early_epoll dup", "int80",
    "int80_select", "int80_more messages", "int80_more signals", "int80_more threads",
    "int80_handlers frames", "int80_handlers interrupt", "int80_handlers tls",
    "int80_float",
    "sites", "masks",
]
STATIC = ["blocking", "nonblock", "waiters epoll", "threads"]


@pytest.mark.parametrize("command", BEHAVIOURS)
def test_behaviour(command: str, runner: Runner, guests: Guests) -> None:
    name, *arguments = command.split()
    program = runner.run(guests(name), *arguments)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=200)  # what was sent before the switch, mid-stream, went by TCP


def test_a_send_with_a_time_limit_sleeps(shm: Runner, guests: Guests) -> None:
    """SO_SNDTIMEO, more than a second of it: once for each wait and not once a millisecond."""
    program = shm.run(guests("timeouts"))
    [report] = shm.check(program, at_least=2)
    assert report.raw["counters"]["parks"] < 60, str(report)


few = pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 70_000, reason="too few descriptors")


@pytest.mark.parametrize("how", ["sets", *(pytest.param(how, marks=few) for how in ("epoll", "dup", "passed"))])
def test_more_descriptors_than_the_library_keeps_account_of(how: str, runner: Runner, guests: Guests) -> None:
    """Never an error that natively is none: what it cannot look after goes back to TCP."""
    program = runner.run(guests("high"), how)
    assert program.stdout == b"ok\n"
    for report in runner.check(program, at_least=2):
        moved = report.raw["connections"]["moved_back"]
        stays = how == "sets" or runner.mode is not Mode.SHM
        expected = set() if stays else {"descriptor-passed", "unsupported-call"}  # the second: of who was asked to
        assert set(moved) == expected, moved


@pytest.mark.parametrize("when", ["young", "used", "unread"])
@pytest.mark.parametrize("how", ["named", "pair", "exec"])
def test_passed_to_another_process(how: str, when: str, runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("pass_fd"), how, when)
    assert program.stdout == b"ok\n"
    if how != "exec":  # stays on shared memory; to another program it goes by TCP
        runner.check(program, at_least=2, of_bytes=2000)


@pytest.mark.parametrize(("warm", "unread"), [(1, 1), (1, 10), (8, 1), (-2, 0), (-2, 10), (-3, 0), (-8, 3)])
def test_passed_while_it_moves(warm: int, unread: int, runner: Runner) -> None:
    """Nobody has read since the peer has gone to the ring, or not all that came by TCP before.

    No doorbell is read for a byte, and none is lost.
    """
    program = runner.run(sys.executable, "-I", GUESTS / "handed_young.py", str(warm), str(unread))
    early = (b"early" * -warm)[-warm:] if warm < 0 else b""
    assert eval(program.stdout) == b"got " + early + bytes(range(65, 65 + unread))
    if runner.mode is Mode.SHM:
        assert program.report().raw["connections"]["moved_back"] == {"descriptor-passed": 2}


@pytest.mark.parametrize("what", ["recv", "poll", "select", "epoll", "room", "parent", "child", "tcp"])
def test_a_handler_forks_while_its_thread_sleeps(what: str, runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("fork_in_handler"), what)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=100)


@pytest.mark.parametrize(("guest", "what"), [("int80_more", "filter"), ("int80_handlers", "strict")],
                         ids=["filter", "strict"])
def test_own_filter_by_int80(guest: str, what: str, runner: Runner, guests: Guests) -> None:
    """A connection goes back to TCP before the filter is installed."""
    program = runner.run(guests(guest), what)
    assert program.stdout == b"ok\n"


def test_segments_by_int80(runner: Runner, guests: Guests) -> None:
    """See tests/guests/int80_segment.c."""
    assert runner.run(guests("int80_segment")).stdout == b"ok\n"


def test_end_of_a_large_message(runner: Runner) -> None:
    """libuv's tests ask for it (tcp_write_in_a_row)."""
    program = runner.run(sys.executable, "-I", GUESTS / "message_end.py")
    assert program.stdout == b"[1, 1, 1, 1, 1]\n"
    runner.check(program, at_least=2, of_bytes=1 << 20)


@pytest.mark.parametrize(("upgrade", "count"), [("eager", 1), ("eager", 2100), ("after_ops:16", 1)])
def test_places_are_used_again(upgrade: str, count: int, runner: Runner) -> None:
    """Two ends each, in an area of 4096 places."""
    runner.options = ["--set", f"upgrade={upgrade}"] if runner.mode is Mode.SHM else runner.options
    program = runner.run(sys.executable, "-I", GUESTS / "used_again.py", str(count), timeout=120)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=500)


@pytest.mark.parametrize("flavour", ["glibc-static", "musl-static"])
@pytest.mark.parametrize("command", STATIC)
def test_static_program(command: str, flavour: str, runner: Runner, guests: Guests) -> None:
    name, *arguments = command.split()
    program = runner.run(guests(name, flavour), *arguments)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=200)  # what was sent before the switch, mid-stream, went by TCP


@pytest.mark.parametrize("kind", ["prefork", "per-connection", "handover"])
def test_who_serves_after_fork(kind: str, runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("fork_serve"), kind)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=12, of_bytes=6 * 2 * 500)


@pytest.mark.parametrize("kind", ["vfork", "spawn", "second", "given-up", "threads"])
def test_who_serves_after_vfork(kind: str, runner: Runner, guests: Guests) -> None:
    """A connection that was on TCP when it went to another program moves to shared memory there."""
    program = runner.run(guests("spawn_serve"), kind)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=8, of_bytes=4 * 2 * 500)


def test_others_close_what_one_goes_on_with(runner: Runner, guests: Guests) -> None:
    """Each byte is counted once, at each end as sent or as received, however many have closed it meanwhile."""
    program = runner.run(guests("closers"))
    trips = int(program.stdout.split()[0])
    assert trips > 1000
    for report in runner.check(program, at_least=2):
        assert report.shm_bytes + report.raw["bytes"]["tcp"] == 4 * (100 + trips), str(report)


def test_a_thousand_short_connections(runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("churn"))
    assert program.stdout == b"ok\n"
    for report in runner.check(program, at_least=100):
        assert report.total == 2000, str(report)


@pytest.mark.parametrize("chaos", ["none", "stop", "kill"])
@pytest.mark.parametrize("what", ["write", "read"])
def test_one_connection_used_by_many(what: str, chaos: str, runner: Runner, guests: Guests) -> None:
    for processes, threads in [(2, 3)] if chaos != "none" else [(1, 3), (3, 1), (2, 3)]:
        program = runner.run(guests("sharers"), what, str(processes), str(threads), chaos)
        assert program.stdout == b"ok\n"
        runner.check(program, at_least=2, of_bytes=100_000)


def test_own_faults_are_the_program_s(runner: Runner, guests: Guests, tmp_path: Path) -> None:
    """Natively the same lines: handlers, what they are told, default actions, statuses, and what an exec leaves."""
    natively = subprocess.run([guests("faults")], stdout=subprocess.PIPE, check=True, cwd=tmp_path).stdout
    program = runner.run(guests("faults"))
    assert program.stdout == natively
    runner.check(program, at_least=2, of_bytes=300)


def test_edges_and_a_doorbell_in_between(runner: Runner) -> None:
    program = runner.run(sys.executable, GUESTS / "edge_bell.py")
    assert program.stdout == b"heard\n"
    runner.check(program, at_least=2)


@pytest.mark.parametrize("how", ["edge", "low"])
def test_sleeping_for_more_than_there_is(how: str, runner: Runner) -> None:
    """For 1.2 s in all, on a connection that another process has, too: no time-out of a millisecond."""
    program = runner.run(sys.executable, "-I", GUESTS / "waits_for_more.py", how)
    assert program.stdout == (b"5 11\n" if how == "edge" else b"11\n") * 3
    for report in runner.check(program, at_least=2):
        assert report.raw["counters"]["parks"] < 600, str(report)  # also for messages of the beginning


@pytest.mark.parametrize("how", ["level", "edge", "poll", "select", "threads"])
def test_one_doorbell_for_a_whole_set(how: str, runner: Runner) -> None:
    """In each of 20 rounds 8 to 16 connections are written to while their reader, or two, sleep on all of them."""
    program = runner.run(sys.executable, GUESTS / "one_bell.py", how)
    assert program.stdout == b"served\n"
    for report in runner.check(program, at_least=32, of_bytes=300):
        bells = report.raw["counters"]["bells_tx"]
        assert bells < 20 * 8, f"{bells} doorbells\n{report}"


@pytest.mark.parametrize("how", ["epoll", "poll", "recv", "pipe", "killed", "closed", "shut"])
def test_sleeping_on_the_ring_for_a_peer_on_this_cpu(how: str, runner: Runner) -> None:
    """Peers in other groups of the scheduler, to whom yielding brings nothing, are woken without a doorbell each."""
    program = runner.run(sys.executable, GUESTS / "napping.py", how)
    assert program.stdout == b"served\n"
    for report in runner.check(program, at_least=2, of_bytes=5000):
        counters = report.raw["counters"]
        assert how == "pipe" or counters["bells_tx"] < 1000, str(report)  # nobody naps where the pipe has news
        if runner.mode is Mode.SHM and Path("/proc/sys/kernel/sched_autogroup_enabled").read_text() == "1\n":
            assert counters["naps"] > 50, str(report)


def test_nobody_spins_for_who_only_sends(runner: Runner, guests: Guests) -> None:
    """On the CPU that the sender needs to go on."""
    program = runner.run(guests("one_way"))
    assert program.stdout == b"ok\n"
    for report in runner.check(program, at_least=2, of_bytes=100000):
        assert report.raw["counters"]["spins"] < 2, str(report)  # 2 if that is only said by who waits


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
@pytest.mark.parametrize("how", ["epoll", "poll", "recv", "killed", "asked"])
def test_sleeping_on_the_ring_for_a_peer_on_another_cpu(how: str, runner: Runner) -> None:
    """Who thinks longer than anybody spins, but not for long, needs no doorbell each time, either."""
    program = runner.run(sys.executable, GUESTS / "napping.py", how, "apart")
    assert program.stdout == b"served\n"
    for report in runner.check(program, at_least=2, of_bytes=1000):
        counters = report.raw["counters"]
        if how == "asked":
            assert counters["naps"] < 40, str(report)
        elif runner.mode is Mode.SHM:
            assert counters["naps"] > 50, str(report)


@pytest.mark.parametrize("how", ["poll", "recv"])
def test_a_thread_closes_what_another_sleeps_on(how: str, runner: Runner, guests: Guests) -> None:
    """The kernel goes on with the file, so whoever sleeps on the ring comes to sleep there first."""
    program = runner.run(guests("nap_closed"), how)
    assert program.stdout == b"ok\n"
    for report in runner.check(program, at_least=24, of_bytes=300):
        if runner.mode is Mode.SHM and Path("/proc/sys/kernel/sched_autogroup_enabled").read_text() == "1\n":
            assert report.raw["counters"]["naps"] > 500, str(report)


@pytest.mark.parametrize("handler", ["none", "plain", "restart"])
def test_a_thread_makes_room_that_others_sleep_for(handler: str, runner: Runner, guests: Guests) -> None:
    """They are woken by a signal, and no call of the program's may end by it."""
    program = runner.run(guests("more_room"), handler)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=100_000)


@pytest.mark.parametrize("how", ["epoll", "poll", "threads"])
def test_sleeping_on_many_rings(how: str, runner: Runner) -> None:
    """On a word for each process at the other ends, a fifth of a second after their last news by TCP.

    Also if these have threads, of which another one closes the connection whose word it is.
    """
    program = runner.run(sys.executable, GUESTS / "napping_set.py", how)
    assert program.stdout == b"served\n"
    for report in runner.check(program, at_least=16, of_bytes=1000):
        counters = report.raw["counters"]
        if runner.mode is Mode.SHM and Path("/proc/sys/kernel/sched_autogroup_enabled").read_text() == "1\n":
            if how == "threads":
                assert counters["naps"] > 20, str(report)  # each new connection is news by TCP
            else:
                assert counters["bells_tx"] < counters["naps"] > 500, str(report)


@pytest.mark.parametrize("how", ["epoll", "poll"])
@pytest.mark.parametrize("handler", ["restart", "plain"])
def test_a_handler_ends_a_sleep_on_many_rings(handler: str, how: str, runner: Runner, guests: Guests) -> None:
    """As it ends epoll_wait and poll: with SA_RESTART, too, which futex_waitv goes on behind."""
    program = runner.run(guests("nap_interrupted"), handler, how)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=4, of_bytes=10_000)


def test_no_sleep_on_the_ring_where_the_kernel_has_news(runner: Runner) -> None:
    """Of a server that asks others before it answers; it would hear of them when the nap ends."""
    program = runner.run(sys.executable, GUESTS / "napping.py", "asked")
    assert program.stdout == b"served\n"
    for report in runner.check(program, at_least=2, of_bytes=5000):
        assert report.raw["counters"]["naps"] < 4, str(report)


@pytest.mark.parametrize("what", ["answer", "poll", "peek", "mod", "del", "same", "fork", "exclusive",
                                  "exclusive-fork"])
def test_a_doorbell_that_another_thread_takes_away(what: str, runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("bell_takers"), what)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=16, of_bytes=300)


def test_all_of_many_children_are_in_the_report(runner: Runner) -> None:
    program = runner.run(sys.executable, "-I", GUESTS / "many_children.py", "150")
    assert program.stdout == b"ok\n"
    if runner.mode is not Mode.NATIVE:
        lines = program.report().raw["processes"]
        assert sum(1 for line in lines if (line.get("connections") or {}).get("total")) >= 150, len(lines)


def test_a_silent_connection_after_a_fork(runner: Runner) -> None:
    program = runner.run(sys.executable, GUESTS / "fork_idle.py")
    assert program.stdout == b"heard\n"
    runner.check(program, at_least=2)
