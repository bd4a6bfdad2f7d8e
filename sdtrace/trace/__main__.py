# SPDX-License-Identifier: Apache-2.0
"""Reads a stream from standard input: `lines` prints it on standard error, `pcap FILE` makes packets of it."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from sdtrace.trace.lines import is_call, line
from sdtrace.trace.stream import Lost, Reader, Record


def _lines(reader: Reader) -> None:
    for event in reader:
        if isinstance(event, Record) and is_call(event):
            print(line(event, reader.clock), file=sys.stderr)
        elif isinstance(event, Lost):
            print(f"sdrun: {event.count} calls are missing here: the trace could not keep up", file=sys.stderr)


def main(argv: list[str]) -> int:
    """Started by the supervisor."""
    with suppress(BrokenPipeError):  # nobody looks any more; what comes is still read, and thrown away
        return _read(argv)
    while sys.stdin.buffer.read(1 << 20):
        pass
    return 0


def _read(argv: list[str]) -> int:
    reader = Reader(sys.stdin.buffer)
    if argv[0] == "pcap":
        from sdtrace.trace.pcap import Capture

        with Path(argv[1]).open("wb") as file:
            capture = Capture(file, reader.clock)
            for event in reader:
                capture.take(event)
            capture.finish()
    else:
        _lines(reader)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
