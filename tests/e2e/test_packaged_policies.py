# SPDX-License-Identifier: Apache-2.0
"""Programs that come with a policy of their own, under that policy and nothing else.

Others are in test_servers.py and test_packaged_daemons.py.

Here no value is set by the test: what holds is what the packaged file says, which `--print` shows with its source.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
from glob import glob
from pathlib import Path

import pytest

from tests.e2e.test_servers import NGINX, start_nginx
from tests.harness import GUESTS, SDRUN, Mode, Program, Runner, free_port

SBIN = {"PATH": os.environ["PATH"] + ":/usr/sbin"}
SIZES = [612, 1, 70_000, 3_000_000] * 5
HAPROXY = """\
global
    nbthread 2
defaults
    mode http
    timeout client 30s
    timeout server 30s
    timeout connect 30s
frontend front
    bind 127.0.0.1:{port}
    default_backend origin
backend origin
    http-reuse always
    server one 127.0.0.1:{origin}
"""
PHP = """\
[global]
daemonize = no
error_log = {folder}/php.log
[www]
listen = 127.0.0.1:{port}
pm = static
pm.max_children = 2
"""
SCRIPT = """<?php
for ($at = 0; $at < $_GET["size"]; $at += 32) {
    echo substr(md5((string) $at), 0, min(32, $_GET["size"] - $at));
    if ($at % 16384 == 16352) { flush(); usleep(4000); }
}
"""
FASTCGI = """
        location ~ \\.php$ {{
            fastcgi_pass 127.0.0.1:{php};
            fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
        }}
    }}
}}
"""


@pytest.fixture(params=[Mode.NATIVE, Mode.SHM], ids=["native", "shm"])
def packaged(request: pytest.FixtureRequest, tmp_path: Path, sd_env: dict[str, str]) -> Runner:
    """Natively and under the packaged policies."""
    made = Runner(request.param, tmp_path, sd_env, eager=False)
    request.addfinalizer(made.close)
    return made


def says_packaged(program: str, env: dict[str, str], file: str) -> None:
    shown = subprocess.run([SDRUN, "--print", program], env={**env, **SBIN}, capture_output=True, text=True, timeout=60,
                           check=True)  # fmt: skip
    assert f"# packaged {file}" in shown.stdout, shown.stdout


def fetch(runner: Runner, folder: Path, urls: list[str]) -> tuple[Program, list[bytes]]:
    """All of them over one kept connection."""
    names = [folder / f"got-{number}" for number in range(len(urls))]
    words = [str(word) for url, name in zip(urls, names, strict=True) for word in (url, "-o", name)]
    client = runner.run("curl", "--silent", "--show-error", "--fail", *words)
    return client, [name.read_bytes() for name in names]


def test_haproxy(packaged: Runner, tmp_path: Path) -> None:
    """Before nginx, with threads: both its sides go by shared memory."""
    origin, port = free_port(), free_port()
    nginx = start_nginx(packaged, origin, tmp_path)
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, origin=origin))
    haproxy = packaged.start("haproxy", "-db", "-f", config, env=SBIN).listening(port)
    client, bodies = fetch(packaged, tmp_path, [f"http://127.0.0.1:{port}/{size}" for size in SIZES])
    for size, body in zip(SIZES, bodies, strict=True):
        assert hashlib.sha256(body).digest() == hashlib.sha256(random.Random(size).randbytes(size)).digest(), size
    assert haproxy.stop(signal.SIGUSR1) == 0
    assert nginx.stop(signal.SIGQUIT) == 0
    packaged.check(client, at_least=1)
    packaged.check(nginx, at_least=1, of_bytes=10_000_000)
    for report in packaged.check(haproxy, at_least=2, of_bytes=10_000_000):
        assert not report.raw["connections"]["moved_back"], report
    if packaged.mode is Mode.SHM:
        says_packaged("haproxy", packaged.env, "haproxy.yaml")


def test_php_fpm(packaged: Runner, tmp_path: Path) -> None:
    """Behind nginx: connections that carry much are worth a ring, short ones stay on TCP by the policy's threshold."""
    found = sorted(glob("/usr/sbin/php-fpm*"))
    assert found, "tools/setup/test.txt brings it"
    port, php = free_port(), free_port()
    (tmp_path / "php.conf").write_text(PHP.format(folder=tmp_path, port=php))
    text = NGINX.format(folder=tmp_path, port=port, sendfile="on")
    (tmp_path / "nginx.conf").write_text(text.rstrip().removesuffix("}\n}").rstrip() + FASTCGI.format(php=php))
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "body.php").write_text(SCRIPT)
    words: list[str | Path] = ["-F", "-R", "-y", tmp_path / "php.conf", "-d", "output_buffering=0"]
    fpm = packaged.start(found[-1], *words).listening(php)
    nginx = packaged.start("nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf", env=SBIN).listening(port)
    sizes = [10, 612, 2_000_000, 10]
    _, bodies = fetch(packaged, tmp_path, [f"http://127.0.0.1:{port}/body.php?size={size}" for size in sizes])
    for size, body in zip(sizes, bodies, strict=True):
        wanted = "".join(hashlib.md5(str(at).encode()).hexdigest() for at in range(0, size, 32))[:size]
        assert body == wanted.encode(), size
    assert nginx.stop(signal.SIGQUIT) == 0
    assert fpm.stop(signal.SIGQUIT) == 0
    for report in packaged.check(fpm, at_least=1, of_bytes=100_000):
        assert report.raw["connections"]["tcp_reasons"].get("few-operations"), report
        says_packaged(found[-1], packaged.env, "php-fpm.yaml")


def test_java(packaged: Runner, tmp_path: Path) -> None:
    """A selector and blocking sockets, in the many threads of a JVM."""
    subprocess.run(["javac", "-d", tmp_path, GUESTS / "Exchange.java"], check=True, timeout=120)
    program = packaged.run("java", "-Xshare:auto", "-cp", tmp_path, "Exchange", timeout=120)
    assert int(program.stdout) > 1_700_000
    packaged.check(program, at_least=2, of_bytes=100_000)
    if packaged.mode is Mode.SHM:
        says_packaged("java", packaged.env, "java.yaml")
