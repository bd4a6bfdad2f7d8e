# SPDX-License-Identifier: Apache-2.0
"""What the monitor and its clients say to each other, and the client (docs/protocol.md is the description).

    messages   the datagrams and their codec                                     no I/O
    states     which message may come when, as one table                         no I/O
    fds        sending and receiving datagrams that carry descriptors
    paths      where a monitor's socket lives
    spawn      starting a per-user monitor
    events     what the client returns
    reach      which monitor, and the greeting
    client     `MonitorClient`, what the supervisor uses
"""

from sdlib.wire.events import Answered, Asked, Lost, MonitorUnavailable, Paired, Part, Pending, Refused, Reload, Ring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sdlib.wire.client import MonitorClient


def __getattr__(name: str) -> object:
    """The client, which no program's first socket is to wait for."""
    if name != "MonitorClient":
        raise AttributeError(name)
    from sdlib.wire.client import MonitorClient as found

    return found


__all__ = [
    "Answered", "Asked", "Lost", "MonitorClient", "MonitorUnavailable", "Paired", "Part", "Pending", "Refused",
    "Reload", "Ring",
]  # fmt: skip
