# SPDX-License-Identifier: Apache-2.0
"""Which RDMA device, port and GID reach the other hosts, from /sys/class/infiniband; and the pyverbs that drives it.

On Ethernet a GID is the right one if it is of type RoCE v2 and is the address that we listen on.  A port of InfiniBand
is if its network interface (IPoIB) has that address, and its subnet manager has given it a LID; its first GID is used.
hosts.yaml overrides each value that is found.
"""

from __future__ import annotations

import array
import fcntl
import importlib
import importlib.machinery
import importlib.util
import ipaddress
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from monitor.hosts.config import Config

_SYS: Final = Path(os.environ.get("SDRUN_INFINIBAND", "/sys/class/infiniband"))
"""Elsewhere for a device of the tests (tests/hosted/softverbs.c)."""
_DEBIAN: Final = "/usr/lib/python3/dist-packages"
_MODULES: Final = ("device", "pd", "cq", "qp", "wr", "mr", "addr", "enums")
_ROCE_V2: Final = "RoCE v2"
_INFINIBAND: Final = "InfiniBand"
_ACTIVE: Final = "4:"
_SIOCGIFCONF: Final = 0x8912
_IFREQ: Final = struct.Struct("16s4x4s16x")
_INTERFACES_MOST: Final = 1024
_MTU: Final = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}
DEPTH: Final = 256
INLINE: Final = 128
TIMEOUT: Final = 14  # 4.096 us * 2 ** 14 = 67 ms, at least
RETRIES: Final = 6


class Found(NamedTuple):
    """The values in use. `mtu` as verbs number it; 0: what its port has."""

    device: str
    port: int
    gid_index: int
    gid: bytes
    mtu: int
    inline: int
    depth: int
    timeout: int
    retries: int
    traffic_class: int = 0
    service_level: int = 0
    pkey_index: int = 0
    lid: int = 0
    """Of an InfiniBand port."""


def find(config: Config) -> Found:
    """What the configuration leaves open; OSError when nothing fits."""
    wanted = config.device
    address = None if config.listen is None else ipaddress.ip_address(config.listen[0])
    for device, port, index, gid in _gids(wanted.name, wanted.port):
        lid = _lid(device, port)
        is_ours = index == 0 and _has(device, port, address) if lid else _is(gid, address)
        if index == wanted.gid_index or (wanted.gid_index is None and is_ours):
            return Found(device, port, index, gid.packed, _mtu(device, port, wanted.mtu),
                         INLINE if wanted.inline is None else wanted.inline, wanted.depth or DEPTH,
                         wanted.timeout or TIMEOUT, RETRIES if wanted.retries is None else wanted.retries,
                         wanted.traffic_class, wanted.service_level, wanted.pkey_index, lid)
    raise OSError(f"no RDMA device has {address or 'any address'}, as a GID of RoCE v2, or by IPoIB")


def _is(gid: ipaddress.IPv6Address, address: Any) -> bool:
    return address is not None and address in (gid, gid.ipv4_mapped)


def _lid(device: str, port: int) -> int:
    """Of a port of InfiniBand that has one; 0."""
    folder = _SYS / device / "ports" / str(port)
    return int(_text(folder / "lid") or "0", 16) if _text(folder / "link_layer") == _INFINIBAND else 0


def _has(device: str, port: int, address: Any) -> bool:
    """Whether a network interface of that port has the address."""
    interfaces = (_SYS / device / "device/net").glob("*")
    ours = {entry.name for entry in interfaces if int(_text(entry / "dev_port") or "0", 0) + 1 == port}
    return bool(ours & _interfaces_with(address))


def _interfaces_with(address: Any) -> set[str]:
    if isinstance(address, ipaddress.IPv6Address):
        rows = (line.split() for line in _text(Path("/proc/net/if_inet6")).splitlines())
        return {row[5] for row in rows if bytes.fromhex(row[0]) == address.packed}
    space = array.array("B", bytes(_INTERFACES_MOST * _IFREQ.size))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("iP", len(space), space.buffer_info()[0])
        size, _ = struct.unpack("iP", fcntl.ioctl(sock, _SIOCGIFCONF, asked))
    known = _IFREQ.iter_unpack(bytes(space[:size]))
    return {name.split(b"\0")[0].split(b":")[0].decode() for name, ip in known if address and ip == address.packed}


def _gids(name: str | None, number: int | None) -> Iterator[tuple[str, int, int, ipaddress.IPv6Address]]:
    for device in sorted(_SYS.glob("*")):
        if name not in (None, device.name):
            continue
        for port in sorted(device.glob("ports/*")):
            if number not in (None, int(port.name)):
                continue
            for entry in sorted(port.glob("gids/*"), key=lambda path: int(path.name)):
                gid = ipaddress.IPv6Address(_text(entry) or "::")
                roce = _text(port / "gid_attrs/types" / entry.name) == _ROCE_V2
                if int(gid) and (roce or _lid(device.name, int(port.name))):
                    yield device.name, int(port.name), int(entry.name), gid


def _mtu(device: str, port: int, wanted: int | None) -> int:
    """The greatest that the network device below has room for, headers included; 0: an InfiniBand port knows."""
    if wanted is not None:
        return _MTU[wanted]
    if _lid(device, port):
        return 0
    interface = _text(_SYS / device / "ports" / str(port) / "gid_attrs/ndevs/0")
    room = int(_text(Path("/sys/class/net") / interface / "mtu") or 1500) - 100 if interface else 1024
    return max((number for size, number in _MTU.items() if size <= room), default=1)


def is_active(found: Found) -> bool:
    """Whether its port is, as far as /sys says."""
    state = _text(_SYS / found.device / "ports" / str(found.port) / "state")
    return not state or state.startswith(_ACTIVE)


def exists(found: Found) -> bool:
    """Whether the device has its name still, and the one by which it is opened: a soft one loses only that at first."""
    opened_by = _SYS.parent / "infiniband_verbs"
    named = any(_text(entry) == found.device for entry in opened_by.glob("*/ibdev")) if opened_by.exists() else True
    return named and (_SYS / found.device).exists()


def counters(found: Found) -> dict[str, int]:
    """What the device has counted of retries: requests sent again or given up, receivers that were not ready (rnr)."""
    folder = _SYS / found.device / "ports" / str(found.port) / "hw_counters"
    names = (entry.name for entry in folder.glob("*") if re.search("rnr|retry|timeout", entry.name))
    return {name: int(value) for name in sorted(names) if (value := _text(folder / name)).isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def pyverbs() -> SimpleNamespace:
    """The modules of pyverbs that we use; OSError without it.

    Debian's package is not on the path of a virtual environment: it alone is taken from there, nothing else.
    """
    if importlib.util.find_spec("pyverbs") is None:
        spec = importlib.machinery.PathFinder.find_spec("pyverbs", [_DEBIAN])
        if spec is None or spec.loader is None:
            raise OSError("pyverbs is missing (Debian: python3-pyverbs)")
        module = importlib.util.module_from_spec(spec)
        sys.modules["pyverbs"] = module
        spec.loader.exec_module(module)
    try:
        return SimpleNamespace(**{name: importlib.import_module(f"pyverbs.{name}") for name in _MODULES})
    except ImportError as error:
        raise OSError(f"pyverbs cannot be used: {error}") from None
