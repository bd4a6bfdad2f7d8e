# SPDX-License-Identifier: Apache-2.0
"""Drives the library's ring, switch and arming from Python: two ends of one segment, and a wire that stands for TCP.

`End` does what sdlib/src/sock does around the same C functions, without interception and with readable steps. A
`Wire` is this end's half of the TCP connection: `FakeWire` keeps bytes in two queues of bounded size, so that a test
decides what has arrived; `SocketWire` is a real socket.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import termios
from collections import Counter
from enum import Enum
from typing import Protocol

from sdlib import abi
from sdlib.wire.segment import segment_bytes

ffi, lib = abi.ffi, abi.lib


class BrokenRing(Exception):
    """The peer wrote what no honest peer writes; the library resets the connection."""


class Wire(Protocol):
    """One end of a byte stream with positions, as TCP_INFO tells them."""

    written: int
    received: int

    def send(self, data: bytes) -> int: ...
    def recv(self, limit: int) -> bytes: ...
    def unread(self) -> int: ...


class FakeWire:
    """Both queues are bounded, as socket buffers are: a send takes what fits."""

    in_flight = 0  # last bytes that have not arrived yet

    def __init__(self, tx: bytearray, rx: bytearray, room: int) -> None:
        self.tx, self.rx, self.room = tx, rx, room
        self.written = self.received = 0

    def send(self, data: bytes) -> int:
        taken = min(len(data), self.room - len(self.tx))
        self.tx += data[:taken]
        self.written += taken
        return taken

    def recv(self, limit: int) -> bytes:
        got = bytes(self.rx[:min(limit, self.unread())])
        del self.rx[:len(got)]
        self.received += len(got)
        return got

    def unread(self) -> int:
        return max(len(self.rx) - self.in_flight, 0)


class SocketWire:
    """A connected TCP socket; nothing here blocks but `wait`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.written = self.received = 0

    def send(self, data: bytes) -> int:
        try:
            taken = self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        self.written += taken
        return taken

    def recv(self, limit: int) -> bytes:
        try:
            got = self.sock.recv(limit, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        self.received += len(got)
        return got

    def unread(self) -> int:
        count: int = struct.unpack("i", fcntl.ioctl(self.sock, termios.FIONREAD, b"\0" * 4))[0]
        return count

    def wait(self, writable: bool, ms: int = 60_000) -> bool:
        """Sleep as a parked program does. False after so long: nobody has rung."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | (select.POLLOUT if writable else 0))
        return bool(poll.poll(ms))


def fake_wires(room: int = 4096) -> tuple[FakeWire, FakeWire]:
    there, back = bytearray(), bytearray()
    return FakeWire(there, back, room), FakeWire(back, there, room)


def new_segment(ring_bytes: int, start_at: int = 0) -> mmap.mmap:
    """A shared segment as the monitor makes it; all counters may start elsewhere than at 0."""
    fd = os.memfd_create("segment")
    try:
        os.ftruncate(fd, segment_bytes(ring_bytes))
        memory = mmap.mmap(fd, segment_bytes(ring_bytes))
    finally:
        os.close(fd)
    pointer = ffi.from_buffer(memory)
    lib.sd_py_format(pointer, ring_bytes)
    for direction in range(2):
        lib.sd_py_start_at(pointer, direction, start_at)
    return memory


class Mode(Enum):
    """enum sd_mode of one direction."""

    TCP = 0
    RING = 1
    BACK = 2


class End:
    """One end of a connection, attached from the start."""

    def __init__(self, segment: mmap.mmap, side: int, wire: Wire) -> None:
        self.memory = ffi.from_buffer(segment)
        self.c = ffi.gc(lib.sd_py_open(self.memory, len(segment), side), lib.sd_py_close)
        if self.c == ffi.NULL:
            raise BrokenRing("segment refused")
        self.side, self.wire = side, wire
        self.tx_mode = self.rx_mode = Mode.TCP
        self.count: Counter[str] = Counter()
        lib.sd_py_attached_say(self.c)

    @property
    def words(self) -> abi.CData:
        """The shared header."""
        return ffi.cast("struct sd_seg *", self.memory)

    # ---- sending

    def switch(self) -> None:
        """This direction goes to the ring, if the peer has attached."""
        if self.tx_mode is Mode.TCP and lib.sd_py_attached_said(self.c, 1 - self.side):
            lib.sd_py_sw_publish(self.c, self.wire.written)
            self.tx_mode = Mode.RING

    def back(self) -> None:
        """This direction goes back to TCP, for good."""
        if self.tx_mode is Mode.RING:
            if lib.sd_py_back_announce(self.c):
                self.ring_bell()
            lib.sd_py_back_publish(self.c, self.wire.written)
            self.tx_mode = Mode.BACK

    def send(self, data: bytes) -> int:
        """Bytes taken."""
        if self.tx_mode is not Mode.RING:
            return self.wire.send(data)
        put = lib.sd_py_put(self.c, data, len(data))
        if put < 0:
            raise BrokenRing("tx")
        if put:
            lib.sd_py_tx_disarm(self.c)
            self.count["ring"] += put
            if lib.sd_py_data_wanted(self.c):
                self.ring_bell()
        return put

    def ring_bell(self) -> None:
        """Wake the peer; a bell may ring only in a direction that has switched."""
        self.switch()
        if self.tx_mode is Mode.RING and lib.sd_py_bell_take(self.c):
            if self.wire.send(b"\0"):
                self.count["bells"] += 1
            else:
                lib.sd_py_bell_give_back(self.c)

    # ---- receiving

    def recv(self, limit: int) -> bytes:
        """What is there, b"" if nothing."""
        if self.rx_mode is Mode.TCP:
            return self._recv_switching(limit)
        if self.rx_mode is Mode.RING:
            return self._recv_ring(limit)
        return self.wire.recv(limit)

    def _recv_switching(self, limit: int) -> bytes:
        unread = self.wire.unread()  # before looking at the switch: these can only be bytes of the program
        left = self.arrive()
        if self.rx_mode is Mode.TCP:
            return self.wire.recv(min(limit, unread if left is None else left))
        return self._recv_ring(limit)

    def arrive(self) -> int | None:
        """Go on the ring if that is due. Else: bytes that come first on TCP, None if the peer has not switched."""
        left = ffi.new("uint64_t *")
        step = lib.sd_py_sw_decide(self.c, self.wire.received, left)
        if step == lib.SD_PY_BAD:
            raise BrokenRing("switch")
        if step == lib.SD_PY_RING:
            lib.sd_py_sw_arrive(self.c)
            self.rx_mode = Mode.RING
        return None if step == lib.SD_PY_TCP else left[0]

    def _recv_ring(self, limit: int) -> bytes:
        buffer = ffi.new("uint8_t[]", limit)
        got = lib.sd_py_take(self.c, buffer, limit)
        if got < 0:
            raise BrokenRing("rx")
        if got:
            if lib.sd_py_room_wanted(self.c):
                self.ring_bell()
            return bytes(ffi.buffer(buffer, got))
        if lib.sd_py_back_reached(self.c):
            left = lib.sd_py_back_left(self.c, self.wire.received)
            if left > 1:
                raise BrokenRing("back")
            if not left or self.wire.recv(1):  # the ring is faster than the wire: the bell may be on its way
                self.rx_mode = Mode.BACK
                return self.wire.recv(limit)
        self.eat_bell()
        return b""

    def eat_bell(self) -> None:
        """The bell word is asked before the wire is: then what is read is a bell."""
        if self.rx_mode is Mode.RING and lib.sd_py_bell_due(self.c) and self.wire.recv(1):
            lib.sd_py_bell_eaten(self.c)
            self.count["eaten"] += 1

    # ---- sleeping

    def fall_asleep(self, room: bool) -> bool:
        """Arm, fence, look again. True: now sleep on the wire, then call `wake_up`. False: there is something to do."""
        if self.rx_mode is Mode.TCP:
            self.arrive()  # no bell comes if the wire was full, and those bytes may be read by now
        if self.rx_mode is Mode.RING:
            lib.sd_py_rx_arm(self.c)
        if room and self.tx_mode is Mode.RING:
            lib.sd_py_tx_arm(self.c)
        if lib.sd_py_membarrier() < 0:
            raise OSError("this kernel has no membarrier")
        news = self.rx_mode is Mode.RING and lib.sd_py_rx_news(self.c)
        if news or (room and self.tx_mode is Mode.RING and lib.sd_py_writable(self.c) != 0):
            self.wake_up()
            return False
        self.count["parks"] += 1
        self.asleep = True
        return True

    def must_look(self) -> bool:
        """Asleep, but no bell can come that tells of room: the sleep has to be short."""
        return self.tx_mode is Mode.RING and (self.rx_mode is Mode.BACK or lib.sd_py_bells_over(self.c))

    asleep = False

    def wake_up(self) -> None:
        if self.rx_mode is Mode.RING:
            lib.sd_py_rx_disarm(self.c)
        self.asleep = False
        self.eat_bell()
