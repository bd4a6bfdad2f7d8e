# SPDX-License-Identifier: Apache-2.0
"""What a service manager wants to hear (sd_notify(3)): a datagram to $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


def notify(state: str, env: Mapping[str, str] = os.environ) -> None:
    """Say `state`, such as "READY=1"; nobody has to listen."""
    name = env.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendto(state.encode(), address)
