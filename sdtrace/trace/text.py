# SPDX-License-Identifier: Apache-2.0
"""A trace as text (`--trace=FILE`): lines.py's, and between them what is not a call. Written and read again.

    sdrun: trace begun 2026-11-30T05:18:16.123456+01:00
    sdrun: [pid 4711] runs /usr/bin/curl
    [pid 4711] 12:34:56.789012 sendto(5, 0x7ffc01d0, 8, 0) = 8 <0.000000214> ring
    sdrun: 12 calls are missing here: the trace could not keep up
    sdrun: the trace is complete

Times are local, as the first line says. What a line does not have (arguments that are not shown) is 0 in its record.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, Final, TextIO

from sdlib import abi
from sdtrace.trace import lines
from sdtrace.trace.stream import Clock, End, Event, Lost, NotATrace, Program, Record

BEGIN: Final = "sdrun: trace begun "
LOST: Final = "sdrun: {} calls are missing here: the trace could not keep up"
_END: Final = "sdrun: the trace is complete"
_LOST: Final = re.compile(r"sdrun: (\d+) calls are missing here")
_PROGRAM: Final = re.compile(r"sdrun: \[pid (\d+)\] runs (.*)")
_CALL: Final = re.compile(
    r"\[pid (\d+)(?:/(\d+))?\] (\d\d):(\d\d):(\d\d\.\d{6}) (\w+)\((.*?)\) = "
    r"(?:(\?)|-1 (\w+) \(.*?\)|(0x[0-9a-f]+|-?\d+))(?: <([\d.]+)>)? (.*)")  # fmt: skip
_NUMBERS: Final = {name: number for number, (name, _) in lines.CALLS.items()}
_ERRORS: Final = {name: number for number, name in (*errno.errorcode.items(), *lines.RESTARTS.items())}
_DAY: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def write(events: Iterable[Event], clock: Clock, out: TextIO) -> None:
    """All of them, as they come."""
    out.write(f"{BEGIN}{datetime.now().astimezone().isoformat()}\n")
    for event in events:
        if isinstance(event, Record):
            if lines.is_call(event):
                out.write(lines.line(event, clock) + "\n")
        elif isinstance(event, Lost):
            out.write(LOST.format(event.count) + "\n")
        elif isinstance(event, Program):
            name = "".join(char if char.isprintable() else "?" for char in event.exe)
            out.write(f"sdrun: [pid {event.pid}] runs {name}\n")
        else:
            out.write(_END + "\n")


class TextReader:
    """The events of such a file; its clock counts nanoseconds since 1970."""

    def __init__(self, first: bytes, file: BinaryIO) -> None:
        """`first`: the first line, which has been read to see what the file is. NotATrace."""
        try:
            self._begun = datetime.fromisoformat(first.decode().removeprefix(BEGIN).strip())
        except ValueError:
            raise NotATrace("does not say when it was begun") from None
        self._file = file
        self._last = self._begun
        self.clock = Clock()
        self.clock.add(begun := _ns(self._begun), begun)

    def __iter__(self) -> Iterator[Event]:
        """Other lines are passed over: a program that writes there, too, or the end of a file that grows."""
        for number, raw in enumerate(self._file, 2):
            text = raw.decode(errors="replace").rstrip("\n")
            if found := _CALL.fullmatch(text):
                try:
                    yield self._record(found)
                except ValueError:
                    raise NotATrace(f"line {number}: {text[:60]}") from None
            elif found := _LOST.match(text):
                yield Lost(int(found[1]))
            elif found := _PROGRAM.fullmatch(text):
                yield Program(int(found[1]), found[2])
            elif text == _END:
                yield End()

    def _when(self, hour: str, minute: str, second: str) -> int:
        """Nanoseconds since 1970: the day is the one that comes next to the line before."""
        whole, _, micro = second.partition(".")
        when = self._last.replace(hour=int(hour), minute=int(minute), second=int(whole), microsecond=int(micro))
        if when < self._last - _DAY / 2:
            when += _DAY
        elif when > self._last + _DAY / 2:
            when -= _DAY
        self._last = when
        return _ns(when)

    def _record(self, found: re.Match[str]) -> Record:
        pid, tid, hour, minute, second, name, args, unknown, error, result, took, where = found.groups()
        number = int(name.removeprefix("syscall_")) if name.startswith("syscall_") else _NUMBERS[name] \
            if name in _NUMBERS else _no_such(name)  # fmt: skip
        path, *more = where.split(" ")
        bits = sum(bit for bit, text in lines.EXTRAS if text in more)
        bits |= abi.const.SD_TRACE_NO_RESULT if unknown else 0
        bits |= abi.const.SD_TRACE_KERNEL if path in lines.DIRECT else 0
        values = [0 if text == "NULL" else int(text, 0) % (1 << 64) for text in args.split(", ") if text]
        values = (values + [0] * 4)[:4]
        given = -_ERRORS.get(error, 4095) if error else int(result, 0) if result else 0
        return Record(self._when(hour, minute, second), round(float(took) * 1e9) if took else 0, given,
                      (values[0], values[1], values[2], values[3]), number, lines.PATH_NUMBERS.get(path, 0), bits, 0,
                      int(pid), int(tid or pid))  # fmt: skip


def _ns(when: datetime) -> int:
    """Nanoseconds since 1970."""
    return (when - _EPOCH) // timedelta(microseconds=1) * 1000


def _no_such(name: str) -> int:
    raise ValueError(name)
