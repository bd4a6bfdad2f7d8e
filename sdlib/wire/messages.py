# SPDX-License-Identifier: Apache-2.0
"""The datagrams of the monitor protocol and their codec; nothing here does I/O.

Every message is one SOCK_SEQPACKET datagram of a fixed size, little-endian:

    u16 type | u16 length of the whole message | u32 zero | body

A message that isn't exactly like that (size, zero, unknown type, unclean text) raises ProtocolError: there is no
lenient parsing, because whoever sends it is either a hostile client or a different version, and both are refused.
HELLO and REJECT never change their layout, so that two versions can always tell each other why they part.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from sdlib.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

PROTOCOL_VERSION: Final = 7
HELLO_MAGIC: Final = 0x524F54494E4F4D53  # "SMONITOR"
TEXT_BYTES: Final = 104
MAX_BYTES: Final = 128  # no message is longer


class ProtocolError(Exception):
    """The other side said something that this protocol does not know; str() is one line."""


class Type(IntEnum):
    """First word of a message. Numbers are never used again for something else."""

    HELLO = 1
    WELCOME = 2
    REJECT = 3
    OFFER = 4
    PENDING = 5
    PAIRED = 6
    REFUSED = 7
    WITHDRAW = 8
    WITHDRAWN = 9
    HOLD = 10
    RELEASE = 11
    RELOAD = 12
    ASK = 13
    TELL = 14
    QUERY = 15
    PART = 16
    ANSWER = 17
    NUDGE = 18
    RING = 19
    RANG = 20


class Query(IntEnum):
    """What a QUERY wants."""

    STATUS = 1  # of the monitor
    CONNECTIONS = 2  # of its clients
    RELOAD = 3  # as SIGHUP
    DRAIN = 4  # as SIGTERM
    COUNTERS = 5  # of its clients' trees


class Bell(IntEnum):
    """What a RING wants."""

    BYTE = 1  # send a doorbell
    BREAK = 2  # shut it down in both directions: the other host is lost
    BACK = 4  # of a segment whose other end is on another host: its ring goes by TCP; `number`: why (left.py)
    RECALL = 3  # of a segment of this host: what the other end has not read is to go by TCP
    WHY = 5  # of an open offer: what keeps it from being paired with another host; `number` as of BACK; 0: nothing


class Code(IntEnum):
    """Why a client (REJECT) or an offer (REFUSED) is turned down; the text beside it is for people."""

    PROTOCOL = 1  # REJECT: what you sent is not this protocol
    VERSION = 2  # REJECT: protocol or ABI of another version
    TOO_MANY_CLIENTS = 3  # REJECT
    TOO_SLOW = 4  # REJECT: you do not read your answers
    CLOSING = 5  # REJECT: the monitor is leaving; come again
    DESCRIPTOR = 16  # REFUSED: not exactly one descriptor of an established TCP connection
    NOT_ESTABLISHED = 17  # REFUSED: a TCP socket, but not in state ESTABLISHED
    SELF_CONNECTED = 18  # REFUSED: both ends are the same socket
    BOUND_DEVICE = 19  # REFUSED: SO_BINDTODEVICE or VRF: the addresses alone do not name the connection
    RING_SIZE = 20  # REFUSED: ring_bytes is no power of two within SD_RING_MIN..SD_RING_MAX
    OTHER_USER = 21  # REFUSED: the two ends belong to different users
    QUOTA = 22  # REFUSED: too many open offers
    REPLACED = 23  # REFUSED, later: a newer offer for the same end took its place
    RESOURCES = 24  # REFUSED: the monitor has no memory or descriptors
    MEMORY = 25  # REFUSED: ring memory of this user, or in all, is used up
    FORBIDDEN = 32  # ANSWER: only root and the monitor's own user may ask for this


class Hello(NamedTuple):
    """Client, first. `protocol` and `abi` are the versions that it speaks."""

    protocol: int
    abi: int
    magic: int = HELLO_MAGIC


class Welcome(NamedTuple):
    """Monitor: the versions agree; so many offers may be open at a time, rings may have so many bytes."""

    protocol: int
    abi: int
    max_offers: int
    max_ring_bytes: int


class Reject(NamedTuple):
    """Monitor, last: this client is turned away, the connection is closed after it."""

    code: int
    detail: int
    text: str


class Offer(NamedTuple):
    """Client, with the TCP socket itself: pair this end. `offer_id` is the client's own name for it."""

    offer_id: int
    ring_bytes: int


