# SPDX-License-Identifier: Apache-2.0
"""hosts.yaml: which other hosts' monitors we know, and what proves them.

    name: a                              # ours, as the others call us
    listen: 10.1.0.1:7471                # where the others reach us; the host whose name sorts first dials
    peers:
      b:
        monitor: 10.1.0.2:7471
        addresses: [10.1.0.2/32]         # its programs': it may speak of connections that end on these, no others
        key_file: b.key                  # beside this file; at least 16 bytes, readable by its owner only
    ring: 256KiB                         # of one direction of a connection at most: all of it is pinned memory
    spin_us: 1000                        # look so long for more before going to sleep; as the processors suggest
    device: {name: mlx5_0, port: 1, gid_index: 3, mtu: 1024, inline: 128, depth: 256}    # found out if not given
                                         # timeout, retries (as verbs number them); loop: c or python; library;
                                         # traffic_class (DSCP and ECN of RoCE), service_level, pkey_index: 0
    transport: verbs                     # tcp-for-tests: without RDMA, by the monitors' own TCP connection; not for use
    dead_s: 5                            # silent for so long: the link is down
    back_s: 3                            # no RDMA for so long: connections go back to their own TCP
    lost_s: 30                           # for so long: those that cannot are reset
    unused_s: 60                         # one end has not come to its rings for so long: they are given up for now
    hold_s: 1                            # a link that breaks again has to hold so long before connections use it, then
    hold_most_s: 300                     # twice as long, ..., at most so long (hold_s 0: it is always used at once);
    steady_s: 60                         # held for so long besides: its breaks are forgotten

Without the file there are no other hosts.  Root or the monitor's user owns it, and nobody else may write to it.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml

from monitor.hosts.auth import KEY_MIN
from policies import values

ENV: Final = "SOCKSDIRECT_HOSTS"
SYSTEM_FILE: Final = "/etc/socksdirect/hosts.yaml"
PORT: Final = 7471
VERBS: Final = "verbs"
FOR_TESTS: Final = "tcp-for-tests"
LOOPS: Final = ("c", "python")
_SECONDS: Final = ("dead_s", "lost_s", "back_s", "unused_s", "hold_s", "hold_most_s", "steady_s")
DEPTH_MIN: Final = 8
"""Of a queue pair: records go beside bytes."""
_FIELDS: Final = {"traffic_class": 255, "service_level": 15, "pkey_index": 65535}
"""Of packets' headers, as long as they are there."""
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadConfig(Exception):
    """hosts.yaml cannot be used; str() is one line."""


@dataclass(frozen=True)
class Peer:
    """Another host."""

    name: str
    monitor: tuple[str, int]
    networks: tuple[Network, ...]
    key: bytes = field(repr=False)

    def owns(self, ip: bytes) -> bool:
        """Whether that address (16 bytes) is one of its own."""
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv6Address(ip)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)


@dataclass(frozen=True)
class Device:
    """Overrides of what is found out about the RDMA device; None: find it out."""

    name: str | None = None
    port: int | None = None
    gid_index: int | None = None
    mtu: int | None = None
    inline: int | None = None
    depth: int | None = None
    timeout: int | None = None
    retries: int | None = None
    traffic_class: int = 0
    service_level: int = 0
    pkey_index: int = 0
    loop: str = "c"
    library: str = "libibverbs.so.1"


@dataclass(frozen=True)
class Config:
    """The whole file."""

    name: str
    listen: tuple[str, int] | None
    peers: Mapping[str, Peer]
    device: Device = Device()
    transport: str = VERBS
    dead_s: float = 5.0
    lost_s: float = 30.0
    back_s: float = 3.0
    unused_s: float = 60.0
    hold_s: float = 1.0
    hold_most_s: float = 300.0
    steady_s: float = 60.0
    spin_us: float | None = None
    ring: int = 256 * 1024
    """Bytes, at most."""


