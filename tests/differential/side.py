# SPDX-License-Identifier: Apache-2.0
"""One side of a behaviour: system calls with names, made by an agent, each a line in the transcript.

A method makes its call and returns a `Call` with its value and what it has written.  `side.start.recv(...)` only begins
it: the line is added when `end()` is called, so a transcript has one order whoever is faster.
"""

from __future__ import annotations

import copy
import errno
import signal
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Final

from tests.differential.remote import EXEC, FORK, THREAD, AgentGone, Link, Memory, Pending

Shown = Callable[[int, list[bytes]], str]
_IOVEC: Final = struct.Struct("=QQ")
_MSGHDR: Final = struct.Struct("=QIIQQQQI4x")
_POLLFD: Final = struct.Struct("=ihh")
_EPOLL: Final = struct.Struct("=IQ")
_TIMESPEC: Final = struct.Struct("=qq")
SOL_SOCKET, SOL_TCP = 1, 6
MINUS_ONE: Final = (1 << 64) - 1
_TCP_INFO: Final = 11
_UNANSWERED: Final = (4, 9, 11)
"""TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_CLOSING."""
_ANSWERED_S: Final = 0.2
"""Bytes that nobody reads may stand before the FIN."""


def brief(data: bytes) -> str:
    """Bytes for a transcript."""
    return repr(data) if len(data) <= 40 else f"{len(data)} bytes, crc {zlib.crc32(data):08x}"


def named(value: int) -> str:
    """A call's value, with the errno's name."""
    return errno.errorcode.get(-value, str(value)) if value < 0 else str(value)


class Pace:
    """How long to wait for what takes its time."""

    settle_s = 0.002


def settle() -> None:
    """The kernel hands packets over in a thread of its own when it is busy: give it time, in all worlds alike."""
    time.sleep(Pace.settle_s)


class Where:
    """Where servers listen, if nothing else is said; another address where the two sides are two hosts."""

    server = b"\x7f\0\0\1"


class Call:
    """A call that was made, or has been begun."""

    def __init__(self, side: Side, text: str, pending: Pending, shown: Shown | None) -> None:
        self._side, self._text, self._pending, self._shown = side, text, pending, shown
        self._ended = False
        self._value = 0
        self._data: list[bytes] = []

    def asleep(self) -> Call:
        """Wait until the call sleeps in the kernel; the transcript says if it came back instead."""
        if not self._pending.asleep():
            self._side.say(f"{self._text} did not wait")
        return self

    def end(self) -> Call:
        """Wait for the answer and note it; once."""
        if self._ended:
            return self
        self._ended = True
        try:
            self._value, self._data = self._pending.end()
        except AgentGone:
            self._value = -10_000
            self._side.say(f"{self._text} = the process has ended")
            return self
        more = self._shown(self._value, self._data) if self._shown else ""
        self._side.say(f"{self._text} = {named(self._value)}{' ' if more else ''}{more}")
        return self

    @property
    def value(self) -> int:
        """The kernel's answer; -errno."""
        return self.end()._value

    @property
    def data(self) -> bytes:
        """The first piece of memory that was read back, as much of it as the value says."""
        return self.end()._data[0][:max(self._value, 0)] if self._data else b""

    @property
    def pieces(self) -> list[bytes]:
        """All that was read back."""
        return self.end()._data


def _first(value: int, data: list[bytes]) -> str:
    return brief(data[0][:value]) if value > 0 else ""


def _vectors(sizes: Sequence[int]) -> Shown:
    def shown(value: int, data: list[bytes]) -> str:
        whole = b"".join(data[:len(sizes)])
        return brief(whole[:value]) if value > 0 else ""

    return shown


