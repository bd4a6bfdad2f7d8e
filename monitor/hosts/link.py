# SPDX-License-Identifier: Apache-2.0
"""The conversation of two monitors that know each other: which transport carries what, and how far. No I/O.

It begins on the TCP connection that they have made sure of each other on (auth.py).  Both say RESUME for every
connection that they hold; who hears of one that it holds as well has linked it.  Where both have queue pairs they say
PORT, each connects its own and says READY, and who has heard that says SWITCH, as the last record in its TCP stream,
and goes on by RDMA.  What arrives there before the SWITCH has is put aside.  So each direction changes over at one
place in its sequence of records, and neither waits for the other.

There is one failure: the link is down, whatever has failed.  Both queue pair and TCP connection are given up, and a
new conversation begins with RESUME.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from monitor.hosts import frames
from monitor.hosts.auth import Sealer
from monitor.hosts.frames import BadPeer, Data, Record, Resume, Words
from monitor.hosts.mirror import Broken, Mirror, Transport
from sdlib.wire.left import Left

OUT_MAX: Final = 1 << 20
"""Bytes that may wait to be written to the TCP connection before no more are made."""
ANSWERS_MAX: Final = 16 * OUT_MAX
"""So many of records, and _ANSWERS_EACH for each connection, only who asks and reads nothing comes to."""
_ANSWERS_EACH: Final = 1024


class Port(Protocol):
    """Our half of a queue pair (verbs.py)."""

    number: int

    def describe(self) -> frames.Port: ...
    def connect(self, far: frames.Port) -> None: ...
    def live(self) -> None: ...
    def transport(self) -> Transport: ...
    def region(self, mirror: Mirror) -> tuple[int, int]: ...
    def flush(self) -> bool: ...
    def queued(self) -> int: ...
    def forget(self, mirror: Mirror) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Stream:
    """The TCP connection as a transport: frames of records, sealed when they are taken out."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self.out = bytearray()

    def room(self) -> bool:
        """Whether it takes more."""
        return len(self.out) < OUT_MAX

    def write(self, mirror: Mirror, at: int, base: int, size: int) -> None:
        """Bytes of a ring, themselves."""
        record = Data(mirror.far_slot, size, at)
        self.out += self._sealer.seal(frames.encode(record) + mirror.copy.bytes_at(at, base, size))

    def send(self, record: Record) -> None:
        """One record."""
        self.out += self._sealer.seal(frames.encode(record))


