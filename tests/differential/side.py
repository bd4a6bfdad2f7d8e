# SPDX-License-Identifier: Apache-2.0
"""One side of a behaviour: system calls with names, made by an agent, each a line in the transcript.

A method makes its call and returns a `Call` with its value and what it has written.  `side.start.recv(...)` only begins
it: the line is added when `end()` is called, so a transcript has one order whoever is faster.
"""

from __future__ import annotations

import struct
import time
from typing import Final

from tests.differential.caller import MINUS_ONE, Call, Pace, brief, settle
from tests.differential.messages import Messages
from tests.differential.waiting import Waiting

__all__ = ["MINUS_ONE", "Call", "Pace", "Side", "Where", "settle"]

SOL_SOCKET, SOL_TCP = 1, 6
_TCP_INFO: Final = 11
_UNANSWERED: Final = (4, 9, 11)
"""TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_CLOSING."""
_ANSWERED_S: Final = 0.2
"""Bytes that nobody reads may stand before the FIN."""


class Where:
    """Where servers listen, if nothing else is said; another address where the two sides are two hosts."""

    server = b"\x7f\0\0\1"


class Side(Messages, Waiting):
    """An agent, what it does with sockets, and its other descriptors."""

    def socket(self, family: int = 2, kind: int = 1, protocol: int = 0) -> int:
        """A TCP socket if nothing else is said."""
        return self.sys("socket", family, kind, protocol).value

    def bind(self, fd: int, port: int = 0, address: bytes | None = None) -> Call:
        """To an IPv4 address; the port does not show."""
        memory = self.link.memory()
        where = memory.put(struct.pack("=H", 2) + struct.pack("!H", port) + (address or Where.server) + bytes(8))
        return self.sys("bind", fd, where, 16, memory=memory, text=f"{fd}")

    def listen(self, fd: int, backlog: int = 16) -> Call:
        """listen."""
        return self.sys("listen", fd, backlog)

    def port(self, fd: int) -> int:
        """Own port: changes from run to run, so it is not in the transcript."""
        memory = self.link.memory()
        where, size = memory.room(16), memory.both(struct.pack("=I", 16))
        _, data = self.link.begin("getsockname", fd, where, size, memory=memory).end()
        return int(struct.unpack_from("!H", data[0], 2)[0])

    def connect(self, fd: int, port: int, address: bytes | None = None) -> Call:
        """To an IPv4 address."""
        memory = self.link.memory()
        where = memory.put(struct.pack("=H", 2) + struct.pack("!H", port) + (address or Where.server) + bytes(8))
        return self.sys("connect", fd, where, 16, memory=memory, text=f"{fd}")

    def accept(self, fd: int, flags: int | None = None) -> Call:
        """accept, or accept4 with flags."""
        return self.sys("accept", fd) if flags is None else self.sys("accept4", fd, 0, 0, flags)

    def close(self, fd: int) -> Call:
        """close."""
        return self._then_settle(self.sys("close", fd))

    def shutdown(self, fd: int, how: int) -> Call:
        """0 SHUT_RD, 1 SHUT_WR, 2 both."""
        call = self._then_settle(self.sys("shutdown", fd, how))
        if not self._deferred and how and call.value == 0:
            self._until_acknowledged(fd)
        return call

    def _until_acknowledged(self, fd: int) -> None:
        """The other end's answer to a FIN is an edge, too: on a busy machine it comes late, natively as well."""
        deadline = time.monotonic() + _ANSWERED_S
        while time.monotonic() < deadline:
            memory = self.link.memory()
            where, length = memory.room(8), memory.both(struct.pack("=I", 8))
            value, data = self.link.begin("getsockopt", fd, SOL_TCP, _TCP_INFO, where, length, memory=memory).end()
            if value < 0 or data[0][0] not in _UNANSWERED:
                return
            time.sleep(0.001)

    def setsockopt(self, fd: int, level: int, name: int, value: int | bytes) -> Call:
        """An int, or bytes as they are."""
        memory = self.link.memory()
        data = value if isinstance(value, bytes) else struct.pack("=i", value)
        where = memory.put(data)
        return self.sys("setsockopt", fd, level, name, where, len(data), memory=memory,
                        text=f"{fd}, {level}, {name}, {value!r}")

    def getsockopt(self, fd: int, level: int, name: int, size: int = 4, *, show: bool = True) -> Call:
        """The value shows as bytes, up to the length that the kernel reports."""
        def shown(value: int, data: list[bytes]) -> str:
            length = struct.unpack("=I", data[1])[0]
            return brief(data[0][:length]) if show and value == 0 else ""

        memory = self.link.memory()
        where, length = memory.room(max(size, 1)), memory.both(struct.pack("=I", size))
        return self.sys("getsockopt", fd, level, name, where, length, memory=memory,
                        text=f"{fd}, {level}, {name}, {size}", shown=shown)

    def option(self, fd: int, level: int, name: int) -> int:
        """An int option."""
        return int(struct.unpack("=i", self.getsockopt(fd, level, name).pieces[0])[0])

    def ioctl(self, fd: int, request: int, value: int = 0) -> int:
        """One with a pointer to an int, both ways; the int afterwards."""
        memory = self.link.memory()
        where = memory.both(struct.pack("=i", value))
        call = self.sys("ioctl", fd, request, where, memory=memory, text=f"{fd}, {request:#x}, {value}",
                        shown=lambda _, data: str(struct.unpack("=i", data[0])[0]))
        return int(struct.unpack("=i", call.pieces[0])[0])

    def fcntl(self, fd: int, command: int, value: int = 0) -> Call:
        """fcntl."""
        return self.sys("fcntl", fd, command, value)

    def nonblock(self, fd: int, on: bool = True) -> None:
        """O_NONBLOCK."""
        flags = self.fcntl(fd, 3).value
        self.fcntl(fd, 4, flags | 0o4000 if on else flags & ~0o4000)

    def pipe(self, flags: int = 0) -> tuple[int, int]:
        """pipe2."""
        memory = self.link.memory()
        call = self.sys("pipe2", memory.room(8), flags, memory=memory, text=f"{flags:#x}")
        read, write = struct.unpack("=ii", call.pieces[0])
        return int(read), int(write)

    def pair(self, kind: int = 1) -> tuple[int, int]:
        """socketpair of unix sockets."""
        memory = self.link.memory()
        call = self.sys("socketpair", 1, kind, 0, memory.room(8), memory=memory, text=f"{kind}")
        one, two = struct.unpack("=ii", call.pieces[0])
        return int(one), int(two)

    def file(self, data: bytes) -> int:
        """A file with these bytes, read from its start."""
        memory = self.link.memory()
        fd = self.sys("memfd_create", memory.put(b"file\0"), 0, memory=memory, text="").value
        self.sent -= len(data)
        self.write(fd, data)
        self.sys("lseek", fd, 0, 0)
        return fd
