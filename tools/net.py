# SPDX-License-Identifier: Apache-2.0
"""Small questions about this host's TCP ports."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"
"""TCP_LISTEN in the state column of /proc/net/tcp."""


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    """A port that is free now on the wildcard address."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    """True if a TCP socket listens on `port`, on any address, by the kernel's table: a probe would be a connection."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[1].endswith(wanted) and columns[3] == LISTEN:
                    return True
    return False


def own_address() -> str | None:
    """An IPv4 address of this host that is not loopback, or None; nothing is sent, UDP's connect only finds a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        address = str(probe.getsockname()[0])
        return None if address.startswith(("127.", "0.")) else address
    return None
