# SPDX-License-Identifier: Apache-2.0
"""The demo reads its clients' figures right, and fails when it has nothing to show."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from tools import demo
from tools.net import free_port, is_listening

WRK = """\
Running 3s test @ http://127.0.0.1:8080/
  1 threads and 20 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   239.09us   90.01us   1.72ms   74.11%
    Req/Sec    82.50k     3.21k   86.10k    70.00%
  Latency Distribution
     50%  229.00us
     75%  281.00us
     90%  345.00us
     99%    1.43ms
  82041 requests in 1.00s, 66.12MB read
Requests/sec:  82041.27
Transfer/sec:     66.11MB
"""


def test_wrk_figures() -> None:
    assert demo.wrk_sample(WRK) == demo.Sample(82041.27, 229.0, 1430.0)


def test_wrk_errors_are_not_figures() -> None:
    with pytest.raises(demo.DemoError, match="errors"):
        demo.wrk_sample(WRK + "  Socket errors: connect 0, read 3, write 0, timeout 0\n")
    with pytest.raises(demo.DemoError, match="no figures"):
        demo.wrk_sample("")


def test_redis_figures() -> None:
    line = '"SET","18256.30","0.054","0.024","0.055","0.063","0.079","0.415"'
    assert demo.redis_sample(line) == demo.Sample(18256.30, 55.0, 79.0)


def test_tally_adds_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"connections": {"total": 5, "shm": 3, "tcp_reasons": {"few-operations": 2}}}))
    tally = demo.Tally()
    tally.add(report)
    tally.add(report)
    assert (tally.total, tally.shm, tally.reasons) == (10, 6, {"few-operations": 4})


def test_listening_is_seen_without_connecting() -> None:
    port = free_port()
    assert not is_listening(port)
    with socket.create_server(("127.0.0.1", port)) as server:
        assert is_listening(port)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_program_that_does_not_start_is_named(tmp_path: Path) -> None:
    stage = demo.Stage(tmp_path)
    server = stage.server(free_port(), signal.SIGTERM, "redis-server", "--no-such-option")
    with pytest.raises(demo.DemoError, match="redis-server does not listen"), server:
        pass
    stage.close()
