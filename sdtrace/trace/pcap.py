# SPDX-License-Identifier: Apache-2.0
"""Bytes of connections as packets: pcapng that Wireshark and tshark follow as TCP.

No packet has ever existed. Each connection that a program of the tree uses gets a handshake when it is first heard of,
a segment for every piece of bytes that went through (on the ring or not), and a FIN or reset where the programs saw
one. Sequence numbers are places in the stream, as both ends tell them: who told first has written it, so a connection
both of whose ends are in the tree appears once, and what nobody told is a hole that readers of the file show. Records
that were lost are said in a comment on the next packet, and in the interface's statistics at the end.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import dpkt

from sdlib import abi
from sdtrace.trace.stream import Clock, Event, Lost, Record

_SEGMENT: Final = 32768
_WINDOW: Final = 65535
_MASK: Final = 0xFFFFFFFF
_COMMENT: Final = 1
_HARDWARE, _OS, _APPLICATION = 2, 3, 4
_IF_NAME, _IF_DROP = 2, 5
_ISB: Final = 5
_RAW_IP: Final = 101
_NAME: Final = 28
_CONNECTED: Final = 1
_RECENT_MAX: Final = 4096
"""Connections whose other end may still show up: its first record can be drained after the last of this one."""
_SYN, _ACK, _FIN, _RST, _PUSH = (dpkt.tcp.TH_SYN, dpkt.tcp.TH_ACK, dpkt.tcp.TH_FIN, dpkt.tcp.TH_RST, dpkt.tcp.TH_PUSH)

Address = tuple[bytes, int]
"""Packed IP address and port."""


class Spans:
    """Which bytes of a stream were written."""

    def __init__(self) -> None:
        """None."""
        self._done: list[tuple[int, int]] = []

    def new(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are not there yet; they are from now on."""
        if self._done and self._done[-1][1] == start:  # almost always
            self._done[-1] = (self._done[-1][0], end)
            return [(start, end)]
        fresh, at = [], start
        for low, high in self._done:
            if high <= at or low >= end:
                continue
            if low > at:
                fresh.append((at, low))
            at = max(at, high)
        if at < end:
            fresh.append((at, end))
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self._done, (start, end)]):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        self._done = merged
        return fresh

    @property
    def end(self) -> int:
        """Behind the last byte."""
        return self._done[-1][1] if self._done else 0


@dataclass
class Flow:
    """One direction, from the end that sends."""

    source: Address
    spans: Spans = field(default_factory=Spans)
    finished: bool = False


@dataclass
class Connection:
    """Both."""

    flows: tuple[Flow, Flow]
    reset: bool = False
    ends: int = 1
    """Sockets that we have heard of."""


def _address(name: bytes) -> Address | None:
    """Of a struct sockaddr_in or sockaddr_in6; a v4 address in v6's clothing is v4: that is what is on the wire."""
    if len(name) < _NAME:
        return None
    family, port = struct.unpack("=H", name[:2])[0], struct.unpack("!H", name[2:4])[0]
    if family == socket.AF_INET:
        return name[4:8], port
    if family != socket.AF_INET6:
        return None
    mapped = ipaddress.IPv6Address(name[8:24]).ipv4_mapped
    return (mapped.packed if mapped else name[8:24]), port


