# SPDX-License-Identifier: Apache-2.0
"""An agent and its transcript: a system call is a `Call`, and a line once it has ended; other processes and threads."""

from __future__ import annotations

import copy
import errno
import signal
import time
import zlib
from collections.abc import Callable
from typing import Final, Self

from tests.differential.remote import EXEC, FORK, SHARER, THREAD, AgentGone, Link, Memory, Pending

Shown = Callable[[int, list[bytes]], str]
MINUS_ONE: Final = (1 << 64) - 1


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


class Call:
    """A call that was made, or has been begun."""

    def __init__(self, side: Caller, text: str, pending: Pending, shown: Shown | None) -> None:
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


class Caller:
    """An agent and its transcript."""

    def __init__(self, name: str, link: Link, log: list[str]) -> None:
        self.name, self.link, self.log = name, link, log
        self.sent = 0
        """Bytes that data calls have taken, to compare with the report."""
        self._deferred = False
        self.others: list[Self] = []

    # -------------------------------------------------------------- machinery

    def say(self, text: str) -> None:
        """One line of transcript."""
        self.log.append(f"{self.name}: {text}")

    @property
    def start(self) -> Self:
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

    def _other(self, name: str, how: int) -> Self:
        side = type(self)(name, self.link.spawn(how), self.log)
        self.others.append(side)
        return side

    def fork(self, name: str) -> Self:
        """A child process with the same descriptors."""
        return self._other(name, FORK)

    def sharer(self, name: str) -> Self:
        """A child process with the same table of descriptors: clone with CLONE_FILES."""
        return self._other(name, SHARER)

    def thread(self, name: str) -> Self:
        """Another thread of this process."""
        return self._other(name, THREAD)

    def exec(self) -> None:
        """The same program anew, in the same process."""
        self.link = self.link.spawn(EXEC)
        self.say("exec")

    def tree(self) -> list[Self]:
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

    def _then_settle(self, call: Call) -> Call:
        if not self._deferred:
            settle()
        return call

    def _sends(self, call: Call) -> Call:
        if not self._deferred:
            self.sent += max(call.value, 0)
            settle()
        return call
