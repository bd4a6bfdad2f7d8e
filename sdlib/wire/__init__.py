# SPDX-License-Identifier: Apache-2.0
"""What the monitor and its clients say to each other, and the client (docs/protocol.md is the description).

    messages   the datagrams and their codec                                     no I/O
    states     which message may come when, as one table                         no I/O
    fds        sending and receiving datagrams that carry descriptors
    paths      where a monitor's socket lives
    spawn      starting a per-user monitor
    events     what the client returns
    client     `MonitorClient`, what the supervisor uses
"""

from sdlib.wire.client import MonitorClient
from sdlib.wire.events import Answered, Asked, Lost, MonitorUnavailable, Paired, Part, Pending, Refused, Reload, Ring

__all__ = [
    "Answered", "Asked", "Lost", "MonitorClient", "MonitorUnavailable", "Paired", "Part", "Pending", "Refused",
    "Reload", "Ring",
]  # fmt: skip