class Link:
    """One conversation, from the handshake to its failure. `mirrors` by our slot, shared with the hub."""

    def __init__(
        self, peer: str, sealer: Sealer, mirrors: dict[int, Mirror], by_id: dict[bytes, Mirror], port: Port | None,
        asked: Callable[[Record], None], stirred: Callable[[int], None] = lambda _slot: None,
    ) -> None:  # fmt: skip
        """`asked`: SEEK, ACCEPT, GONE, and RESUME of what we do not hold, are the hub's; `stirred`: it has news."""
        self.peer = peer
        self.stream = Stream(sealer)
        self.port = port
        self.switched_out = self.switched_in = False
        self._sealer = sealer
        self._mirrors, self._by_id = mirrors, by_id
        self._asked, self._stirred = asked, stirred
        self._aside: list[tuple[int, int] | bytes] = []
        self._connected = False
        self.begin()

    def begin(self) -> None:
        """What is said first."""
        if self.port is not None:
            self.stream.send(self.port.describe())
        for mirror in list(self._mirrors.values()):
            self.introduce(mirror, reply=0)

    def introduce(self, mirror: Mirror, reply: int) -> None:
        """Say that we hold it; or, if its ring cannot be registered, that it goes back to TCP."""
        try:
            address, rkey = (0, 0) if self.port is None else self.port.region(mirror)
        except OSError:
            gone = frames.Gone(mirror.far_id, Left.MEMORY)
            self._say(gone)
            self._asked(gone)
            return
        self._say(mirror.resume(reply, address, rkey))

    def _say(self, record: Record) -> None:
        """In order with everything else that we say."""
        self.transport.send(record)  # type: ignore[arg-type]

    say = _say

    @property
    def transport(self) -> Transport:
        """What carries at this moment what we send."""
        if self.switched_out and self.port is not None:
            return self.port.transport()
        return self.stream

    @property
    def by_rdma(self) -> bool:
        """In both directions."""
        return self.switched_out and self.switched_in

    @property
    def alone(self) -> bool:
        """We have a queue pair, and the other side has none: it is the one to begin anew when that changes."""
        return self.port is not None and not self._connected

    # ---------------------------------------------------------------- receiving

    def feed(self, data: bytes) -> None:
        """From the TCP connection. Raises BadPeer."""
        for body in self._sealer.open(data):
            if self.switched_in:
                self._only_ping(body)
                continue
            record, rest = self._one(body)
            if isinstance(record, Data):
                if len(rest) != record.size:
                    raise BadPeer("DATA of another size")
                self._mirror(record.slot).on_data(record.at, rest)
            elif rest:
                raise BadPeer("a frame with something behind its record")
            else:
                self._heed(record)
                self._are_read()

    def _are_read(self) -> None:
        """Our answers."""
        waiting = len(self.stream.out) + (0 if self.port is None else self.port.queued())
        if waiting > ANSWERS_MAX + _ANSWERS_EACH * len(self._mirrors):
            raise BadPeer("asks, and reads no answer")

    def _only_ping(self, body: bytes) -> None:
        if not isinstance(self._one(body)[0], frames.Ping):
            raise BadPeer("a record in TCP behind its SWITCH")

    @staticmethod
    def _one(body: bytes) -> tuple[Record, memoryview]:
        found = frames.decode(body, 0)
        if found is None:
            raise BadPeer("half a record")
        return found[0], memoryview(body)[found[1]:]

    def on_written(self, slot: int, size: int) -> None:
        """An RDMA WRITE has put bytes behind those in our copy. Raises BadPeer."""
        if not self.switched_in:
            self._put_aside((slot, size))
        else:
            self._mirror(slot).on_landed(size)

    def on_sleeper(self, slot: int) -> None:
        """Bytes were published, and their program sleeps."""
        mirror = self._mirrors.get(slot)
        if mirror is not None:
            mirror.ring()
            self._stirred(slot)

    def on_woken(self, slot: int) -> None:
        """Bytes were published for one that nobody looked at."""
        self._stirred(slot)

    def on_broken(self, slot: int) -> None:
        """A program of ours has written nonsense into its own copy."""
        mirror = self._mirrors.get(slot)
        if mirror is not None:
            mirror.on_broken()

    def on_message(self, body: bytes) -> None:
        """An RDMA SEND. Raises BadPeer."""
        if not self.switched_in:
            self._put_aside(body)
            return
        start = 0
        while start < len(body):
            found = frames.decode(body, start)
            if found is None or isinstance(found[0], Data | frames.Port | frames.Switch):
                raise BadPeer("a record that does not belong into a SEND")
            record, start = found
            self._heed(record)
        self._are_read()

    def _put_aside(self, event: tuple[int, int] | bytes) -> None:
        if len(self._aside) >= 65536:
            raise BadPeer("too much before its SWITCH")
        self._aside.append(event)

    def _heed(self, record: Record) -> None:
        match record:
            case Words():
                self._mirror(record.slot).on_words(record)
            case frames.Credit():
                self._mirror(record.slot).on_credit(record.head)
            case frames.Bell():
                self._on_bell(record)
            case Resume():
                self._on_resume(record)
            case frames.Seek() | frames.Accept() | frames.Gone():
                self._asked(record)
            case frames.Port():
                self._on_port(record)
            case frames.Ready():
                self._on_ready()
            case frames.Switch():
                self._on_switch()

    def _mirror(self, slot: int) -> Mirror:
        mirror = self._mirrors.get(slot)
        if mirror is None or not mirror.linked:
            raise BadPeer(f"speaks of connection {slot}, which is not linked")
        self._stirred(slot)
        return mirror

    def _on_bell(self, said: frames.Bell) -> None:
        """The loop in C asks as soon as bytes land: also while our GONE for that connection is on its way to it."""
        mirror = self._mirrors.get(said.slot)
        if mirror is not None and mirror.linked:
            self._stirred(said.slot)
            mirror.on_bell(said.asked)

    def _on_resume(self, said: Resume) -> None:
        """Unknown ones were given up here, or we are new and their supervisor has not told us of them yet."""
        mirror = self._by_id.get(said.far_id)
        if mirror is None or mirror.slot not in self._mirrors:
            self._asked(said)
            return
        if mirror.linked:
            return  # said twice: the first one, that we sent when we began, was not for nothing after all
        mirror.on_resume(said)
        self._stirred(mirror.slot)
        if said.reply:
            self.introduce(mirror, reply=0)

    # --------------------------------------------------------------- queue pairs

    def _on_port(self, far: frames.Port) -> None:
        if self.port is None or self._connected:
            return
        self._connected = True
        self.port.connect(far)
        self.stream.send(frames.Ready())

    def _on_ready(self) -> None:
        if not self._connected or self.switched_out:
            raise BadPeer("READY out of turn")
        self.stream.send(frames.Switch())
        self.switched_out = True
        self._live()

    def _live(self) -> None:
        if self.by_rdma and self.port is not None:
            self.port.live()

    def _on_switch(self) -> None:
        if not self._connected:
            raise BadPeer("SWITCH out of turn")
        self.switched_in = True
        aside, self._aside = self._aside, []
        for event in aside:
            if isinstance(event, bytes):
                self.on_message(event)
            else:
                self.on_written(*event)
        self._live()

    # ------------------------------------------------------------------- sending

    def pump(self, mirrors: Iterable[Mirror], *, idle: bool) -> tuple[bool, list[Mirror]]:
        """Send what is new of all. Whether anything was, and those whose programs write nonsense."""
        busy, broken = False, []
        for mirror in mirrors:
            try:
                busy |= mirror.pump(self.transport, idle=idle)
            except Broken:
                broken.append(mirror)
        if self.port is not None:
            busy |= self.port.flush()
        return busy, broken

    def ping(self) -> None:
        """By TCP, whatever carries the rest: it fails when the other host has gone without a word."""
        self.stream.send(frames.Ping())

    def close(self) -> None:
        """It is down: nothing that was under way arrives any more."""
        if self.port is not None:
            self.port.close()
        for mirror in self._mirrors.values():
            mirror.unlink()
