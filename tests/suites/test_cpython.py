# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests, written by others: none that passes natively may fail, hang or be skipped under sdrun.

A module's cases run under sdrun with eager upgrade.  Those that do not pass there are run again natively, and the
module fails if one of them passes natively.  The report says how many ends of connections shared memory carried:
a pass on TCP proves nothing, so a module that makes connections has a number below which it fails as well.

`make test` runs the modules that have found defects or reach much of the socket interface, `make suites` all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import Program, Runner

PYTHON = Path("/usr/bin/python3")  # the one that Debian's libpython3-testsuite belongs to
CASES = Path(__file__).with_name("cases.py")
HANGS = 5  # so many cases may take the interpreter with them before we give up

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Suite:
    """Test modules to run in one interpreter."""

    names: tuple[str, ...]
    at_least: int = 0  # ends of connections on shared memory
    resources: str = ""  # of test.support: "network" where it only means sockets on this host


def asyncio(*names: str) -> tuple[str, ...]:
    return tuple(f"test.test_asyncio.test_{name}" for name in names)


def plain(*names: str) -> tuple[str, ...]:
    return tuple(f"test.test_{name}" for name in names)


# About half of what is seen on an idle machine: connections that end before both ends have met stay on TCP.
FIRST = {
    "socket": Suite(plain("socket"), at_least=120),
    "ssl": Suite(plain("ssl"), at_least=120),
    "readiness": Suite(plain("select", "poll", "epoll", "eintr")),
    "asyncio": Suite(asyncio("base_events", "buffered_proto", "events", "selector_events", "sendfile", "server",
                             "sock_lowlevel", "ssl", "sslproto", "streams", "unix_events"), at_least=250),
    "protocols": Suite(plain("ftplib", "smtplib", "poplib", "httpservers", "urllib2_localnet", "wsgiref"),
                       at_least=300),
    "asyncore": Suite(plain("asyncore", "asynchat"), at_least=60),
    "socketserver": Suite(plain("socketserver"), at_least=10, resources="network"),
    "processes": Suite(("test.test_multiprocessing_fork.WithProcessesTestListener",
                        "test.test_multiprocessing_fork.WithProcessesTestPicklingConnections",
                        "test.test_multiprocessing_spawn.WithProcessesTestListenerClient",
                        "test.test_os.TestSendfile"), at_least=2),
}
REST = {
    "imaplib": Suite(plain("imaplib"), at_least=100),
    "xmlrpc": Suite(plain("xmlrpc", "docxmlrpc"), at_least=50),
    "httplib": Suite(plain("httplib", "telnetlib", "nntplib"), at_least=10),
    "logging": Suite(plain("logging"), at_least=8),
    "asyncio-rest": Suite(asyncio("context", "futures", "futures2", "locks", "pep492", "proactor_events", "protocols",
                                  "queues", "runners", "subprocess", "taskgroups", "tasks", "threads", "timeouts",
                                  "transports", "waitfor")),
    "selectors": Suite(plain("selectors")),
    "signal": Suite(plain("signal")),
    "subprocess": Suite(plain("subprocess")),
    "threading": Suite(plain("threading", "thread", "queue", "sched")),
    "os": Suite(plain("os", "posix", "fcntl", "pty", "io", "file", "mmap"), at_least=2),
    "multiprocessing": Suite(plain("multiprocessing_fork"), at_least=50),
}
WANTED = {"": FIRST, "rest": REST, "all": {**FIRST, **REST}}[os.environ.get("SDRUN_SUITES", "")]


def outcomes(results: Path) -> dict[str, str]:
    """What became of each case: the last line about it counts."""
    return {case: outcome for case, outcome, _ in map(json.loads, results.read_text().splitlines())}


def name_of(case: str) -> str:
    """Something that can be run again: of `setUpClass (test.test_x.Class)`, the class."""
    return case.partition("(")[2].rstrip(")") or case


def run(runner: Runner, suite: Suite, names: Iterable[str], results: Path) -> list[Program]:
    """Run `names`, and again behind each case that hung or took the interpreter with it."""
    env = {"SUITE_SETTLE": "1", "SUITE_RESOURCES": suite.resources}
    programs: list[Program] = []
    for turn in range(HANGS):
        folder = results.with_suffix(f".{turn}")
        folder.mkdir()
        programs.append(runner.start(PYTHON, CASES, results, *names, env=env, cwd=folder))
        programs[-1].wait(600)
        programs[-1].close()  # what a case that hung has left behind would keep the report from being written
        assert results.exists(), programs[-1].describe()
        if json.loads(results.read_text().splitlines()[-1])[1] != "begun":
            break
    return programs


@pytest.mark.timeout(900)
@pytest.mark.parametrize("module", WANTED)
def test_cpython(module: str, shm: Runner, native: Runner, tmp_path: Path) -> None:
    suite = WANTED[module]
    programs = run(shm, suite, suite.names, tmp_path / "shm.json")
    here = outcomes(tmp_path / "shm.json")
    assert sum(outcome == "passed" for outcome in here.values()) > 0, programs[0].describe()

    good = ("passed", "expected failure")
    doubtful = {name_of(case): outcome for case, outcome in here.items() if outcome not in good}
    there: dict[str, str] = {}
    if doubtful:
        run(native, suite, doubtful, tmp_path / "native.json")
        there = outcomes(tmp_path / "native.json")
    fine = {case for case, outcome in there.items() if outcome == "passed"}
    worse = {name: outcome for name, outcome in doubtful.items()
             if any(case == name or case.startswith(f"{name}.") for case in fine)}
    assert not worse, f"{worse} pass natively\n" + "\n".join(program.describe() for program in programs)

    reports = [program.report() for program in programs] if suite.at_least else []
    assert sum(report.shm for report in reports) >= suite.at_least, "\n".join(map(str, reports))
