# SPDX-License-Identifier: Apache-2.0
"""Give orders to agents (tests/guests/agent.c): every system call of a test happens there, none here.

A `Link` is one task of an agent: a process, or one of its threads.  `Link.begin` sends a call, `Pending.end` waits for
what came of it; in between the task may sleep in the kernel, which `Pending.asleep` reads in /proc.  Structures with
pointers are built with `Memory`, which lays them out in the agent's arena.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ARENA: Final = 0x100000000000
_SEEN: Final = struct.Struct("=IIII")
_SLICE: Final = 8 << 20
"""Arena of one task: tasks of one process share it."""

_HELLO: Final = struct.Struct("=IIII")
_HEAD: Final = struct.Struct("=II")
_CALL: Final = struct.Struct("=q6QII")
_PIECE: Final = struct.Struct("=II")
_ORDER: Final = struct.Struct("=III")
_RESULT: Final = struct.Struct("=q")
_DO_CALL, _DO_SPAWN, _DO_HANDLE, _DO_TALK = 1, 2, 3, 4
FORK, THREAD, EXEC, SHARER = 0, 1, 2, 3
_FOREIGN: Final = 1000
"""Numbers from here on are no system calls: a program under sdrun may be waiting for its supervisor."""
PATIENCE_S: Final = 30.0
_LATER: Final = 100
"""Keys from here on are asked for by agents; agent.c leaves 0, 1 and 2 alone for these."""


def _numbers() -> dict[str, int]:
    """System call numbers, from the header that the C library itself is built with."""
    text = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text()
    return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", text)}


NR: Final = _numbers()
_SHORT: Final = {NR["futex"], NR["futex_waitv"], NR["sched_yield"]}
"""Before it sleeps in the kernel a program under sdrun may sleep on the ring, for milliseconds: of several that wait in
one set the last to come there is woken first."""


class AgentGone(Exception):
    """The agent has ended, by a signal for example."""


class Memory:
    """What one call finds in the arena, and what is to be read back after it."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._used = 0
        self.inputs: list[tuple[int, bytes]] = []
        self.outputs: list[tuple[int, int]] = []

    def put(self, data: bytes) -> int:
        """Bytes for the call; their address."""
        at = self._base + self._used
        self._used += (len(data) + 63) // 64 * 64
        assert self._used <= _SLICE, "arena is full"
        self.inputs.append((at, data))
        return ARENA + at

    def room(self, size: int, filler: bytes = b"\xee") -> int:
        """Room that is read back; it is filled, so that what the call leaves alone can be told."""
        return self.both(filler * size)

    def unfilled(self, size: int) -> int:
        """Room of which only what the call has written is looked at."""
        at = self._base + self._used
        self._used += (size + 63) // 64 * 64
        assert self._used <= _SLICE, "arena is full"
        self.outputs.append((at, size))
        return ARENA + at

    def both(self, data: bytes) -> int:
        """Bytes for the call that are read back after it."""
        address = self.put(data)
        self.outputs.append((address - ARENA, len(data)))
        return address


class Pending:
    """A call that has been sent."""

    def __init__(self, link: Link, sizes: list[int]) -> None:
        self._link = link
        self._sizes = sizes
        self._done: tuple[int, list[bytes]] | None = None

    def finished(self) -> bool:
        """Has the answer arrived?"""
        return self._done is not None or self._link.readable()

    def asleep(self, timeout: float = PATIENCE_S) -> bool:
        """Wait until the task sleeps in this call; False if the call has come back instead."""
        deadline = time.monotonic() + timeout
        while not self.finished():
            if self._link.sleeps():
                return not self.finished()
            assert time.monotonic() < deadline, f"neither asleep nor back: {self._link}"
            time.sleep(0.0005)
        return False

    def end(self, timeout: float = PATIENCE_S) -> tuple[int, list[bytes]]:
        """The call's value (-errno) and the memory to be read back; AssertionError when it never comes."""
        if self._done is None:
            self._done = self._link.receive(self._sizes, timeout)
        return self._done