class Pending(NamedTuple):
    """Monitor: the offer is open, the other end is not there yet."""

    offer_id: int


class Paired(NamedTuple):
    """Monitor, with the segment's memfd: the other end is there. This client is `side` (0 or 1).

    `far` 1: it is on another host, and the segment is this host's copy, which the monitor mirrors.
    `tree`: a number of the client at the other end, the same for all of its pairs; 0: unknown.
    """

    offer_id: int
    side: int
    ring_bytes: int
    far: int = 0
    tree: int = 0


class Refused(NamedTuple):
    """Monitor: this offer is closed without a partner."""

    offer_id: int
    code: int
    text: str


class Withdraw(NamedTuple):
    """Client: I no longer want a partner for this offer."""

    offer_id: int


class Withdrawn(NamedTuple):
    """Monitor, to every Withdraw: nothing more will come for this offer, its name may be used again."""

    offer_id: int


class Hold(NamedTuple):
    """Client, with the memfd of a segment of an earlier monitor: it is still in use. `offer_id`: its name.

    `side` and `far` as PAIRED has said them.
    """

    offer_id: int
    side: int = 0
    far: int = 0


class Release(NamedTuple):
    """Client: the segment that this offer (or HOLD) was about is no longer in use."""

    offer_id: int


class Reload(NamedTuple):
    """Monitor: policy files have changed; read them again."""


class Ask(NamedTuple):
    """Monitor: tell somebody who may know about your connections, or your counters: `what` is that Query."""

    ask_id: int
    what: int
    zero: int = 0


class Tell(NamedTuple):
    """Client, with a memfd of JSON: what was asked."""

    ask_id: int


class Question(NamedTuple):
    """Client (sdctl): `what` is a Query."""

    what: int
    zero: int = 0


class Part(NamedTuple):
    """Monitor, with a memfd of JSON, while a QUERY is answered: what the client of this pid and user has told."""

    pid: int
    uid: int


class Answer(NamedTuple):
    """Monitor, with a memfd of JSON: the QUERY is done. `code` 0, or a Code; `missing` clients have not told."""

    code: int
    missing: int


class Nudge(NamedTuple):
    """Client: the program has written into the far segment of that offer, or read, and found the monitor asleep.

    Of a segment of this host: the other end is to RECALL.
    """

    offer_id: int


class Ring(NamedTuple):
    """Monitor: do to the socket of that segment what `what` (a Bell) says.

    `number`: of a doorbell; one that has been rung, for an earlier monitor, is not rung again.
    """

    offer_id: int
    what: int
    number: int = 0


class Rang(NamedTuple):
    """Client, to every RING. `result`: 0, or an errno.

    After a doorbell: where the socket is, so that the monitor can ring by itself. `tid` 0: it is not to.
    """

    offer_id: int
    result: int
    tid: int = 0
    cookie: int = 0
    fd: int = 0
    zero: int = 0


Message = (
    Hello | Welcome | Reject | Offer | Pending | Paired | Refused | Withdraw | Withdrawn
    | Hold | Release | Reload | Ask | Tell | Question | Part | Answer | Nudge | Ring | Rang
)  # fmt: skip


class Layout(NamedTuple):
    """How one type looks on the wire. `fds`: descriptors that travel with it, no more and no fewer."""

    cls: type[Message]
    body: Struct
    fds: int


