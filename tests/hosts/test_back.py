# SPDX-License-Identifier: Apache-2.0
"""Links that do not come back: connections go on by their own TCP, and every byte arrives once."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sdlib import abi
from sdtrace import procfs
from tests.guestbuild import Guests
from tests.hosts.talk import assert_whole, echo, ping, sums
from tests.hosts.test_between import quick_only
from tests.hosts.world import LIMIT_S, VERBS, Program, World, wait_for
from tests.sdtrace.support import supervisor_of

BACK_S = 3.0 if VERBS else 0.6
SIZE = (1 if VERBS else 8) << 20


def forget(world: World) -> None:
    """The monitor of b is killed, and the one that its supervisor starts knows no other host."""
    world.b.config.write_text("{}")
    os.kill(world.b.monitor_pid(), signal.SIGKILL)


def another_key(world: World) -> None:
    (world.b.folder / "a.key").write_text("not the key that they share")
    os.kill(world.b.monitor_pid(), signal.SIGKILL)


def both(world: World) -> None:
    forget(world)
    world.a.config.write_text("{}")
    os.kill(world.a.monitor_pid(), signal.SIGKILL)


def supervisor_as_well(world: World) -> None:
    """Only the library is left on b to know of the rings."""
    (program,) = world.b.runners[0].programs
    os.kill(supervisor_of(program, LIMIT_S), signal.SIGKILL)
    forget(world)


@pytest.mark.parametrize("lose", [
    forget, pytest.param(another_key, marks=quick_only), pytest.param(both, marks=quick_only), supervisor_as_well,
])  # fmt: skip
def test_a_link_that_is_lost_for_good(world: World, guests: Guests, lose: Callable[[World], None]) -> None:
    world.start(back_s=BACK_S, lost_s=300)
    stay = world.a.folder / "stay"
    server, client = world.exchange(guests("integrity"), 7020, SIZE, STAY=str(stay))
    world.carried(1, 100_000)
    told = {client: world.a, server: world.b}
    if lose is supervisor_as_well:  # no report
        del told[server]
    lose(world)

    def back(program: Program) -> bool:
        return "host-link-lost" in told[program].tells(program).get("moved_back", {})

    wait_for(lambda: all(map(back, told)), lambda: f"they go back\n{world.a.log}\n{world.b.log}")
    stay.touch()
    world.finish(client, server)
    if lose is supervisor_as_well:
        assert sums(client) == {"sent": sums(server)["received"], "received": sums(server)["sent"]}
    else:
        assert_whole(client, server, 1)
    for program in told:
        assert program.report().raw["connections"]["moved_back"].get("host-link-lost"), program.report().raw
    assert wait_for(lambda: "hosts" in world.a.status(), "a monitor")


# ---------------------------------------------------------------- bytes that no honest end sends


def taken(program: Program, address: str) -> socket.socket:
    """A duplicate of the program's connection to that address, from or to it."""
    pidfd = procfs.pidfd_open_thread(program.pid)
    try:
        for fd in sorted(int(entry.name) for entry in Path(f"/proc/{program.pid}/fd").iterdir()):
            if not os.readlink(f"/proc/{program.pid}/fd/{fd}").startswith("socket:"):
                continue
            sock = socket.socket(fileno=procfs.get_fd(pidfd, fd))
            try:
                if sock.getpeername()[0] == address:
                    return sock
            except OSError:
                pass
            sock.close()
    finally:
        os.close(pidfd)
    raise AssertionError("it has no such connection")


def unread(sock: socket.socket) -> int:
    """Bytes that wait in its kernel."""
    count: int = struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
    return count


@quick_only
@pytest.mark.parametrize("strays, fate", [
    (b"\0\0\0", "eaten"), (b"]SDBACK and nothing of the kind", "reset"), (b"x", "reset"),
])  # fmt: skip
def test_strays_behind_the_switch(world: World, strays: bytes, fate: str) -> None:
    """A doorbell that nobody has asked for is eaten; another byte ends the connection, and no other."""
    world.start()
    go = world.a.folder / "go"
    server = echo(world.b, 7021, world.b.folder / "never")
    client = ping(world.a, world.b, 7021, go)
    world.a.carried(1)
    with taken(server, world.a.address) as near, taken(client, world.b.address) as far:
        near.send(strays)
        wait_for(lambda: not unread(far) or client.process.poll() is not None, "they are looked at")
    go.touch()
    if fate == "eaten":
        client.ok()
        server.ok()
        assert server.stdout.split()[-1] == client.stdout.strip()
    else:
        assert client.wait() == 1
        assert "ConnectionResetError" in client.stderr
        assert client.report().raw["connections"]["moved_back"] == {"peer-broke-ring": 1}
        server.close()


def in_its_copy(program: Program, change: Callable[[Any], object]) -> None:
    """Of the `struct sd_seg` of the only connection that the program has."""
    pid = supervisor_of(program, LIMIT_S)
    # The monitors have linked the two ends before the supervisor has its message.
    (path,) = wait_for(lambda: segments(pid), "it has the segment")
    copy = os.open(path, os.O_RDWR)
    with mmap.mmap(copy, abi.sizeof("struct sd_seg")) as memory:
        change(abi.view("struct sd_seg", memory))
    os.close(copy)


def other_name(program: Program) -> None:
    """The program's copy of a segment gets the name of another connection, as from a monitor that lies."""
    def change(copy: Any) -> None:
        copy.far_id[0] ^= 1

    in_its_copy(program, change)


def segments(pid: int) -> list[str]:
    """That a supervisor holds."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # another descriptor, which was open for a moment
            if os.readlink(entry).startswith("/memfd:socksdirect-segment"):
                found.append(str(entry))
    return found


@quick_only
@pytest.mark.parametrize("liar", ["client", "server"])
def test_a_greeting_of_another_connection(world: World, liar: str) -> None:
    """Whose monitor lies about which ring belongs to a connection loses that connection, and no other."""
    world.start()
    go, first = (world.a.folder / name for name in ("go", "first"))
    servers = [echo(world.b, port, world.b.folder / "never") for port in (7022, 7023)]
    wronged = ping(world.a, world.b, 7022, go, FIRST=str(first))
    honest = ping(world.a, world.b, 7023, go)
    world.a.carried(1)
    wait_for(lambda: sum(one["linked"] for one in world.b.far()["connections"]) == 2, "both are paired")
    other_name(wronged if liar == "client" else servers[0])
    first.touch()
    assert wronged.wait(LIMIT_S) == 1, "no byte of another connection's ring is taken for its own"
    servers[0].wait(LIMIT_S)
    ends = [program.report().raw["connections"]["moved_back"] for program in (wronged, servers[0])]
    assert {"peer-broke-ring": 1} in ends, ends
    go.touch()
    honest.ok()
    servers[1].ok()
    assert servers[1].stdout.split()[-1] == honest.stdout.strip()
