# SPDX-License-Identifier: Apache-2.0
"""Makes something of a stream: `lines` prints it on standard error, `pcap FILE` makes packets of it; both of standard
input. `text FILE SPOOL LINE` follows a spool (spool.py) and writes it as text.
"""

from __future__ import annotations

import sys
import syslog
from contextlib import suppress
from pathlib import Path

from sdtrace.trace import text
from sdtrace.trace.lines import is_call, line
from sdtrace.trace.spool import Follower
from sdtrace.trace.stream import Lost, Reader, Record


def _lines(reader: Reader) -> None:
    for event in reader:
        if isinstance(event, Record) and is_call(event):
            print(line(event, reader.clock), file=sys.stderr)
        elif isinstance(event, Lost):
            print(text.LOST.format(event.count), file=sys.stderr)


def main(argv: list[str]) -> int:
    """Started by the supervisor."""
    if argv[0] == "text":
        return _follow(Path(argv[1]), int(argv[2]), int(argv[3]))
    with suppress(BrokenPipeError):  # nobody looks any more; what comes is still read, and thrown away
        return _read(argv)
    while sys.stdin.buffer.read(1 << 20):
        pass
    return 0


def _follow(path: Path, spool: int, line: int) -> int:
    """The disk may be full: what is there has no end then."""
    try:
        with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
            reader = Reader(Follower(spool, line, file.flush))
            text.write(reader, reader.clock, file)
    except OSError as error:
        syslog.openlog("sdrun", syslog.LOG_PID)
        syslog.syslog(syslog.LOG_ERR, f"the trace ends here: {path}: {error}")
        return 1
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