LAYOUTS: Final[dict[Type, Layout]] = {
    Type.HELLO: Layout(Hello, Struct("<IIQ"), 0),
    Type.WELCOME: Layout(Welcome, Struct("<IIII"), 0),
    Type.REJECT: Layout(Reject, Struct(f"<II{TEXT_BYTES}s"), 0),
    Type.OFFER: Layout(Offer, Struct("<QQ"), 1),
    Type.PENDING: Layout(Pending, Struct("<Q"), 0),
    Type.PAIRED: Layout(Paired, Struct("<QIIII"), 1),
    Type.REFUSED: Layout(Refused, Struct(f"<QI{TEXT_BYTES}s"), 0),
    Type.WITHDRAW: Layout(Withdraw, Struct("<Q"), 0),
    Type.WITHDRAWN: Layout(Withdrawn, Struct("<Q"), 0),
    Type.HOLD: Layout(Hold, Struct("<QII"), 1),
    Type.RELEASE: Layout(Release, Struct("<Q"), 0),
    Type.RELOAD: Layout(Reload, Struct("<"), 0),
    Type.ASK: Layout(Ask, Struct("<QII"), 0),
    Type.TELL: Layout(Tell, Struct("<Q"), 1),
    Type.QUERY: Layout(Question, Struct("<II"), 0),
    Type.PART: Layout(Part, Struct("<II"), 1),
    Type.ANSWER: Layout(Answer, Struct("<II"), 1),
    Type.NUDGE: Layout(Nudge, Struct("<Q"), 0),
    Type.RING: Layout(Ring, Struct("<QII"), 0),
    Type.RANG: Layout(Rang, Struct("<QIIQII"), 0),
}
TYPE_OF: Final[dict[type[Message], Type]] = {layout.cls: kind for kind, layout in LAYOUTS.items()}
_HEADER: Final = Struct("<HHI")
HEADER_BYTES: Final = _HEADER.size


def size_of(kind: Type) -> int:
    """Bytes of a whole message of that type."""
    return HEADER_BYTES + LAYOUTS[kind].body.size


def encode(message: Message) -> bytes:
    """The datagram of `message`. Text is cut to its field; a number out of its field's range raises struct.error."""
    kind = TYPE_OF[type(message)]
    body = LAYOUTS[kind].body
    fields = [_to_text(value) if isinstance(value, str) else value for value in message]
    return _HEADER.pack(kind, HEADER_BYTES + body.size, 0) + body.pack(*fields)


def decode(data: bytes) -> Message:
    """The message in one datagram; raises ProtocolError, with one line about what is wrong, for anything else."""
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"datagram of {len(data)} bytes is shorter than a header")
    number, length, zero = _HEADER.unpack_from(data)
    try:
        kind = Type(number)
    except ValueError:
        raise ProtocolError(f"unknown message type {number}") from None
    if length != len(data) or length != size_of(kind) or zero != 0:
        raise ProtocolError(f"malformed {kind.name}: {len(data)} bytes, says {length}, must be {size_of(kind)}")
    layout = LAYOUTS[kind]
    values = layout.body.unpack_from(data, HEADER_BYTES)
    fields: tuple[Any, ...] = tuple(_from_text(value) if isinstance(value, bytes) else value for value in values)
    message = layout.cls(*fields)
    if isinstance(message, Hello) and message.magic != HELLO_MAGIC:
        raise ProtocolError("HELLO without the magic number")
    return message


def _to_text(text: str) -> bytes:
    """Printable ASCII that leaves room for one NUL; struct pads the rest with NULs."""
    clean = "".join(char if " " <= char <= "~" else "?" for char in text)
    return clean.encode("ascii")[: TEXT_BYTES - 1]


def _from_text(field: bytes) -> str:
    """A NUL-padded field of printable ASCII: it will reach a terminal, so nothing else is let through."""
    text, _, padding = field.partition(b"\0")
    if padding.strip(b"\0") or len(text) == len(field) or any(not 0x20 <= byte <= 0x7E for byte in text):
        raise ProtocolError("unclean text")
    return text.decode("ascii")
