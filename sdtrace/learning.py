# SPDX-License-Identifier: Apache-2.0
"""`sdrun --learn`: what the programs of a tree did, for policies.learn to write down."""

from __future__ import annotations

import ipaddress
import os
import tempfile
import threading
from pathlib import Path
from typing import Final

from policies import learn
from policies.model import Dir, Proto

_RANGE_FILE: Final = "/proc/sys/net/ipv4/ip_local_port_range"
_DEFAULT_RANGE: Final = (32768, 60999)
_SEEN_MAX: Final = 100_000


class Learner:
    """Collects; threads of the supervisor tell, too."""

    def __init__(self) -> None:
        self._seen: dict[str, set[learn.Seen]] = {}
        self._lock = threading.Lock()
        self._range = _port_range()

    def program(self, exe: str) -> None:
        """A program of the tree: it gets an entry, whatever it does."""
        with self._lock:
            self._seen.setdefault(exe, set())

    def saw(self, exe: str, dir_: Dir, proto: Proto, packed: bytes | None, port: int) -> None:
        """One connection, listener (`packed` None) or datagram."""
        address = None if packed is None else ipaddress.ip_address(packed)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        any_port = dir_ == "in" and self._range[0] <= port <= self._range[1]
        with self._lock:
            seen = self._seen.setdefault(exe, set())
            if len(seen) < _SEEN_MAX:
                seen.add(learn.Seen(dir_, proto, address, port, any_port))

    def write(self, path: Path, command: str) -> None:
        """Replace the file in one step. OSError."""
        with self._lock:
            text = learn.write(self._seen, self._range, command)
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(fd, 0o644)
        os.replace(temporary, path)


def _port_range() -> tuple[int, int]:
    """From which the kernel chooses ports."""
    try:
        low, high = Path(_RANGE_FILE).read_text(encoding="ascii").split()
        return int(low), int(high)
    except (OSError, ValueError):
        return _DEFAULT_RANGE
