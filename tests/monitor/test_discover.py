# SPDX-License-Identifier: Apache-2.0
"""Devices, ports and addresses of Ethernet and of InfiniBand are found out, and packets' headers are as configured."""

from __future__ import annotations

import ctypes
import ipaddress
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from monitor.hosts import config, discover, frames, loop, verbs
from monitor.hosts.config import BadConfig, Config, Device
from tests.monitor import fakepyverbs
from tests.monitor.queues import FOUND, Contact, Fake

ADDRESS = "127.0.0.1"
MAPPED = f"::ffff:{ADDRESS}"
LID = "0x1c"


@pytest.fixture
def sys_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(discover, "_SYS", tmp_path / "infiniband")
    return tmp_path / "infiniband"


def port_of(folder: Path, device: str, number: int, gids: dict[str, str], **files: str) -> None:
    """GIDs and their types; other files."""
    port = folder / device / "ports" / str(number)
    for index, (gid, kind) in enumerate(gids.items()):
        write(port / "gids" / str(index), gid)
        write(port / "gid_attrs/types" / str(index), kind)
    for name, text in files.items():
        write(port / name, text)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def interface(folder: Path, device: str, name: str, dev_port: int) -> None:
    write(folder / device / "device/net" / name / "dev_port", str(dev_port))


def found(**device: Any) -> discover.Found:
    return discover.find(Config("a", (ADDRESS, 7471), {}, Device(**device)))


def test_ethernet_by_the_gid_of_our_address_and_of_the_right_type(sys_class: Path) -> None:
    ports: list[tuple[str, int, dict[str, str]]] = [
        ("mlx5_0", 1, {"fe80::1": "RoCE v2", "::ffff:10.0.0.9": "RoCE v2"}),
        ("mlx5_1", 1, {"fe80::2": "IB/RoCE v1", MAPPED: "IB/RoCE v1"}),
        ("mlx5_1", 2, {"fe80::2": "RoCE v2", "fe80::3": "RoCE v2", MAPPED: "RoCE v2"}),
    ]
    for device, number, gids in ports:
        port_of(sys_class, device, number, gids, link_layer="Ethernet", lid="0x0")
    one = found()
    assert (one.device, one.port, one.gid_index, one.lid) == ("mlx5_1", 2, 2, 0)
    assert found(name="mlx5_0", gid_index=1).gid == ipaddress.IPv6Address("::ffff:10.0.0.9").packed
    with pytest.raises(OSError, match=ADDRESS):
        found(name="mlx5_0")


def test_infiniband_by_the_address_of_its_interface(sys_class: Path) -> None:
    """Two ports of one device; one whose subnet manager has not spoken; the GID says nothing of any address."""
    for device in ("mlx5_0", "mlx5_1"):
        for port in (1, 2):
            gids = {f"fe80::{device[-1]}:{port}": "IB/RoCE v1", "fe80::77": "IB/RoCE v1"}
            port_of(sys_class, device, port, gids, link_layer="InfiniBand", lid=LID if device == "mlx5_1" else "0x0")
    interface(sys_class, "mlx5_0", "lo", 0)
    interface(sys_class, "mlx5_1", "lo", 1)
    interface(sys_class, "mlx5_1", "none-such", 0)
    one = found()
    assert (one.device, one.port, one.gid_index, one.lid) == ("mlx5_1", 2, 0, int(LID, 16))
    assert found(name="mlx5_1", port=1, gid_index=1).lid == int(LID, 16), "whatever its interface is"
    with pytest.raises(OSError, match="IPoIB"):
        found(name="mlx5_1", port=1)


def test_headers_are_the_configurations(sys_class: Path) -> None:
    port_of(sys_class, "mlx5_0", 1, {MAPPED: "RoCE v2"})
    one = found(traffic_class=106, service_level=3, pkey_index=2, mtu=4096)
    assert (one.traffic_class, one.service_level, one.pkey_index, one.mtu) == (106, 3, 2, 5)
    assert found()[-4:] == (0, 0, 0, 0)


@pytest.mark.parametrize("device", [{"traffic_class": 256}, {"service_level": 16}, {"pkey_index": -1}])
def test_what_no_header_has_room_for_is_refused(tmp_path: Path, device: dict[str, int]) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(json.dumps({"name": "a", "device": device}))
    with pytest.raises(BadConfig, match="traffic_class up to 255"):
        config.load(str(path))


WAY = FOUND._replace(traffic_class=106, service_level=3, pkey_index=2)
FAR = frames.Port(1, 2, 3, 8, bytes(16), int(LID, 16))
IN_PACKETS = [int(LID, 16), 3, 106, 2]


def contact() -> Any:
    one = Contact.__new__(Contact)
    one.peer = SimpleNamespace(name="x")
    return one


@pytest.mark.usefixtures("fake_libibverbs")
def test_the_loop_in_c_tells_the_device() -> None:
    device = loop.Device(WAY)
    made: Any = device.port(contact())
    made.connect(FAR)
    values = (ctypes.c_uint32 * 4)()
    Fake.library.fake_route(made.number, values)
    assert list(values) == IN_PACKETS
    assert loop.Device(WAY._replace(lid=9)).port(contact()).describe().lid == 9


def test_the_loop_in_python_tells_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "pyverbs", fakepyverbs.modules)
    monkeypatch.setattr(verbs, "_event_fds", fakepyverbs.event_fds)
    told: list[Any] = []
    monkeypatch.setattr(fakepyverbs.QP, "to_init", lambda _self, attr: told.append(attr))
    monkeypatch.setattr(fakepyverbs.QP, "to_rts", lambda _self, attr: told.append(attr))
    verbs.Device(WAY).port(contact()).connect(FAR)
    way = told[1].ah_attr
    assert [way.dlid, way.sl, way.gr.traffic_class, told[0].pkey_index] == IN_PACKETS


@pytest.mark.usefixtures("fake_libibverbs")
def test_queue_pairs_never_have_more_under_way_than_the_completion_queue_holds() -> None:
    """Its overflow is the end of all of them: the last ones are shorter, and then there is no more."""
    device = loop.Device(FOUND._replace(depth=1000))
    made: list[Any] = []
    with pytest.raises(OSError, match="queue pair: No space"):
        while True:
            made.append(device.port(contact()))
    depths = [one.status()["depth"] for one in made]
    assert depths == [1000, 1000, 1000, 1000, 96], "2 each of 8192"
    made.pop().close()
    assert device.port(contact()).status()["depth"] == depths[-1], "what was given back serves again"
