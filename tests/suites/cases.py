# SPDX-License-Identifier: Apache-2.0
"""Run test modules of the interpreter's own suite and write one JSON line per test case.

    python3 cases.py RESULTS NAME...       NAME: test.test_socket, or test.test_socket.GeneralModuleTests

It runs in the interpreter under test, natively or under sdrun, so it uses nothing but the standard library.  A line
is `[id, outcome, seconds]`.  Beginnings are written too (outcome "begun"): a case that has no other line hung, or took
the process with it.  Cases that have lines in RESULTS already are left out, so that a run can be taken up again behind
such a case.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import socket
import sys
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

# These wait for an answer of the hypervisor, natively too.
LEFT_OUT = ("test.test_socket.ThreadedVSOCKSocketStreamTest.",)

# Every case that ends at all does so in far less; longer is a hang, whose stacks go to standard error.
HANG_S = float(os.environ.get("SUITE_HANG_S", "30"))


class Recorder(unittest.TestResult):
    """Writes outcomes as they come, so that a run that was killed still tells how far it got."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self.out = out
        self.current: unittest.TestCase | None = None
        self.began, self.outcome = 0.0, ""

    def write(self, name: str, outcome: str, seconds: float = 0.0) -> None:
        self.out.write(json.dumps([name, outcome, round(seconds, 3)]) + "\n")
        self.out.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.current, self.began, self.outcome = test, time.monotonic(), "passed"
        self.write(test.id(), "begun")
        faulthandler.dump_traceback_later(HANG_S, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.write(test.id(), self.outcome, time.monotonic() - self.began)
        self.current = None
        super().stopTest(test)

    def note(self, test: Any, outcome: str, err: Any = None) -> None:
        """What became of `test`, or of a class or module that could not be set up."""
        if err is not None:
            text = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]
            print(f"=== {outcome}: {test}\n{text}", file=sys.stderr, flush=True)
        if test is self.current:
            self.outcome = outcome
        else:
            self.write(str(test), outcome)

    def addError(self, test: Any, err: Any) -> None:
        self.note(test, "error", err)

    def addFailure(self, test: Any, err: Any) -> None:
        self.note(test, "failed", err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.note(test, "failed", err)

    def addSkip(self, test: Any, reason: str) -> None:
        if not hasattr(test, "test_case"):  # a skipped subtest leaves its test's outcome alone
            self.note(test, "skipped")

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self.note(test, "expected failure")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.note(test, "unexpected success")


def cases(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from cases(item)
        else:
            yield item


def settle() -> None:
    """Give every connection a moment and a harmless call at each end before its test goes on.

    Most cases send one message and close, which is over before two ends have found each other; the same cases then
    run on TCP and show nothing.  A peek that does not wait changes nothing that a test could see.
    """
    libc, byte = ctypes.CDLL(None), ctypes.create_string_buffer(1)
    connect, accept = socket.socket.connect, socket.socket.accept

    def touch(sock: socket.socket) -> None:
        if sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6):
            libc.recv(sock.fileno(), byte, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)

    def slow_connect(self: socket.socket, address: Any) -> None:
        connect(self, address)
        time.sleep(0.003)
        touch(self)

    def slow_accept(self: socket.socket) -> Any:
        accepted = accept(self)
        touch(accepted[0])
        time.sleep(0.005)
        touch(accepted[0])
        return accepted

    socket.socket.connect, socket.socket.accept = slow_connect, slow_accept  # type: ignore[method-assign,assignment]


def main() -> int:
    if os.environ.get("SUITE_SETTLE"):
        settle()
    from test import support  # type: ignore[import-not-found,unused-ignore] # Debian ships it apart
    # Nothing that needs another machine, a screen, gigabytes or minutes.
    support.use_resources = ["subprocess", *os.environ.get("SUITE_RESOURCES", "").split()]
    results, *names = sys.argv[1:]
    path = Path(results)
    known = {json.loads(line)[0] for line in path.read_text().splitlines()} if path.exists() else set()
    with path.open("a") as out:
        recorder = Recorder(out)
        for name in names:
            try:
                loaded = unittest.defaultTestLoader.loadTestsFromName(name)
            except unittest.SkipTest:
                recorder.write(name, "skipped")
                continue
            wanted = [case for case in cases(loaded) if case.id() not in known and not case.id().startswith(LEFT_OUT)]
            unittest.TestSuite(wanted).run(recorder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
