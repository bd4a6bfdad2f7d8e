# SPDX-License-Identifier: Apache-2.0
"""`sdrun --detach PID`: find the supervisor, ask it, and say how it went. The launcher becomes this.

Arguments: the process, and `alone` if those that it has started stay.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import Any, Final

from sdlib.wire import trees
from sdtrace import procfs
from sdtrace.requests import DETACH, DETACH_ALONE

_UNABLE: Final = 125
_TIMEOUT_S: Final = 30.0


def supervisor_of(pid: int) -> str | None:
    """Path of the socket of the supervisor that has the process, or one that started it."""
    documents = _documents()
    while pid > 1:
        for path, document in documents.items():
            pids = {int(line["pid"]) for line in document["processes"]} | {document["supervisor"]["root_pid"]}
            if document["here"] and pid in pids:
                return f"{os.path.dirname(path)}/{trees.request_name(document['supervisor']['pid'])}"
        try:
            pid = procfs.status(pid).ppid
        except OSError:
            return None
    return None


def _documents() -> dict[str, dict[str, Any]]:
    """Of those that answer, by the path of their sockets."""
    found = {}
    for path in trees.find(os.environ, os.geteuid()):
        with suppress(trees.Unreachable):
            found[path] = trees.ask(path)
    return found


def main(pid: int, *, alone: bool) -> int:
    """Exit status."""
    path = supervisor_of(pid)
    if path is None:
        gone = not procfs.running(pid)
        return _say(pid, "there is no such process" if gone else "it is not under sdrun, or under one of another user")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(_TIMEOUT_S)
            sock.connect(path)
            sock.send((DETACH_ALONE if alone else DETACH) + b" %d" % pid)
            answer = sock.recv(4096).decode(errors="replace")
    except OSError as error:
        return _say(pid, f"its supervisor does not answer: {error}")
    if not answer:
        return _say(pid, "its supervisor has ended meanwhile")
    return _say(pid, answer) if answer.strip() else 0


def _say(pid: int, why: str) -> int:
    print(f"sdrun: cannot detach from {pid}: {why}", file=sys.stderr)
    return _UNABLE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), alone="alone" in sys.argv[2:]))