class Link:
    """The control connection of one task."""

    def __init__(self, server: Server, sock: socket.socket, pid: int, tid: int, control: int, serial: int) -> None:
        self.server = server
        self.pid, self.tid = pid, tid
        self._control = control
        self._base = 4096 + serial * _SLICE
        self._sock = sock
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._threads = serial
        self._held: list[bytes] | None = None

    def __str__(self) -> str:
        where = Path(f"/proc/{self.pid}/task/{self.tid}")
        facts = []
        for name in ("syscall", "stack", "wchan"):
            try:
                facts.append(f"{name}: {(where / name).read_text().strip()}")
            except OSError as error:
                facts.append(f"{name}: {error}")
        return f"task {self.tid} of {self.pid}\n" + "\n".join(facts)

    def memory(self) -> Memory:
        """An empty arena for the next call."""
        return Memory(self._base)

    def begin(self, name: str, *args: int, memory: Memory | None = None) -> Pending:
        """Send a call by its name."""
        memory = memory or self.memory()
        words = [arg & (1 << 64) - 1 for arg in args] + [0] * (6 - len(args))
        body = [_CALL.pack(NR[name], *words, len(memory.inputs), len(memory.outputs))]
        body += [_PIECE.pack(at, len(data)) + data for at, data in memory.inputs]
        body += [_PIECE.pack(at, size) for at, size in memory.outputs]
        self._send(_DO_CALL, b"".join(body))
        return Pending(self, [size for _, size in memory.outputs])

    def _send(self, order: int, body: bytes) -> None:
        message = _HEAD.pack(order, len(body)) + body
        if self._held is not None:
            self._held.append(message)
            return
        self._write(message)

    def _write(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            raise AgentGone from None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Orders that are given meanwhile are sent at once at the end: microseconds lie between the calls."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
        self._sock.settimeout(PATIENCE_S)
        self._write(b"".join(held))

    def _order(self, order: int, *words: int) -> Pending:
        padded = [*words, 0, 0, 0][:3]
        self._send(order, _ORDER.pack(*(word & 0xFFFFFFFF for word in padded)))
        return Pending(self, [])

    def receive(self, sizes: list[int], timeout: float) -> tuple[int, list[bytes]]:
        """One answer."""
        self._sock.settimeout(timeout)
        value = _RESULT.unpack(self._exactly(_RESULT.size))[0]
        return value, [self._exactly(size) for size in sizes]

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._sock.recv(size - len(data))
            except TimeoutError:
                raise AssertionError(f"no answer: {self}") from None
            except OSError:
                raise AgentGone from None
            if not part:
                raise AgentGone
            data += part
        return data

    def readable(self) -> bool:
        """Something has been said, or the agent has ended."""
        self._sock.settimeout(0)
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def sleeps(self) -> bool:
        """The task sleeps in some call that is not the one that waits for our orders, and one of the kernel's."""
        try:
            words = Path(f"/proc/{self.pid}/task/{self.tid}/syscall").read_text().split()
        except OSError:
            return False
        if len(words) > 2 and (int(words[0]) >= _FOREIGN or int(words[0]) in _SHORT or self._state() != "S"):
            return False
        return len(words) > 2 and not (int(words[0]) == NR["read"] and int(words[1], 16) == self._control)

    def _state(self) -> str:
        """One that others have taken the CPU from in a call that does not sleep is still running."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.tid}/stat").read_text()
        except OSError:
            return ""
        return text.rpartition(") ")[2][:1]

    def talk(self, fd: int, first: bool, rounds: int) -> Pending:
        """Exchange bytes with whoever does the same at the other end."""
        return self._order(_DO_TALK, fd, int(first), rounds)

    def handle(self, signal: int, flags: int, kind: int) -> int:
        """Set what a signal does: 0 default, 1 ignored, 2 counted."""
        return self._order(_DO_HANDLE, signal, flags, kind).end()[0]

    def seen(self, signal: int) -> tuple[int, int, int, int]:
        """Count, si_code, si_fd, si_band of a counted signal, read while the task does a call that does nothing."""
        memory = self.memory()
        memory.outputs.append((signal * _SEEN.size, _SEEN.size))
        _, data = self.begin("getppid", memory=memory).end()
        count, code, fd, band = _SEEN.unpack(data[0])
        return count, code, fd, band

    def spawn(self, how: int) -> Link:
        """A child, a thread, or this process with a new image (then this link is of no more use)."""
        key = self.server.next_key()
        pending = self._order(_DO_SPAWN, how, key)
        if how == EXEC:
            return self.server.accept(key)
        value, _ = pending.end()
        assert value >= 0, f"spawn: {value}"
        self._threads += how == THREAD
        return self.server.accept(key, self._threads if how == THREAD else 0)

    def close(self) -> None:
        """Let the task go: it ends when it has nobody to take orders from."""
        self._sock.close()


class Server:
    """Where agents report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._listener.settimeout(PATIENCE_S)
        self._waiting: dict[int, tuple[socket.socket, int, int, int]] = {}
        self._keys = _LATER

    def next_key(self) -> int:
        """A key that nobody has."""
        self._keys += 1
        return self._keys

    def accept(self, key: int, serial: int = 0) -> Link:
        """Wait for the task that was told this key."""
        while key not in self._waiting:
            sock, _ = self._listener.accept()
            sock.settimeout(PATIENCE_S)
            found, pid, tid, control = _HELLO.unpack(sock.recv(_HELLO.size, socket.MSG_WAITALL))
            self._waiting[found] = (sock, pid, tid, control)
        sock, pid, tid, control = self._waiting.pop(key)
        return Link(self, sock, pid, tid, control, serial)

    def close(self) -> None:
        """Hear nobody any more."""
        self._listener.close()