def path_of(env: Mapping[str, str], uid: int) -> str | None:
    """Which file to read: $SOCKSDIRECT_HOSTS (empty: none), the user's own, the host's; None if none exists."""
    if ENV in env:
        return env[ENV] or None
    home = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME", "/nonexistent"), ".config")
    own = os.path.join(home, "socksdirect", "hosts.yaml")
    for path in (SYSTEM_FILE,) if uid == 0 else (own, SYSTEM_FILE):
        if os.path.exists(path):
            return path
    return None


def load(path: str) -> Config:
    """Read it; raises BadConfig."""
    try:
        tree = yaml.safe_load(_read(path, secret=False))
        return _config(tree, os.path.dirname(os.path.abspath(path)))
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadConfig(f"{path}: {said}") from None


def _read(path: str, *, secret: bool) -> bytes:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (0, os.geteuid()):
            raise ValueError(f"{path} belongs to somebody else")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO if secret else stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError(f"{path} may be {'read' if secret else 'written'} by others")
        return file.read(1 << 20)


def _known(tree: Any, what: str, *keys: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ValueError(f"{what} is no mapping")
    if unknown := set(tree) - set(keys):
        raise ValueError(f"{what} has an unknown key {min(map(str, unknown))!r}")
    return tree


def _config(tree: Any, folder: str) -> Config:
    tree = _known(tree, "the file", "name", "listen", "peers", "device", "transport", "ring", "spin_us", *_SECONDS)
    name = _name(tree["name"])
    peers = {str(key): _peer(str(key), value, folder) for key, value in (tree.get("peers") or {}).items()}
    if name in peers:
        raise ValueError("a host is no peer of itself")
    device = _known(tree.get("device") or {}, "device", *Device.__dataclass_fields__)
    if any(not isinstance(value, str if key in ("name", "loop", "library") else int) for key, value in device.items()):
        raise ValueError("device: a name, and numbers")
    if any(not 0 <= device.get(key, 0) <= most for key, most in _FIELDS.items()):
        raise ValueError(f"device: {', '.join(f'{key} up to {most}' for key, most in _FIELDS.items())}")
    if device.get("depth", DEPTH_MIN) < DEPTH_MIN:
        raise ValueError(f"device: a depth below {DEPTH_MIN}")
    if device.get("loop", "c") not in LOOPS:
        raise ValueError(f"device: no loop {device['loop']!r}")
    transport = tree.get("transport", VERBS)
    if transport not in (VERBS, FOR_TESTS):
        raise ValueError(f"no transport {transport!r}")
    listen = _endpoint(tree["listen"]) if tree.get("listen") else None
    seconds = {key: float(tree[key]) for key in _SECONDS if key in tree}
    spin_us = None if tree.get("spin_us") is None else float(tree["spin_us"])
    try:
        ring = values.ring(str(tree.get("ring", Config.ring)))
    except ValueError as right:
        raise ValueError(f"ring is {right}") from None
    return Config(name, listen, peers, Device(**device), transport, spin_us=spin_us, ring=ring, **seconds)


def _name(text: Any) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= 32 or not text.isascii() or not text.isprintable():
        raise ValueError("a name is 1 to 32 letters")
    return text


def _peer(name: str, tree: Any, folder: str) -> Peer:
    tree = _known(tree, f"peer {name}", "monitor", "addresses", "key_file")
    key = _read(os.path.join(folder, tree["key_file"]), secret=True).strip()
    if len(key) < KEY_MIN:
        raise ValueError(f"the key of {name} has fewer than {KEY_MIN} bytes")
    networks = tuple(ipaddress.ip_network(text) for text in tree["addresses"])
    return Peer(_name(name), _endpoint(tree["monitor"]), networks, key)


def _endpoint(text: Any) -> tuple[str, int]:
    host, colon, port = str(text).rpartition(":")
    if not colon or "]" in port:
        host, port = str(text), str(PORT)
    host = host.strip("[]")
    ipaddress.ip_address(host)
    return host, int(port)