class Capture:
    """Writes packets as events come."""

    def __init__(self, file: BinaryIO, clock: Clock) -> None:
        """The file's head is written at once."""
        self._file, self._clock = file, clock
        option = dpkt.pcapng.PcapngOptionLE
        shb = dpkt.pcapng.SectionHeaderBlockLE(opts=[
            option(code=_APPLICATION, data=b"sdrun --pcap"),
            option(code=_COMMENT, data=b"Made of what programs sent and received; no packets were seen."),
            option(code=0),
        ])
        idb = dpkt.pcapng.InterfaceDescriptionBlockLE(
            linktype=_RAW_IP, snaplen=0, opts=[option(code=_IF_NAME, data=b"sdrun"), option(code=0)])
        self._writer = dpkt.pcapng.Writer(file, shb=shb, idb=idb)
        self._by_cookie: dict[int, tuple[Connection, int]] = {}
        self._recent: dict[tuple[Address, Address], Connection] = {}
        self._lost = self._untold = 0
        self._idents = 0

    # ---------------------------------------------------------------- events

    def take(self, event: Event) -> None:
        """One event of the stream."""
        if isinstance(event, Lost):
            self._lost += event.count
            self._untold += event.count
        elif isinstance(event, Record):
            if event.nr == abi.const.SD_TRACE_OPEN:
                self._open(event)
            elif event.nr == abi.const.SD_TRACE_DATA:
                self._data(event)
            elif event.nr == abi.const.SD_TRACE_END:
                self._end(event)

    def _open(self, record: Record) -> None:
        cookie, role = record.args[0], record.args[1]
        local, peer = _address(record.payload[:_NAME]), _address(record.payload[_NAME:2 * _NAME])
        if cookie in self._by_cookie or local is None or peer is None or len(local[0]) != len(peer[0]):
            return
        connection = self._recent.get((peer, local))
        if connection is not None and connection.ends < 2:  # its other end was here before, and may be gone
            connection.ends = 2
            side = 1
        else:
            connection = Connection((Flow(local), Flow(peer)))
            self._recent[(local, peer)] = connection
            side = 0
            self._handshake(connection, record.tsc, client=0 if role == _CONNECTED else 1)
            if len(self._recent) > _RECENT_MAX:
                self._recent.pop(next(iter(self._recent)))
        self._by_cookie[cookie] = connection, side

    def _handshake(self, connection: Connection, tsc: int, client: int) -> None:
        """As it was, a little before; sequence numbers start so that the first byte has number 1."""
        syn = -1
        self._packet(connection, client, tsc - 3, b"", _SYN, at=syn, ack=None)
        self._packet(connection, 1 - client, tsc - 2, b"", _SYN | _ACK, at=syn, ack=0)
        self._packet(connection, client, tsc - 1, b"", _ACK, at=0, ack=0)

    def _data(self, record: Record) -> None:
        known = self._by_cookie.get(record.args[0])
        if known is None:
            self._lost += 1
            self._untold += 1
            return
        connection, side = known
        sender = side ^ int(record.args[1] != 0)
        start = record.args[2]
        flow = connection.flows[sender]
        if record.result <= 0 or start >= 1 << 62:
            return  # bytes that could not be copied: a hole
        for low, high in flow.spans.new(start, start + len(record.payload)):
            for at in range(low, high, _SEGMENT):
                piece = record.payload[at - start:min(at + _SEGMENT, high) - start]
                self._packet(connection, sender, record.tsc, piece, _PUSH | _ACK, at=at)

    def _end(self, record: Record) -> None:
        known = self._by_cookie.get(record.args[0])
        if known is None:
            return
        connection, side = known
        how = record.args[1]
        if how == abi.const.SD_TRACE_END_RESET:
            if not connection.reset:
                connection.reset = True
                self._packet(connection, 1 - side, record.tsc, b"", _RST | _ACK)
        elif how == abi.const.SD_TRACE_END_FIN:
            self._finish(connection, 1 - side, record.tsc)
        else:
            self._finish(connection, side, record.tsc)
        if how == abi.const.SD_TRACE_END_CLOSED:
            del self._by_cookie[record.args[0]]

    def _finish(self, connection: Connection, sender: int, tsc: int) -> None:
        flow = connection.flows[sender]
        if flow.finished or connection.reset:
            return
        flow.finished = True
        self._packet(connection, sender, tsc, b"", _FIN | _ACK)
        self._packet(connection, 1 - sender, tsc + 1, b"", _ACK)

    # --------------------------------------------------------------- packets

    def _packet(self, connection: Connection, sender: int, tsc: int, data: bytes, flags: int, at: int | None = None,
                ack: int | None = -1) -> None:
        """`at`: place in the sender's stream, as a rule its end; `ack`: of the other one, as a rule all of it."""
        flow, other = connection.flows[sender], connection.flows[1 - sender]
        if at is None:
            at = flow.spans.end + (flow.finished and not flags & _FIN)
        if ack == -1:
            ack = other.spans.end + other.finished
        segment = dpkt.tcp.TCP(sport=flow.source[1], dport=other.source[1], seq=(1 + at) & _MASK, flags=flags,
                               ack=0 if ack is None else (1 + ack) & _MASK, win=_WINDOW, data=data)
        ns = self._clock.ns(tsc)
        block = dpkt.pcapng.EnhancedPacketBlockLE(pkt_data=bytes(self._datagram(flow, other, segment)))
        if self._untold:
            text = f"sdrun: {self._untold} records were lost before this packet"
            block.opts = [dpkt.pcapng.PcapngOptionLE(code=_COMMENT, data=text.encode()),
                          dpkt.pcapng.PcapngOptionLE(code=0)]
            self._untold = 0
        self._writer.writepkt(block, ts=ns / 1e9)

    def _datagram(self, flow: Flow, other: Flow, segment: dpkt.tcp.TCP) -> dpkt.Packet:
        """dpkt fills in lengths and checksums."""
        if len(flow.source[0]) == 4:
            self._idents = self._idents + 1 & 0xFFFF
            return dpkt.ip.IP(src=flow.source[0], dst=other.source[0], p=dpkt.ip.IP_PROTO_TCP, ttl=64, data=segment,
                              id=self._idents, len=20 + len(segment), df=1)
        return dpkt.ip6.IP6(src=flow.source[0], dst=other.source[0], nxt=dpkt.ip.IP_PROTO_TCP, hlim=64, data=segment,
                            plen=len(segment), fc=0, flow=0, v=6)

    def finish(self) -> None:
        """The interface's statistics: how many records were lost."""
        body = struct.pack("<III", 0, 0, 0) + struct.pack("<HHQHH", _IF_DROP, 8, self._lost, 0, 0)
        size = len(body) + 12
        self._file.write(struct.pack("<II", _ISB, size) + body + struct.pack("<I", size))
        self._file.flush()
