# SPDX-License-Identifier: Apache-2.0
"""When a monitor's loop looks by itself, and when it is woken (monitor/hosts/vigil.py)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from monitor.hosts import vigil
from monitor.hosts.config import BadConfig, load
from monitor.hosts.vigil import Vigil


class Mirror:
    """What is armed."""

    armed: bool | None = None
    quiet = 0

    def sleep(self) -> None:
        self.armed = True

    def awake(self) -> None:
        self.armed = False


class Device:
    """Counts."""

    def __init__(self) -> None:
        self.arms = self.spins = 0

    def spin(self) -> bool:
        self.spins += 1
        return False

    def arm(self) -> None:
        self.arms += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("monitor.hosts.vigil.time.monotonic", lambda: now[0])
    return now


def looks(made: Vigil, mirrors: Any, *found: bool, moved: int = 0) -> list[bool]:
    """Whether it looks again at once, each time."""
    return [made.looked(one, moved if one else 0, mirrors) == 0 for one in found]


def test_with_few_processors_one_message_costs_two_looks() -> None:
    device, mirror = Device(), Mirror()
    made = Vigil(device, 0.0)
    assert looks(made, [mirror], True, False) == [True, False], "armed at once, so the second look is the last"
    assert mirror.armed and device.arms == 1 and device.spins == 0
    assert looks(made, [mirror], False) == [False]
    assert looks(made, [mirror], True, False) == [True, False]
    assert device.arms == 2, "a completion channel tells once"


def test_a_stream_is_looked_after_without_being_asked() -> None:
    device, mirror = Device(), Mirror()
    made = Vigil(device, 0.0)
    assert all(looks(made, [mirror], True, True, True))
    assert mirror.armed is False
    assert looks(made, [mirror], True, False, False) == [True, True, False], "armed, and looked once more"
    assert mirror.armed


def test_while_much_goes_by_it_dozes_and_need_not_be_woken() -> None:
    device, mirror = Device(), Mirror()
    made, mirrors = Vigil(device, 0.0), cast(Any, [mirror])
    assert looks(made, mirrors, True, moved=65536) == [True]
    for _ in range(2):
        assert [made.looked(False, 0, mirrors) for _ in range(vigil.DOZES)] == [vigil.DOZE_S] * vigil.DOZES
        assert not mirror.armed and device.arms == 0
        looks(made, mirrors, True, moved=65536)
    assert looks(made, mirrors, True, moved=64) == [True], "a small piece is part of it"
    for _ in range(vigil.DOZES):
        made.looked(False, 0, mirrors)
    assert made.looked(False, 0, mirrors) == 0.0 and mirror.armed and device.arms == 1
    assert made.looked(False, 0, mirrors) is None


def test_who_is_quiet_in_a_stream_of_others_is_left_alone() -> None:
    device, stream, idle = Device(), Mirror(), Mirror()
    made, mirrors = Vigil(device, 0.001), cast(Any, [stream, idle])
    stream.awake()
    idle.awake()
    for idle.quiet in range(vigil.QUIET + 1):
        assert not idle.armed
        looks(made, mirrors, True)
    assert idle.armed and not stream.armed
    idle.quiet = 0
    looks(made, mirrors, True)
    assert not idle.armed, "it has news again"


def test_with_many_processors_it_looks_for_a_while(clock: list[float]) -> None:
    device, mirror = Device(), Mirror()
    made = Vigil(device, 0.001)
    assert looks(made, [mirror], True, False, False) == [True, True, True]
    assert mirror.armed is None and device.spins == 2
    clock[0] += 0.002
    assert looks(made, [mirror], False, False) == [True, False]
    assert mirror.armed and device.arms == 1
    made.stirred()
    assert looks(made, [mirror], False) == [True], "a program says that there is news"


def test_without_connections_the_device_is_armed_all_the_same() -> None:
    """The first word about a connection comes by it."""
    device = Device()
    assert looks(Vigil(device, 0.0), [], False, False) == [True, False]
    assert device.arms == 1


@pytest.mark.parametrize("processors, seconds", [(1, 0.0), (3, 0.0), (4, vigil.SPIN_S)])
def test_what_the_processors_suggest(processors: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(processors)))
    assert vigil.spin_s(None) == seconds
    assert vigil.spin_s(50) == 50e-6


def test_hosts_yaml_says_otherwise(tmp_path: Any) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text("{name: a, spin_us: 20}")
    assert load(str(path)).spin_us == 20
    path.write_text("{name: a, device: {depth: 7}}")
    with pytest.raises(BadConfig, match="depth"):
        load(str(path))
