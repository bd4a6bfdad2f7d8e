# SPDX-License-Identifier: Apache-2.0
"""What a pass over the connections to other hosts costs follows those that do something (monitor/hosts/conns.py)."""

from __future__ import annotations

import errno
import resource
import time
from typing import Any

import pytest

from monitor.hosts.hub import CREDIT_S
from monitor.hosts.vigil import QUIET
from sdlib import abi
from sdlib.wire.messages import Bell, Nudge, Rang
from sdlib.wire.segment import segment_bytes
from tests.monitor.test_again import LIMIT_S, RING, Host, hosts, until

IDLE = 1000
ROUNDS = 50
__all__ = ["hosts"]


@pytest.fixture(autouse=True)
def _many_descriptors() -> Any:
    """Each copy is mapped by the hub and by the test, and Python keeps a descriptor for each mapping."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * IDLE + 500
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip(f"needs {wanted} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def looked_at(hosts: tuple[Host, Host]) -> list[int]:
    return [int(host.hub.status()["looked_at"]) for host in hosts]


def settle(hosts: tuple[Host, Host]) -> None:
    """Until nobody looks at anything."""
    deadline = time.monotonic() + LIMIT_S
    while any(host.hub.status()["active"] for host in hosts):
        assert time.monotonic() < deadline, [host.hub.status()["active"] for host in hosts]
        for host in hosts:
            host.turn()


def paired(hosts: tuple[Host, Host], count: int) -> list[tuple[int, tuple[Any, Any]]]:
    """So many connections, and the programs at both ends of each."""
    for port in range(1000, 1000 + count):
        for host in hosts:
            host.offer_another(port)
        for host in hosts:
            host.turn()
    until(hosts, lambda: all(len(host.copies) == count for host in hosts))
    settle(hosts)
    by_id = [{copy.far_id(): copy for copy in host.copies} for host in hosts]
    made = []
    for name, copies in enumerate(zip(*([found[far_id] for far_id in by_id[0]] for found in by_id), strict=True), 1):
        ends = tuple(abi.lib.sd_py_open(copy._at, segment_bytes(RING), copy.side) for copy in copies)
        made.append((name, (ends[0], ends[1])))
    return made


def exchange(hosts: tuple[Host, Host], name: int, ends: tuple[Any, Any], text: bytes) -> None:
    """There and back."""
    for here, there in ((0, 1), (1, 0)):
        assert abi.lib.sd_py_put(ends[here], text, len(text)) == len(text)
        if abi.lib.sd_py_data_wanted(ends[here]) and abi.lib.sd_py_bell_take(ends[here]):
            hosts[here].hub.heard(1, Nudge(name))
        until(hosts, lambda there=there: abi.lib.sd_py_readable(ends[there]) == len(text))  # type: ignore[misc]
        buffer = abi.ffi.new("uint8_t[]", len(text))
        abi.lib.sd_py_take(ends[there], buffer, len(text))
        assert bytes(abi.ffi.buffer(buffer)) == text


def test_idle_connections_cost_nothing(hosts: tuple[Host, Host]) -> None:
    made = paired(hosts, IDLE + 1)
    name, ends = made[IDLE // 2]
    began, before = time.monotonic(), looked_at(hosts)
    for number in range(ROUNDS):
        exchange(hosts, name, ends, b"x" * (1 + number))
    spent = [after - old for after, old in zip(looked_at(hosts), before, strict=True)]
    passes = [int(host.hub.status()["looks"]) for host in hosts]
    ticks = (time.monotonic() - began) / 0.5 + 2
    assert max(spent) < 40 * ROUNDS + QUIET * ticks, (spent, passes)
    for _, each in made:
        for end in each:
            abi.lib.sd_py_close(end)


def test_each_of_many_is_heard_when_it_speaks(hosts: tuple[Host, Host]) -> None:
    """One after the other, and several in turn while others fall asleep."""
    made = paired(hosts, 40)
    for name, ends in made:
        exchange(hosts, name, ends, b"once")
    for number in range(200):
        name, ends = made[number * 7 % 5]
        exchange(hosts, name, ends, bytes([number]) * 100)
    for name, ends in made:
        exchange(hosts, name, ends, b"again")
    settle(hosts)
    for _, each in made:
        for end in each:
            abi.lib.sd_py_close(end)


def test_a_doorbell_without_room_is_tried_with_the_credits(hosts: tuple[Host, Host]) -> None:
    """A program whose socket takes no byte costs its supervisor and us a few questions a second, not all our time."""
    made = paired(hosts, 1)
    host = hosts[0]
    (conn,) = host.hub._conns
    host.told.clear()
    exchange(hosts, *made[0], b"there and back")
    began = time.monotonic()
    until(hosts, lambda: time.monotonic() > began + 0.1)  # small credits are told
    settle(hosts)
    conn.mirror.wanted = conn.mirror.rung + 1
    host.hub._conns.stir(conn.mirror.slot)
    began, answered = time.monotonic(), 0
    while time.monotonic() < began + 0.2:
        host.turn()
        if host.told.count(Bell.BYTE) > answered:
            answered += 1
            host.hub.heard(1, Rang(1, errno.EAGAIN))
    assert 1 < answered <= (time.monotonic() - began) / CREDIT_S + 2
    until(hosts, lambda: host.told.count(Bell.BYTE) > answered)
    host.hub.heard(1, Rang(1, 0))
    assert not conn.mirror.owes_bell
    for end in made[0][1]:
        abi.lib.sd_py_close(end)


def test_a_lost_doorbell_costs_time_only(hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor says that it has sent it, and the program sleeps on: it is asked for one more, which shows."""
    monkeypatch.setattr("monitor.hosts.hub._TICK_S", 0.01)
    monkeypatch.setattr("monitor.hosts.mirror.AGAIN_S", 0.05)
    made = paired(hosts, 1)
    name, ends = made[0]
    sender, sleeper = hosts
    for end, host in zip(ends, hosts, strict=True):
        abi.lib.sd_py_sw_publish(end, 100)
        host.hub.heard(1, Nudge(name))
    until(hosts, lambda: all(Bell.BYTE in host.told for host in hosts))  # the greetings
    for end, host in zip(ends, hosts, strict=True):
        host.hub.heard(1, Rang(name, 0))
        abi.lib.sd_py_bell_eaten(end)
    for _ in range(2):
        sender.told.clear()
        assert abi.lib.sd_py_put(ends[0], b"some", 4) == 4
        sender.hub.heard(1, Nudge(name))
        until(hosts, lambda: Bell.BYTE in sender.told)
        sender.hub.heard(1, Rang(name, 0))
        sender.told.clear()
        until(hosts, lambda: Bell.BYTE in sender.told)
        sender.hub.heard(1, Rang(name, 0))
        abi.lib.sd_py_bell_eaten(ends[1])
    assert sleeper.hub.status()["peers"][0]["again"] >= 2
    assert not sender.hub.status()["peers"][0]["again"]
    for end in ends:
        abi.lib.sd_py_close(end)
