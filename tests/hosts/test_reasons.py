# SPDX-License-Identifier: Apache-2.0
"""Why a connection between hosts has gone back to TCP: both ends' reports say what is true, whatever came first.

One program of the two does something that rings cannot carry; its report names that.  The other end's says that the
socket was passed on, if that is it, and else that a program has done what rings cannot carry (`unsupported-call`), as
on one host.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.hosts.talk import ping
from tests.hosts.test_back import in_its_copy
from tests.hosts.test_between import quick_only
from tests.hosts.test_given import RECEIVER
from tests.hosts.world import Mode, Program, World, wait_for

SERVER = """
import ctypes, fcntl, os, socket, struct, sys, threading
address, port, how, now, path = sys.argv[1:6]
def lock_up():
    libc = ctypes.CDLL(None)
    allow = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("=HxxxxxxQ", 1, ctypes.addressof(allow))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.create_string_buffer(program)) == 0
def give(s):
    with socket.socket(socket.AF_UNIX) as u:
        u.connect(path)
        socket.send_fds(u, [b"x"], [s.fileno()])
        s.close()
        u.recv(1)
l = socket.create_server((address, int(port)))
print("listening", flush=True)
s, _ = l.accept()
done = False
while data := s.recv(65536):
    s.sendall(data)
    if done or not os.path.exists(now): continue
    done = True
    match how:
        case "given": give(s); break
        case "locked up": lock_up()
        case "async": fcntl.fcntl(s, fcntl.F_SETFL, fcntl.fcntl(s, fcntl.F_GETFL) | os.O_ASYNC)
        case "peek offset": s.setsockopt(socket.SOL_SOCKET, 42, 0)
        case "timestamp": s.setsockopt(socket.SOL_SOCKET, 29, 1)
        case "urgent": s.send(b"!", socket.MSG_OOB)
"""
WHAT_A_PROGRAM_DOES = {
    "given": ("descriptor-passed", "descriptor-passed"),
    "locked up": ("unsupported-call", "unsupported-call"),
    "async": ("socket-option", "unsupported-call"),
    "peek offset": ("socket-option", "unsupported-call"),
    "timestamp": ("socket-option", "unsupported-call"),
    "urgent": ("unsupported-flag", "unsupported-call"),
}
"""What its report says, and what the other one's."""


def moved_back(world: World, ends: dict[Program, str]) -> list[dict[str, int]]:
    """What both ends say, once they say something."""
    def said() -> list[dict[str, int]]:
        return [world.hosts[host].tells(program).get("moved_back", {}) for program, host in ends.items()]

    wait_for(lambda: all(said()), world.known)
    return said()


@quick_only
@pytest.mark.parametrize("how", WHAT_A_PROGRAM_DOES)
def test_what_a_program_does(world: World, how: str) -> None:
    world.start()
    go, now, path = (world.a.folder / name for name in ("go", "now", "unix"))
    others = []
    if how == "given":
        receiver = world.b.runner(Mode.NATIVE).start(sys.executable, "-c", RECEIVER, path)
        receiver.until(lambda: b"listening" in receiver.stdout, "listens")
        others = [receiver]
    server = world.b.runner().start(sys.executable, "-c", SERVER, world.b.address, "7070", how, now, path)
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = ping(world.a, world.b, 7070, go)
    world.carried(1)
    now.touch()
    said = moved_back(world, {server: "b", client: "a"})
    assert said == [{reason: 1} for reason in WHAT_A_PROGRAM_DOES[how]], world.known()
    go.touch()
    world.finish(client, server, *others)
    for program, reason in zip((server, client), WHAT_A_PROGRAM_DOES[how], strict=True):
        assert program.report().raw["connections"]["moved_back"] == {reason: 1}


@quick_only
def test_what_can_neither_wait_nor_go_back_is_reset(world: World) -> None:
    """Whether the other end would understand a mark is not known, and the link has been gone for too long."""
    world.start(dead_s=1, back_s=600, lost_s=3)
    server = world.b.runner().start(sys.executable, "-c", SERVER, world.b.address, "7072", "", "never", "")
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = ping(world.a, world.b, 7072, world.a.folder / "never")
    world.carried(1)
    world.cut(world.b, True)
    wait_for(lambda: not world.a.peer("b")["up"] and not world.b.peer("a")["up"], "both have noticed")
    for program in (client, server):
        in_its_copy(program, lambda copy: setattr(copy, "heard", 0))
    for program in (client, server):
        assert program.wait() == 1 and "ConnectionResetError" in program.stderr
        assert program.report().raw["connections"]["moved_back"] == {"host-link-lost": 1}


@quick_only
@pytest.mark.parametrize("poor", ["a", "b"])
def test_no_memory_for_rings(world: World, poor: str) -> None:
    """Which is found out when the connection is new; it is not tried with each call again."""
    world.hosts[poor].env["SOFTVERBS_NO_RINGS"] = "1"
    world.start()
    go = world.a.folder / "go"
    server = world.b.runner().start(sys.executable, "-c", SERVER, world.b.address, "7073", "", "never", "")
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = ping(world.a, world.b, 7073, go)

    def shown(program: Program, host: str) -> list[str]:
        return [one["reason"] for one in world.hosts[host].tells(program).get("connections", []) if one["role"]]

    for program, host in ((server, "b"), (client, "a")):
        wait_for(lambda program=program, host=host: "mapping-failed" in shown(program, host), world.known)  # type: ignore[misc]
    go.touch()
    world.finish(client, server)
    for program in (client, server):
        found = program.report().raw
        assert found["connections"]["tcp_reasons"] == {"mapping-failed": 1}, found
        assert found["counters"]["offers"] == 1, found


@quick_only
def test_no_monitor(world: World) -> None:
    """It is killed, and none can be started; the other host's has lost its link."""
    world.b.env["SDRUN_LEAVE_S"] = "0.5"
    world.start(back_s=0.6, lost_s=300)
    go = world.a.folder / "go"
    server = world.b.runner().start(sys.executable, "-c", SERVER, world.b.address, "7071", "", go, "")
    server.until(lambda: b"listening" in server.stdout, "listens")
    client = ping(world.a, world.b, 7071, go)
    world.carried(1)
    lock = Path(f"{world.b.socket}.lock")
    lock.unlink()
    lock.mkdir()
    os.kill(world.b.monitor_pid(), signal.SIGKILL)
    said = moved_back(world, {server: "b", client: "a"})
    go.touch()
    world.finish(client, server)
    assert said == [{"monitor-unreachable": 1}, {"host-link-lost": 1}]
