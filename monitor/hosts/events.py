# SPDX-License-Identifier: Apache-2.0
"""What an RDMA device says by itself (`ibv_get_async_event`), and what that means for its links. No I/O."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class Event(IntEnum):
    """`enum ibv_event_type`, whose numbers are for good."""

    CQ_ERR = 0
    QP_FATAL = 1
    QP_REQ_ERR = 2
    QP_ACCESS_ERR = 3
    COMM_EST = 4
    SQ_DRAINED = 5
    PATH_MIG = 6
    PATH_MIG_ERR = 7
    DEVICE_FATAL = 8
    PORT_ACTIVE = 9
    PORT_ERR = 10
    LID_CHANGE = 11
    PKEY_CHANGE = 12
    SM_CHANGE = 13
    SRQ_ERR = 14
    SRQ_LIMIT_REACHED = 15
    QP_LAST_WQE_REACHED = 16
    CLIENT_REREGISTER = 17
    GID_CHANGE = 18
    WQ_FATAL = 19


OF_QUEUE: Final = frozenset({Event.QP_FATAL, Event.QP_REQ_ERR, Event.QP_ACCESS_ERR, Event.PATH_MIG_ERR})
"""The end of one queue pair."""
OF_DEVICE: Final = frozenset({Event.DEVICE_FATAL, Event.CQ_ERR})
"""The end of all: it has to be closed, and opened anew."""
OF_ADDRESS: Final = frozenset({Event.GID_CHANGE, Event.LID_CHANGE, Event.PKEY_CHANGE, Event.CLIENT_REREGISTER})
"""Perhaps we have another address than we have told."""


class Said(NamedTuple):
    """`queue`, `port`: what it is about; 0: nobody knows, or something else."""

    event: int
    queue: int = 0
    port: int = 0

    @property
    def name(self) -> str:
        """For people, and for counting."""
        return Event(self.event).name.lower() if self.event in Event._value2member_map_ else f"event-{self.event}"
