# SPDX-License-Identifier: Apache-2.0
"""Small questions about this host's TCP ports."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import suppress
from pathlib import Path

_LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
LISTEN = "0A"
"""TCP_LISTEN in the state column of /proc/net/tcp."""


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    """A port that is free now on the wildcard address.

    None that the kernel may give to who connects before it is used: below those, if there is room.
    """
    first = int(_LOCAL_PORTS.read_text().split()[0])
    below = range(min(10_000, first), first)
    for attempt in range(100):
        port = random.SystemRandom().choice(below) if below and attempt < 99 else 0
        with socket.socket(family, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.bind(("", port))
            return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, "no port is free")


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


def is_unix_listening(path: str) -> bool:
    """True if a unix socket answers at `path`, which takes a connection.

    The file is there from bind on, and /proc/net/unix has another name for one that was renamed, as HAProxy's.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def own_address() -> str | None:
    """An IPv4 address of this host that is not loopback, or None; nothing is sent, UDP's connect only finds a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        address = str(probe.getsockname()[0])
        return None if address.startswith(("127.", "0.")) else address
    return None
