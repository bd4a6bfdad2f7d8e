# SPDX-License-Identifier: Apache-2.0
"""`sdtrace FILE`: what `sdrun --trace=FILE` has recorded, as lines or sums."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sdtrace.trace import lines, text
from sdtrace.trace.stream import Clock, End, Event, Lost, NotATrace, Program, Reader, Record
from sdtrace.trace.text import TextReader

_SORTS = ("time", "calls", "errors", "name")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="sdtrace", description="Show or sum up the calls that `sdrun --trace=FILE` has recorded.",
        epilog="A line is strace's, with what carried the call behind it: ring, kernel, moved-back (kernel, since the "
               "connection left the ring), or library (no connection's bytes in it); then spun, bell, parked, kernel "
               "for what it took. The status is 3 where records are missing.")  # fmt: skip
    made.add_argument("file", help="the trace; - is standard input")
    made.add_argument("-c", "--summary", action="store_true", help="sums by call instead of lines, as strace -c")
    made.add_argument("-S", "--sort", choices=_SORTS, default="time", help="order of the sums")
    made.add_argument("-e", "--calls", metavar="NAME,...", help="these calls only; with ! in front: all but these")
    made.add_argument("-p", "--pid", type=int, action="append", help="this process or thread only; repeatable")
    made.add_argument("--fd", type=int, action="append", help="calls on this descriptor only; may be repeated")
    made.add_argument("--path", choices=sorted(lines.PATHS.values()), action="append", help="carried by this only")
    made.add_argument("-z", "--successful", action="store_true", help="successful calls only")
    made.add_argument("-Z", "--failed", action="store_true", help="failed calls only")
    made.add_argument("-E", "--error", metavar="NAME", action="append", help="failed with this only, such as EAGAIN")
    made.add_argument("-n", "--lines", type=int, metavar="N", help="end after N lines")
    made.add_argument("--json", action="store_true", help="a JSON document for each call, or of the sums")
    return made


@dataclass
class Sum:
    """Of one call's name."""

    calls: int = 0
    errors: int = 0
    ticks: int = 0
    longest: int = 0
    paths: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """One more."""
        self.calls += 1
        self.errors += bool(lines.error_of(record))
        self.ticks += record.ticks
        self.longest = max(self.longest, record.ticks)
        self.paths[lines.path_of(record)] += 1


@dataclass
class Trace:
    """What was found besides calls."""

    lost: int = 0
    ended: bool = False
    programs: dict[int, str] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Anything but a call."""
        if isinstance(event, Lost):
            self.lost += event.count
        elif isinstance(event, End):
            self.ended = True
        elif isinstance(event, Program):
            self.programs[event.pid] = event.exe


def _wanted(record: Record, options: argparse.Namespace) -> bool:
    error = lines.error_of(record)
    names = (options.calls or "").lstrip("!").split(",")
    return not (
        (options.calls and (lines.name_of(record) in names) == options.calls.startswith("!"))
        or (options.pid and not {record.pid, record.tid} & set(options.pid))
        or (options.fd and lines.fd_of(record) not in options.fd)
        or (options.path and lines.path_of(record) not in options.path)
        or (options.successful and (error or not lines.has_result(record)))
        or (options.failed and not error)
        or (options.error and error not in options.error)
    )


def open_trace(file: BinaryIO) -> Reader | TextReader:
    """Records or lines. NotATrace."""
    head = file.read(len(text.BEGIN))
    if head == text.BEGIN.encode():
        return TextReader(head + file.readline(), file)
    return Reader(_Behind(head, file))


@dataclass
class _Behind:
    """A file of which the beginning was read."""

    head: bytes
    file: BinaryIO

    def read(self, size: int, /) -> bytes:
        """As a file's."""
        head, self.head = self.head[:size], self.head[size:]
        return head + self.file.read(size - len(head)) if len(head) < size else head


def calls(reader: Reader | TextReader, trace: Trace, options: argparse.Namespace) -> Iterator[Record]:
    """Those that were asked for."""
    for event in reader:
        if not isinstance(event, Record):
            trace.note(event)
        elif lines.is_call(event) and _wanted(event, options):
            yield event


