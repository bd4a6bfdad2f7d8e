# SPDX-License-Identifier: Apache-2.0
"""The monitor's own Prometheus metrics: true, over HTTP and a unix socket, and no way to hold the monitor up."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from sdlib import abi
from sdlib.wire import Asked, papers
from sdlib.wire.messages import Query
from tests.e2e.test_live_policy import Pair
from tests.harness import Runner
from tests.monitor.support import Link, MonitorProcess, readable, wait_for
from tests.monitor.test_service import SEGMENT, pair
from tests.tools.test_observe import MONITOR_METRICS

Samples = dict[tuple[str, str | None], float]


def samples(text: str) -> Samples:
    return {(sample.name, sample.labels.get("uid") or sample.labels.get("event")): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


def test_what_happened_is_counted(tmp_path: Path, link: Link) -> None:
    monitor = MonitorProcess(tmp_path, "--metrics", "0")
    try:
        wait_for(lambda: "/metrics" in monitor.log.read_text(), "it says where")
        [url] = re.findall(r"http://\S+/metrics", monitor.log.read_text())
        uid = str(os.geteuid())

        def now() -> Samples:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return samples(answer.read().decode())

        assert now()["sdmonitor_segments", None] == 0
        with closing(monitor.client()) as one, closing(monitor.client()) as other:
            for memfd in pair(one, other, link):
                os.close(memfd)
            told = now()
            assert {name for name, _ in told} == MONITOR_METRICS | {"sdrun_supervisors"}
            assert told["sdmonitor_clients", uid] == 2 and told["sdmonitor_segments", None] == 1
            assert told["sdmonitor_memory_bytes", None] == told["sdmonitor_user_memory_bytes", uid] == SEGMENT
            assert told["sdmonitor_events_total", "paired"] >= 1, told
    finally:
        monitor.close()


def told_by(monitor: MonitorProcess, place: Path, *papers_: dict[str, Any] | None) -> str:
    """What a scrape says while clients tell these; None: tells nothing."""
    clients = [monitor.client() for _ in papers_]
    found: list[bytes] = []
    scraper = threading.Thread(target=lambda: found.append(scrape(place)))
    scraper.start()
    for client, paper in zip(clients, papers_, strict=True):
        assert readable(client)
        (asked,) = client.events()
        assert isinstance(asked, Asked) and asked.what == Query.COUNTERS
        if paper is not None:
            memfd = papers.write(paper)
            client.tell(asked.ask_id, memfd)
            os.close(memfd)
    scraper.join()
    for client in clients:
        assert client.alive
        client.close()
    return found[0].decode()


def test_what_clients_tell_is_not_trusted(tmp_path: Path) -> None:
    """Whatever it is, the metrics can be read, and are true of the others."""
    place = tmp_path / "metrics.sock"
    monitor = MonitorProcess(tmp_path, "--metrics", str(place))
    zeros: dict[str, Any] = {
        "version": 1, "counters": dict.fromkeys(abi.COUNTERS, 0), "tcp_reasons": {}, "moved_back": {}, "processes": [],
        "supervisor": {"pid": 1, "root_pid": 7, "command": "/bin/a", "errors": 0,
                       "notifications": {"times": 1, "seconds": 0.5}},
        "monitor": {"offers": {"times": 0, "seconds": 0}}, "connections": [], "connections_left_out": 0,
        "open": {"shm": 3},
    }  # fmt: skip
    named = {**zeros, "supervisor": {**zeros["supervisor"], "command": 'x"\n\x1b' + "y" * 5000, "root_pid": 10**50}}
    bad: list[dict[str, Any]] = [
        {}, {**zeros, "counters": {}}, {**zeros, "counters": dict.fromkeys(abi.COUNTERS, 10**400)},
        {**zeros, "open": {"shm": -1}}, {**zeros, "open": [1]}, {**zeros, "padding": "x" * 70_000},
        {**zeros, "sizes": {"sent": [1]}}, {**zeros, "tcp_reasons": {"policy": float("nan")}},
    ]  # fmt: skip
    try:
        wait_for(lambda: "metrics.sock" in monitor.log.read_text(), "it says where")
        good = [zeros, zeros, named, {**zeros, "tcp_reasons": {"policy": 2, "odd": 3}}]
        text = told_by(monitor, place, *good, *bad, None)
        families = list(text_string_to_metric_families(text))
        found = {(sample.name, *sorted(sample.labels.values())): sample.value
                 for family in families for sample in family.samples}  # fmt: skip
        uid = str(os.geteuid())
        assert found["sdrun_supervisors",] == 2, "who has the same names is one"
        assert found["sdrun_open_connections", *sorted(("a", "7", uid, "shm"))] == 3
        assert found["sdrun_tcp_connections_total", *sorted(("a", "7", uid, "policy"))] == 2
        assert '"odd"' not in text and found["sdmonitor_silent_clients",] == 1
        assert all(len(label) <= 64 for family in families for sample in family.samples
                   for label in sample.labels.values())  # fmt: skip
    finally:
        monitor.close()


def test_a_visitor_that_goes_while_the_clients_are_asked(tmp_path: Path) -> None:
    place = tmp_path / "metrics.sock"
    monitor = MonitorProcess(tmp_path, "--metrics", str(place))
    try:
        wait_for(lambda: "metrics.sock" in monitor.log.read_text(), "it says where")
        with closing(monitor.client()):  # which never tells
            for _ in range(3):
                with socket.socket(socket.AF_UNIX) as visitor:
                    visitor.connect(str(place))
                    visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"sdmonitor_silent_clients 1.0" in scrape(place)
        assert b"sdmonitor_silent_clients 0.0" in scrape(place)
    finally:
        monitor.close()


def test_programs_are_in_it(shm: Runner, tmp_path: Path) -> None:
    """One place to scrape for all: the counters of both trees, as their reports say in the end."""
    place = tmp_path / "metrics.sock"
    pair = Pair(shm, tmp_path, monitor_options=("--metrics", str(place)))
    pair.open(0, 1)
    open_ = rb'sdrun_open_connections\{path="shm",program="python3?",root_pid="%d",uid="%d"\} 2.0'
    for program in (pair.server, pair.driver):
        pair.until(lambda pid=program.pid: bool(re.search(open_ % (pid, os.geteuid()), scrape(place))), "both are open")  # type: ignore[misc]
    sent = rb'sdrun_bytes_shm_tx_total\{program="python3?",root_pid="%d",uid="%d"\} ([0-9.e+]+)'
    found = re.search(sent % (pair.driver.pid, os.geteuid()), scrape(place))
    assert found and float(found[1]) > 1000
    pair.finish()
    assert pair.driver.report().shm_bytes > float(found[1])


def test_a_unix_socket_and_visitors_without_manners(tmp_path: Path) -> None:
    place = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place))
    monitor = MonitorProcess(tmp_path, "--metrics", str(place))
    try:
        wait_for(lambda: "metrics.sock" in monitor.log.read_text(), "it says where")
        assert place.stat().st_mode & 0o777 == 0o600
        silent = [socket.socket(socket.AF_UNIX) for _ in range(10)]
        for visitor in silent:
            visitor.connect(str(place))
        silent[0].sendall(b"GET /" + b"x" * 20000)
        assert b"sdmonitor_clients" in scrape(place)
        for visitor in silent:
            visitor.close()
        with closing(monitor.client()):
            assert re.search(rb'sdmonitor_clients\{uid="\d+"\} 1.0', scrape(place))
        assert monitor.kill(signal.SIGTERM) == 0
        assert not place.exists()
    finally:
        monitor.close()


def scrape(place: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(30)
        visitor.connect(str(place))
        visitor.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: visitor.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200") and b"Content-Length: %d" % len(body) in head
    return body


def test_a_place_that_cannot_be_had_is_said_and_survived(tmp_path: Path) -> None:
    monitor = MonitorProcess(tmp_path, "--metrics", "nowhere")
    try:
        wait_for(lambda: "no-metrics" in monitor.log.read_text(), "it says so")
        monitor.client().close()
    finally:
        monitor.close()
