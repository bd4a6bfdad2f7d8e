# SPDX-License-Identifier: Apache-2.0
"""Each behaviour under sdrun, in every placement and at every moment of upgrade, is what it is natively."""

from __future__ import annotations

import difflib
import socket
import time
from collections.abc import Iterator

import pytest

import tests.differential.behaviours  # noqa: F401  registers them
from tests.differential.runs import Runs
from tests.differential.worlds import BEHAVIOURS, WORLDS

SO_TIMESTAMP = 29  # Python has no name for it
CASES = [pytest.param(world.name, name, id=f"{name}-{world.name}")
         for world in WORLDS for name, each in BEHAVIOURS.items()
         if (world.name in each.only if each.only else world.name != "uring")]


@pytest.fixture(scope="module", autouse=True)
def stamped() -> Iterator[None]:
    """The kernel begins to stamp packets some time after the first socket has asked for it, and ends with the last: one
    asks all the while, or what `timestamps` is told natively depends on the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        deadline = time.monotonic() + 20
        while not told(sock) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield


def told(sock: socket.socket) -> bool:
    """Of when its own packet came."""
    sock.sendto(b"x", sock.getsockname())
    return bool(sock.recvmsg(1, 64)[1])


@pytest.mark.parametrize(("world", "name"), CASES)
def test_same_as_natively(world: str, name: str, runs: Runs, request: pytest.FixtureRequest) -> None:
    behaviour = BEHAVIOURS[name]
    why = behaviour.broken.get(world, behaviour.broken.get("all"))
    if why:
        request.node.add_marker(pytest.mark.xfail(reason=why, strict=True))
    anew = getattr(request.node, "execution_count", 1) > 1  # pytest-rerunfailures
    wanted = runs.reference(name, anew=anew)
    assert not wanted or not wanted[-1].startswith("failed"), "natively: " + wanted[-1]
    got = runs.outcome(world, name, anew=anew).transcript
    if got != wanted:
        again = runs.reference(name, anew=True)
        if got == again:
            return  # one of what it is natively: how much fits into buffers depends on the moment
        lines = "\n".join(difflib.unified_diff(wanted, got, "native", world, lineterm="", n=4))
        pytest.fail(f"{lines}\n(natively again: {'the same as before' if again == wanted else again})", pytrace=False)


@pytest.mark.parametrize("name", [name for name, each in BEHAVIOURS.items() if each.carried])
def test_carried_by_shared_memory(name: str, runs: Runs) -> None:
    """Before: both ends eager and warm. Every byte of the behaviour was in a ring, and nothing moved back."""
    outcome = runs.outcome("before", name)
    ends = runs.ends("before", name)
    assert ends.shm >= 2, ends
    assert not ends.moved_back, ends
    assert ends.shm_bytes >= outcome.sent, (ends, outcome.sent)


def test_io_uring_allowed_means_tcp(runs: Runs) -> None:
    runs.outcome("uring", "io_uring")
    ends = runs.ends("uring", "io_uring")
    assert ends.shm == 0, ends
