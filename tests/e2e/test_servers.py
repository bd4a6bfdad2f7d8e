# SPDX-License-Identifier: Apache-2.0
"""Real servers with their real clients: redis, nginx, memcached."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.harness import GUESTS, Program, Runner, free_port

NGINX = """\
daemon off;
user root root;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    sendfile {sendfile};
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/www;
    }}
}}
"""


def start_redis(runner: Runner, port: int, folder: Path) -> Program:
    """A redis-server without persistence of its own accord."""
    return runner.start("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder,
                        "--daemonize", "no").listening(port)


def start_nginx(runner: Runner, port: int, folder: Path, sendfile: str = "on") -> Program:
    """nginx with a master and two workers, its files under `folder`."""
    (folder / "www").mkdir()
    for size in (0, 1, 612, 70_000, 3_000_000):
        (folder / "www" / f"{size}").write_bytes(random.Random(size).randbytes(size))
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, sendfile=sendfile))
    env = {"PATH": os.environ["PATH"] + ":/usr/sbin"}
    return runner.start("nginx", "-p", folder, "-c", config, env=env).listening(port)


def test_redis_values_pipeline_pubsub_bgsave(runner: Runner, tmp_path: Path) -> None:
    port = free_port()
    server = start_redis(runner, port, tmp_path)
    client = runner.run(sys.executable, GUESTS / "resp.py", str(port))
    assert client.stdout == b"ok\n"
    assert server.stop() == 0
    runner.check(server, client, at_least=2, of_bytes=2_000_000)
    assert (tmp_path / "dump.rdb").stat().st_size > 1_000_000


@pytest.mark.parametrize("how", ["-c 50 -P 16 -n 200000", "-c 1 -n 20000", "-c 50 -n 50000 -r 1000 -d 1000"])
def test_redis_benchmark(how: str, runner: Runner, tmp_path: Path) -> None:
    port = free_port()
    server = start_redis(runner, port, tmp_path)
    client = runner.run("redis-benchmark", "-p", str(port), "-t", "set,get", "--csv", *how.split())
    rows = client.stdout.decode().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ['"SET"', '"GET"']
    assert "rror" not in client.stderr
    assert server.stop() == 0
    runner.check(server, client, at_least=2 * int(how.split()[1]), of_bytes=500_000)


def test_peer_that_is_not_under_sdrun(shm: Runner, native: Runner, tmp_path: Path) -> None:
    """A native client of an accelerated server stays on TCP, works, and the report says why."""
    port = free_port()
    server = start_redis(shm, port, tmp_path)
    native.run("redis-benchmark", "-p", str(port), "-t", "get", "-c", "5", "-n", "5000", "--csv")
    assert server.stop() == 0
    report = server.report()
    assert report.shm == 0
    assert report.raw["connections"]["tcp_reasons"].get("peer-not-under-sdrun", 0) >= 5, str(report)


@pytest.mark.parametrize("sendfile", ["on", "off"])
def test_nginx_bodies(sendfile: str, runner: Runner, tmp_path: Path) -> None:
    """curl fetches files of all sizes over one kept connection."""
    port = free_port()
    server = start_nginx(runner, port, tmp_path, sendfile)
    sizes = [612, 1, 0, 70_000, 3_000_000] * 10
    urls = [word for number, size in enumerate(sizes)
            for word in (f"http://127.0.0.1:{port}/{size}", "-o", str(tmp_path / f"got-{number}"))]
    client = runner.run("curl", "--silent", "--show-error", "--fail", *urls)
    for number, size in enumerate(sizes):
        wanted = hashlib.sha256(random.Random(size).randbytes(size)).digest()
        got = (tmp_path / f"got-{number}").read_bytes() if size else b""
        assert hashlib.sha256(got).digest() == wanted, f"body {number} of {size} bytes"
    assert server.stop(signal.SIGQUIT) == 0
    runner.check(server, client, at_least=1, of_bytes=25_000_000)


def requests_of(wrk: Program) -> int:
    """Requests that wrk counted; it must not have seen an error."""
    text = wrk.stdout.decode()
    assert "Socket errors" not in text, text
    assert "Non-2xx" not in text, text
    found = re.search(r"(\d+) requests in", text)
    assert found, wrk.describe()
    return int(found[1])


def test_nginx_under_load(runner: Runner, tmp_path: Path) -> None:
    port = free_port()
    server = start_nginx(runner, port, tmp_path)
    client = runner.run("wrk", "-t", "2", "-c", "20", "-d", "2s", f"http://127.0.0.1:{port}/612")
    assert requests_of(client) > 100
    assert server.stop(signal.SIGQUIT) == 0
    runner.check(server, client, at_least=20, of_bytes=100 * 612)


def test_nginx_reload_under_load(runner: Runner, tmp_path: Path) -> None:
    """HUP brings new workers; the old ones finish what they have. wrk reconnects, so only its own counts matter."""
    port = free_port()
    server = start_nginx(runner, port, tmp_path)
    client = runner.start("wrk", "-t", "1", "-c", "10", "-d", "3s", f"http://127.0.0.1:{port}/612")
    for _ in range(2):
        time.sleep(0.8)
        server.send(signal.SIGHUP)
    client.ok()
    assert int(re.findall(r"(\d+) requests in", client.stdout.decode())[0]) > 100
    again = runner.run("wrk", "-t", "1", "-c", "10", "-d", "1s", f"http://127.0.0.1:{port}/612")
    assert requests_of(again) > 100
    assert server.stop(signal.SIGQUIT) == 0
    log = (tmp_path / "error.log").read_text()
    assert "[alert]" not in log, log
    assert "[crit]" not in log, log
    runner.check(server, client, again, at_least=10)


def test_memcached(runner: Runner) -> None:
    port = free_port()
    server = runner.start("memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "2")
    server.listening(port)
    client = runner.run(sys.executable, GUESTS / "memcache.py", str(port))
    assert client.stdout == b"ok\n"
    assert server.stop() == 0
    runner.check(server, client, at_least=8, of_bytes=1_000_000)

