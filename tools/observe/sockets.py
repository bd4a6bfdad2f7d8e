# SPDX-License-Identifier: Apache-2.0
"""TCP sockets as the kernel tells of them in /proc: who has which, between which addresses, in which state."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

STATES: Final = {
    1: "ESTAB", 2: "SYN-SENT", 3: "SYN-RECV", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT", 7: "UNCONN",
    8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN-RECV",
}  # fmt: skip


class Address(NamedTuple):
    """Where one end is; an IPv4 address in IPv6 clothes is shown, and compared, as what it is."""

    host: str
    port: int


@dataclass(frozen=True)
class Socket:
    """A line of /proc/net/tcp or tcp6; queues in bytes."""

    inode: int
    state: str
    local: Address
    peer: Address
    receive_queue: int
    send_queue: int
    family: int


class User(NamedTuple):
    """A descriptor of a process."""

    name: str
    pid: int
    fd: int


def _address(text: str) -> Address:
    """Words in the byte order of the machine, in hexadecimal."""
    host, _, port = text.partition(":")
    words = [int(host[start:start + 8], 16) for start in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if packed[:12] == b"\0" * 10 + b"\xff\xff":
        packed = packed[12:]
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return Address(socket.inet_ntop(family, packed), int(port, 16))


def _parse(line: str, family: int) -> Socket:
    columns = line.split()
    sending, _, receiving = columns[4].partition(":")
    return Socket(int(columns[9]), STATES.get(int(columns[3], 16), "?"), _address(columns[1]), _address(columns[2]),
                  int(receiving, 16), int(sending, 16), family)


def of_namespace(pid: int) -> Iterator[Socket]:
    """All TCP sockets of the network namespace that `pid` is in; none when it has gone."""
    for name, family in (("tcp", 4), ("tcp6", 6)):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                yield _parse(line, family)


def network_namespace(pid: int) -> str:
    """Its name, to be compared; "" when it cannot be told."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")
    return ""


def name_of(pid: int) -> str:
    """As it calls itself; "" when it has gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def all_pids() -> list[int]:
    """Of every process that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def users_of_sockets(pids: Iterable[int]) -> dict[int, list[User]]:
    """Descriptors by the inode of their socket; processes that may not be looked into have none."""
    found: dict[int, list[User]] = {}
    for pid in pids:
        name = ""
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if target.startswith("socket:["):
                        name = name or name_of(pid) or "?"
                        found.setdefault(int(target[8:-1]), []).append(User(name, pid, int(fd)))
    return found