def _as_json(record: Record, clock: Clock) -> dict[str, Any]:
    return {
        "time": clock.ns(record.tsc) / 1e9, "pid": record.pid, "tid": record.tid, "call": lines.name_of(record),
        "args": list(record.args), "result": record.result if lines.has_result(record) else None,
        "error": lines.error_of(record) or None, "seconds": clock.seconds(record.ticks), "path": lines.path_of(record),
        "bits": record.bits,
    }  # fmt: skip


def _sums(records: Iterator[Record]) -> dict[str, Sum]:
    sums: defaultdict[str, Sum] = defaultdict(Sum)
    for record in records:
        sums[lines.name_of(record)].add(record)
    return dict(sums)


def _sorted(sums: dict[str, Sum], order: str) -> list[tuple[str, Sum]]:
    keys = {"time": lambda item: -item[1].ticks, "calls": lambda item: -item[1].calls,
            "errors": lambda item: -item[1].errors, "name": lambda item: item[0]}  # fmt: skip
    return sorted(sums.items(), key=keys[order])


def _table(sums: dict[str, Sum], clock: Clock, order: str) -> Iterator[str]:
    total = sum(one.ticks for one in sums.values()) or 1
    yield "% time     seconds  ns/call     max ns     calls    errors      ring    kernel      back library  syscall"
    yield " ".join("-" * width for width in (6, 11, 8, 10, 9, 9, 9, 9, 9, 7, 16))
    for name, one in [*_sorted(sums, order), ("total", _all(sums))]:
        seconds = clock.seconds(one.ticks)
        each, longest = seconds / max(one.calls, 1) * 1e9, clock.seconds(one.longest) * 1e9
        paths = one.paths
        yield (f"{100 * one.ticks / total:6.2f} {seconds:11.6f} {each:8.0f} {longest:10.0f} {one.calls:9} "
               f"{one.errors or '':>9} "
               f"{paths['ring'] or '':>9} {paths['kernel'] or '':>9} {paths['moved-back'] or '':>9} "
               f"{paths['library'] or '':>7}  {name}")  # fmt: skip


def _all(sums: dict[str, Sum]) -> Sum:
    whole = Sum()
    for one in sums.values():
        whole.calls += one.calls
        whole.errors += one.errors
        whole.ticks += one.ticks
        whole.longest = max(whole.longest, one.longest)
        whole.paths += one.paths
    return whole


def _sums_as_json(sums: dict[str, Sum], clock: Clock, trace: Trace) -> dict[str, Any]:
    return {
        "lost": trace.lost, "ended": trace.ended,
        "programs": {str(pid): exe for pid, exe in trace.programs.items()},
        "calls": {
            name: {"calls": one.calls, "errors": one.errors, "seconds": clock.seconds(one.ticks),
                   "longest_s": clock.seconds(one.longest), "paths": dict(one.paths)}
            for name, one in sums.items()
        },
    }  # fmt: skip


def _show(file: BinaryIO, options: argparse.Namespace) -> Trace:
    reader, trace = open_trace(file), Trace()
    found = calls(reader, trace, options)
    if options.summary:
        sums = _sums(found)
        if options.json:
            print(json.dumps(_sums_as_json(sums, reader.clock, trace)))
        else:
            print("\n".join(_table(sums, reader.clock, options.sort)))
        return trace
    for number, record in enumerate(found, 1):
        print(json.dumps(_as_json(record, reader.clock)) if options.json else lines.line(record, reader.clock))
        if number == options.lines:
            trace.ended = True
            break
    return trace


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0; 1 if it is no trace; 3 if records are missing in it."""
    options = parser().parse_args(argv)
    try:
        if options.file == "-":
            trace = _show(sys.stdin.buffer, options)
        else:
            with Path(options.file).open("rb") as file:
                trace = _show(file, options)
    except (OSError, NotATrace) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            return 0
        print(f"sdtrace: {options.file}: {error}", file=sys.stderr)
        return 1
    if trace.lost:
        print(f"sdtrace: {trace.lost} records are missing: the trace could not keep up", file=sys.stderr)
    if not trace.ended:
        print("sdtrace: the trace has no end: its programs are still running, or the supervisor was killed",
              file=sys.stderr)
    return 3 if trace.lost else 0


if __name__ == "__main__":
    sys.exit(main())
