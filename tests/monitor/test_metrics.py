# SPDX-License-Identifier: Apache-2.0
"""The monitor's own Prometheus metrics: true, over HTTP and a unix socket, and no way to hold the monitor up."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.request
from contextlib import closing
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.monitor.support import Link, MonitorProcess, wait_for
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
            assert {name for name, _ in told} == MONITOR_METRICS
            assert told["sdmonitor_clients", uid] == 2 and told["sdmonitor_segments", None] == 1
            assert told["sdmonitor_memory_bytes", None] == told["sdmonitor_user_memory_bytes", uid] == SEGMENT
            assert told["sdmonitor_events_total", "paired"] >= 1, told
    finally:
        monitor.close()


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
