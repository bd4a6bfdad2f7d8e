# SPDX-License-Identifier: Apache-2.0
"""Which message may come when: the protocol's state machine as one table that knows nothing of I/O.

Both sides keep one `Conversation` per connection and show it every message before they act on it or send it. What
the table does not list is a ProtocolError, and the side that sees it closes the connection. State of single offers
is not here: messages about them cross each other on the way (a WITHDRAW meets a PAIRED), so it differs between the
sides; `OFFER_STEPS` is the client's view of one offer, the monitor's is `monitor/match.py`.
"""

from __future__ import annotations

from enum import Enum, auto

from sdlib.wire.messages import ProtocolError, Type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class State(Enum):
    """Of one connection between a client and the monitor."""

    START = auto()  # connected; only the client may speak, and only HELLO
    GREETED = auto()  # HELLO sent; the monitor answers WELCOME or REJECT
    READY = auto()  # versions agree; offers may flow
    CLOSED = auto()  # REJECT was said; nothing follows


class Role(Enum):
    """Who sent a message."""

    CLIENT = auto()
    MONITOR = auto()


STEPS: Final[dict[State, dict[tuple[Role, Type], State]]] = {
    State.START: {
        (Role.CLIENT, Type.HELLO): State.GREETED,
        # A monitor that is full or leaving says so without waiting for the HELLO.
        (Role.MONITOR, Type.REJECT): State.CLOSED,
    },
    State.GREETED: {
        (Role.MONITOR, Type.WELCOME): State.READY,
        (Role.MONITOR, Type.REJECT): State.CLOSED,
    },
    State.READY: {
        (Role.CLIENT, Type.OFFER): State.READY,
        (Role.CLIENT, Type.WITHDRAW): State.READY,
        (Role.CLIENT, Type.HOLD): State.READY,
        (Role.CLIENT, Type.RELEASE): State.READY,
        (Role.CLIENT, Type.TELL): State.READY,
        (Role.CLIENT, Type.QUERY): State.READY,
        (Role.CLIENT, Type.NUDGE): State.READY,
        (Role.CLIENT, Type.RANG): State.READY,
        (Role.MONITOR, Type.PENDING): State.READY,
        (Role.MONITOR, Type.PAIRED): State.READY,
        (Role.MONITOR, Type.REFUSED): State.READY,
        (Role.MONITOR, Type.WITHDRAWN): State.READY,
        (Role.MONITOR, Type.RELOAD): State.READY,
        (Role.MONITOR, Type.ASK): State.READY,
        (Role.MONITOR, Type.PART): State.READY,
        (Role.MONITOR, Type.ANSWER): State.READY,
        (Role.MONITOR, Type.RING): State.READY,
        (Role.MONITOR, Type.REJECT): State.CLOSED,
    },
    State.CLOSED: {},
}


class OfferState(Enum):
    """Of one offer, as its client sees it. An offer without a state is closed and its name is free."""

    ASKED = auto()  # OFFER sent, no answer yet
    WAITING = auto()  # PENDING received
    LEAVING = auto()  # WITHDRAW sent; answers that crossed it are void (their memfd is closed)


OFFER_STEPS: Final[dict[OfferState, dict[Type, OfferState | None]]] = {
    OfferState.ASKED: {
        Type.PENDING: OfferState.WAITING,
        Type.PAIRED: None,
        Type.REFUSED: None,
        Type.WITHDRAW: OfferState.LEAVING,
    },
    OfferState.WAITING: {
        Type.PAIRED: None,
        Type.REFUSED: None,
        Type.WITHDRAW: OfferState.LEAVING,
    },
    OfferState.LEAVING: {
        Type.PENDING: OfferState.LEAVING,
        Type.PAIRED: OfferState.LEAVING,
        Type.REFUSED: OfferState.LEAVING,
        Type.WITHDRAWN: None,
    },
}


class Conversation:
    """The state of one connection; `step` is called for every message of either side."""

    def __init__(self) -> None:
        self.state = State.START

    def step(self, sender: Role, kind: Type) -> None:
        """Go on by one message; raises ProtocolError where the table has no such step (the state stays)."""
        following = STEPS[self.state].get((sender, kind))
        if following is None:
            raise ProtocolError(f"{sender.name.lower()} said {kind.name} in state {self.state.name}")
        self.state = following


def offer_step(state: OfferState | None, kind: Type) -> OfferState | None:
    """The offer's state after message `kind`; raises ProtocolError where the table has no such step."""
    if state is None or kind not in OFFER_STEPS[state]:
        raise ProtocolError(f"{kind.name} for an offer that is {state.name if state else 'not open'}")
    return OFFER_STEPS[state][kind]
