# SPDX-License-Identifier: Apache-2.0
"""Calls that carry bytes, by name: what they have written into memory stands in the transcript."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from tests.differential.caller import Call, Caller, Shown, brief, named
from tests.differential.remote import Memory

_IOVEC: Final = struct.Struct("=QQ")
_MSGHDR: Final = struct.Struct("=QIIQQQQI4x")
_TIMESPEC: Final = struct.Struct("=qq")


def _first(value: int, data: list[bytes]) -> str:
    return brief(data[0][:value]) if value > 0 else ""


def _vectors(sizes: Sequence[int]) -> Shown:
    def shown(value: int, data: list[bytes]) -> str:
        whole = b"".join(data[:len(sizes)])
        return brief(whole[:value]) if value > 0 else ""

    return shown


def _lengths(headers: bytes) -> list[int]:
    return [struct.unpack_from("=I", headers, at + 56)[0] for at in range(0, len(headers), 64)]


class Messages(Caller):
    """To send and to receive, in all the ways that there are."""

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