class Side:
    """An agent and its transcript."""

    def __init__(self, name: str, link: Link, log: list[str]) -> None:
        self.name, self.link, self.log = name, link, log
        self.sent = 0
        """Bytes that data calls have taken, to compare with the report."""
        self._deferred = False
        self.others: list[Side] = []

    # -------------------------------------------------------------- machinery

    def say(self, text: str) -> None:
        """One line of transcript."""
        self.log.append(f"{self.name}: {text}")

    @property
    def start(self) -> Side:
        """The same side, but calls are only begun."""
        other = copy.copy(self)
        other._deferred = True
        return other

    def sys(self, name: str, *args: int, memory: Memory | None = None, text: str = "",
            shown: Shown | None = None) -> Call:
        """Any call. `text` is what stands in the transcript, the name and the arguments if there is none."""
        text = f"{name}({text or ', '.join(map(str, args))})"
        call = Call(self, text, self.link.begin(name, *args, memory=memory), shown)
        return call if self._deferred else call.end()

    def _other(self, name: str, how: int) -> Side:
        side = Side(name, self.link.spawn(how), self.log)
        self.others.append(side)
        return side

    def fork(self, name: str) -> Side:
        """A child process with the same descriptors."""
        return self._other(name, FORK)

    def thread(self, name: str) -> Side:
        """Another thread of this process."""
        return self._other(name, THREAD)

    def exec(self) -> None:
        """The same program anew, in the same process."""
        self.link = self.link.spawn(EXEC)
        self.say("exec")

    def tree(self) -> list[Side]:
        """This side and all that came of it."""
        return [self, *(below for other in self.others for below in other.tree())]

    def handle(self, number: int, kind: str = "count", flags: int = 0) -> None:
        """Disposition of a signal: default, ignore, count."""
        self.link.handle(number, flags, ("default", "ignore", "count").index(kind))

    def signals(self, number: int, *, details: bool = False) -> int:
        """How often a counted signal has come; with details also what siginfo said."""
        count, code, fd, band = self.link.seen(number)
        more = f", code {code}, fd {fd}, band {band:#x}" if details else ""
        self.say(f"{signal.Signals(number).name} came {count} times{more}")
        return count

    # ---------------------------------------------------------------- sockets

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

    def _then_settle(self, call: Call) -> Call:
        if not self._deferred:
            settle()
        return call

    # ------------------------------------------------------------------- data

    def _sends(self, call: Call) -> Call:
        if not self._deferred:
            self.sent += max(call.value, 0)
            settle()
        return call

    def write(self, fd: int, data: bytes) -> Call:
        """write."""
        memory = self.link.memory()
        text = f"{fd}, {brief(data)}"
        return self._sends(self.sys("write", fd, memory.put(data), len(data), memory=memory, text=text))

    def read(self, fd: int, size: int) -> Call:
        """read."""
        memory = self.link.memory()
        return self.sys("read", fd, memory.room(max(size, 1)), size, memory=memory, text=f"{fd}, {size}", shown=_first)

    def send(self, fd: int, data: bytes, flags: int = 0) -> Call:
        """sendto without an address."""
        memory = self.link.memory()
        return self._sends(self.sys("sendto", fd, memory.put(data), len(data), flags, memory=memory,
                                    text=f"{fd}, {brief(data)}, {flags:#x}"))

    def recv(self, fd: int, size: int, flags: int = 0) -> Call:
        """recvfrom without an address."""
        memory = self.link.memory()
        shown = None if flags & 0x20 else _first  # MSG_TRUNC leaves the buffer alone
        return self.sys("recvfrom", fd, memory.room(max(size, 1)), size, flags, memory=memory,
                        text=f"{fd}, {size}, {flags:#x}", shown=shown)

    def recv_all(self, fd: int, size: int) -> bytes:
        """Read until there are `size` bytes, or the end; only the sum shows."""
        data = b""
        while len(data) < size:
            memory = self.link.memory()
            most = min(size - len(data), 1 << 20)
            value, pieces = self.link.begin("read", fd, memory.unfilled(most), most, memory=memory).end()
            if value <= 0:
                self.say(f"read = {named(value)} after {len(data)}")
                break
            data += pieces[0][:value]
        self.say(f"read in all {brief(data)}")
        return data

    def recv_all_quietly(self, fd: int, size: int) -> None:
        """The same for a size that differs from run to run."""
        lines = len(self.log)
        data = self.recv_all(fd, size)
        del self.log[lines:]
        self.say("read in all what there was" if len(data) == size else f"read {len(data)} of {size}")

    def writev(self, fd: int, parts: Sequence[bytes], *, offset: int | None = None, flags: int = 0) -> Call:
        """writev, or pwritev2 with an offset."""
        memory = self.link.memory()
        vector = memory.put(b"".join(_IOVEC.pack(memory.put(part), len(part)) for part in parts))
        text = f"{fd}, {[brief(part) for part in parts]}"
        if offset is None:
            return self._sends(self.sys("writev", fd, vector, len(parts), memory=memory, text=text))
        return self._sends(self.sys("pwritev2", fd, vector, len(parts), offset, 0, flags, memory=memory,
                                    text=f"{text}, {offset}, {flags}"))

    def readv(self, fd: int, sizes: Sequence[int], *, offset: int | None = None, flags: int = 0) -> Call:
        """readv, or preadv2 with an offset."""
        memory = self.link.memory()
        rooms = [memory.room(size) if size else memory.put(b"") for size in sizes]
        vector = memory.put(b"".join(_IOVEC.pack(*pair) for pair in zip(rooms, sizes, strict=True)))
        shown = _vectors([size for size in sizes if size])
        if offset is None:
            return self.sys("readv", fd, vector, len(sizes), memory=memory, text=f"{fd}, {list(sizes)}", shown=shown)
        return self.sys("preadv2", fd, vector, len(sizes), offset, 0, flags, memory=memory,
                        text=f"{fd}, {list(sizes)}, {offset}, {flags}", shown=shown)

    def sendmsg(self, fd: int, parts: Sequence[bytes], flags: int = 0, control: bytes = b"") -> Call:
        """sendmsg without an address."""
        memory = self.link.memory()
        header = memory.put(self._message(memory, parts, control))
        return self._sends(self.sys("sendmsg", fd, header, flags, memory=memory,
                                    text=f"{fd}, {[brief(part) for part in parts]}, {flags:#x}, {control!r}"))

    @staticmethod
    def _message(memory: Memory, parts: Sequence[bytes], control: bytes = b"") -> bytes:
        vector = memory.put(b"".join(_IOVEC.pack(memory.put(part), len(part)) for part in parts))
        return _MSGHDR.pack(0, 0, 0, vector, len(parts), memory.put(control) if control else 0, len(control), 0)

    def recvmsg(self, fd: int, sizes: Sequence[int], flags: int = 0, control: int = 0, name: int = 0) -> Call:
        """recvmsg; data, msg_flags, and what was written of name and control show."""
        memory = self.link.memory()
        rooms = [memory.room(size) for size in sizes]
        vector = memory.put(b"".join(_IOVEC.pack(*pair) for pair in zip(rooms, sizes, strict=True)))
        where_name = memory.room(name) if name else 0
        where_control = memory.room(control) if control else 0
        header = memory.both(_MSGHDR.pack(where_name, name, 0, vector, len(sizes), where_control, control, 0xAAAA))

        def shown(value: int, data: list[bytes]) -> str:
            _, namelen, _, _, _, _, controllen, out = _MSGHDR.unpack(data[-1])
            body = b"" if flags & 0x20 else b"".join(data[:len(sizes)])[:max(value, 0)]
            return f"{brief(body)} namelen {namelen} controllen {controllen} flags {out:#x}"

        text = f"{fd}, {list(sizes)}, {flags:#x}"
        return self.sys("recvmsg", fd, header, flags, memory=memory, text=text, shown=shown)

    def sendmmsg(self, fd: int, messages: Sequence[Sequence[bytes]], flags: int = 0) -> Call:
        """sendmmsg; the lengths show."""
        memory = self.link.memory()
        body = b"".join(self._message(memory, parts) + struct.pack("=II", 0xBBBB, 0) for parts in messages)
        vector = memory.both(body)
        call = self.sys("sendmmsg", fd, vector, len(messages), flags, memory=memory,
                        text=f"{fd}, {[[brief(part) for part in parts] for parts in messages]}, {flags:#x}",
                        shown=lambda value, data: str(_lengths(data[-1])[:max(value, 0)]))
        self.sent += 0 if self._deferred else sum(_lengths(call.pieces[-1])[:max(call.value, 0)])
        return call

    def recvmmsg(self, fd: int, sizes: Sequence[int], flags: int = 0, timeout: float | None = None) -> Call:
        """recvmmsg of messages with one buffer each."""
        memory = self.link.memory()
        rooms = [memory.room(size) for size in sizes]
        vectors = [memory.put(_IOVEC.pack(*pair)) for pair in zip(rooms, sizes, strict=True)]
        headers = memory.both(b"".join(_MSGHDR.pack(0, 0, 0, vector, 1, 0, 0, 0xAAAA) + struct.pack("=II", 0, 0)
                                       for vector in vectors))
        until = 0 if timeout is None else memory.put(_TIMESPEC.pack(int(timeout), int(timeout % 1 * 1e9)))

        def shown(value: int, data: list[bytes]) -> str:
            lengths = _lengths(data[-1])[:max(value, 0)]
            flagged = [_MSGHDR.unpack_from(data[-1], 64 * i)[7] for i in range(len(lengths))]
            return f"{[brief(piece[:size]) for piece, size in zip(data, lengths, strict=False)]} flags {flagged}"

        return self.sys("recvmmsg", fd, headers, len(sizes), flags, until, memory=memory,
                        text=f"{fd}, {list(sizes)}, {flags:#x}, {timeout}", shown=shown)

    # -------------------------------------------------------------- readiness

    def poll(self, entries: Sequence[tuple[int, int]], timeout: int = 0) -> Call:
        """Entries are (descriptor, events); revents show."""
        memory = self.link.memory()
        where = memory.both(b"".join(_POLLFD.pack(fd, events, 0x7777) for fd, events in entries))
        return self.sys("poll", where, len(entries), timeout, memory=memory, text=f"{list(entries)}, {timeout}",
                        shown=lambda _, data: _revents(data[0]))

    def ppoll(self, entries: Sequence[tuple[int, int]], seconds: float | None = 0, mask: int | None = None) -> Call:
        """The time left does not show."""
        memory = self.link.memory()
        where = memory.both(b"".join(_POLLFD.pack(fd, events, 0x7777) for fd, events in entries))
        until = 0 if seconds is None else memory.put(_TIMESPEC.pack(int(seconds), int(seconds % 1 * 1e9)))
        masked = 0 if mask is None else memory.put(struct.pack("=Q", mask))
        return self.sys("ppoll", where, len(entries), until, masked, 8, memory=memory,
                        text=f"{list(entries)}, {seconds}, {mask}", shown=lambda _, data: _revents(data[0]))

    def select(self, read: Sequence[int] = (), write: Sequence[int] = (), other: Sequence[int] = (),
               seconds: float | None = 0) -> Call:
        """The sets afterwards show."""
        memory = self.link.memory()
        sets = [_bits(fds) for fds in (read, write, other)]
        where = [memory.both(bits) for bits in sets]
        until = 0 if seconds is None else memory.put(_TIMESPEC.pack(int(seconds), int(seconds % 1 * 1e6)))
        highest = max((*read, *write, *other), default=-1) + 1
        return self.sys("select", highest, *where, until, memory=memory,
                        text=f"{list(read)}, {list(write)}, {list(other)}, {seconds}",
                        shown=lambda value, data: str([_members(bits) for bits in data[:3]]) if value >= 0 else "")

    def pselect(self, read: Sequence[int] = (), write: Sequence[int] = (), seconds: float | None = 0,
                mask: int | None = None) -> Call:
        """pselect6."""
        memory = self.link.memory()
        where = [memory.both(_bits(fds)) for fds in (read, write)]
        until = 0 if seconds is None else memory.put(_TIMESPEC.pack(int(seconds), int(seconds % 1 * 1e9)))
        masked = 0 if mask is None else memory.put(struct.pack("=Q", mask))
        pair = memory.put(struct.pack("=QQ", masked, 8))
        return self.sys("pselect6", max((*read, *write), default=-1) + 1, *where, 0, until, pair, memory=memory,
                        text=f"{list(read)}, {list(write)}, {seconds}, {mask}",
                        shown=lambda value, data: str([_members(bits) for bits in data[:2]]) if value >= 0 else "")

    def epoll(self, flags: int = 0) -> int:
        """epoll_create1."""
        return self.sys("epoll_create1", flags).value

    def ctl(self, ep: int, op: str, fd: int, events: int = 0, data: int | None = None) -> Call:
        """epoll_ctl: add, del or mod."""
        memory = self.link.memory()
        where = memory.put(_EPOLL.pack(events, (fd if data is None else data) & MINUS_ONE))
        number = {"add": 1, "del": 2, "mod": 3}[op]
        return self.sys("epoll_ctl", ep, number, fd, where, memory=memory, text=f"{ep}, {op}, {fd}, {events:#x}")

    def wait(self, ep: int, most: int = 16, timeout: int = 0, *, as_reported: bool = False) -> Call:
        """epoll_wait; events show in the order of their data, or as they came."""
        memory = self.link.memory()
        where = memory.room(most * _EPOLL.size)

        def shown(value: int, data: list[bytes]) -> str:
            found = [_EPOLL.unpack_from(data[0], i * _EPOLL.size)[::-1] for i in range(max(value, 0))]
            return str([f"{what}:{events:#x}" for what, events in (found if as_reported else sorted(found))])

        return self.sys("epoll_wait", ep, where, most, timeout, memory=memory, text=f"{ep}, {most}, {timeout}",
                        shown=shown)

    # ------------------------------------------------------ other descriptors

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

    def sendfile(self, out: int, file: int, count: int, offset: int | None = None) -> Call:
        """With an offset it shows afterwards, and the file's own position does not move."""
        memory = self.link.memory()
        where = 0 if offset is None else memory.both(struct.pack("=q", offset))
        return self._sends(self.sys("sendfile", out, file, where, count, memory=memory,
                                    text=f"{out}, {file}, {count}, {offset}",
                                    shown=lambda _, data: str(struct.unpack("=q", data[0])[0]) if data else ""))

    def splice(self, source: int, target: int, count: int, flags: int = 0) -> Call:
        """Without offsets."""
        return self.sys("splice", source, 0, target, 0, count, flags)


def _lengths(headers: bytes) -> list[int]:
    return [struct.unpack_from("=I", headers, at + 56)[0] for at in range(0, len(headers), 64)]


def _revents(entries: bytes) -> str:
    return str([f"{fd}:{revents & 0xFFFF:#x}" for fd, _, revents in _POLLFD.iter_unpack(entries)])


def _bits(fds: Sequence[int]) -> bytes:
    return sum(1 << fd for fd in fds).to_bytes(128, "little")


def _members(bits: bytes) -> list[int]:
    whole = int.from_bytes(bits, "little")
    return [fd for fd in range(1024) if whole >> fd & 1]
