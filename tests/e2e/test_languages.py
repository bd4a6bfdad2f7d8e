# SPDX-License-Identifier: Apache-2.0
"""Programs in other languages, their two ends under two `sdrun`, on every kind of loopback address."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.guestbuild import Guests
from tests.harness import GUESTS, Runner, free_port, own_address

# No $(seq): it would be a program that inherits the connection, and one that is still on TCP then stays there.
BASH = """
set -eu
exec 3<>/dev/tcp/127.0.0.1/$1
for ((i = 1; i <= 2000; i++)); do
    echo "line $i of bash" >&3
    read -r back <&3
    [ "$back" = "line $i of bash" ]
done
exec 3>&-
echo ok
"""


def test_go_in_one_process(runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("echo", "go"), "self")
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=200, of_bytes=10_000_000)


def test_go_server_and_client(runner: Runner, guests: Guests) -> None:
    port, guest = free_port(), guests("echo", "go")
    server = runner.start(guest, "server", str(port)).listening(port)
    client = runner.run(guest, "client", str(port))
    assert client.stdout == b"ok\n"
    assert server.stop() == 0
    runner.check(server, client, at_least=100, of_bytes=10_000_000)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "::1", "own"])
def test_python_asyncio(host: str, runner: Runner) -> None:
    address = own_address() if host == "own" else host
    if address is None:
        pytest.skip("this machine has no address besides loopback")
    port, script = free_port(), GUESTS / "pyecho.py"
    server = runner.start(sys.executable, script, "server", str(port), address).listening(port)
    client = runner.run(sys.executable, script, "client", str(port), address)
    assert client.stdout == b"ok\n"
    assert server.stop() == 0
    runner.check(server, client, at_least=20, of_bytes=10_000_000)


def test_v4_client_of_a_v6_server(runner: Runner) -> None:
    """The server's socket is AF_INET6 and sees a mapped address; the client's is AF_INET."""
    port, script = free_port(), GUESTS / "pyecho.py"
    code = f"import socket, runpy, sys; sys.argv = ['pyecho.py', 'server', '{port}', '::']; " \
           "original = socket.socket.setsockopt; " \
           "socket.socket.setsockopt = lambda s, *a: None if a[:2] == (41, 26) else original(s, *a); " \
           f"runpy.run_path({str(script)!r}, run_name='__main__')"
    server = runner.start(sys.executable, "-c", code).listening(port)
    client = runner.run(sys.executable, script, "client", str(port), "127.0.0.1")
    assert client.stdout == b"ok\n"
    assert server.stop() == 0
    runner.check(server, client, at_least=20)


def test_python_http(runner: Runner) -> None:
    port, script = free_port(), GUESTS / "pyhttp.py"
    server = runner.start(sys.executable, script, "server", str(port)).listening(port)
    client = runner.run(sys.executable, script, "client", str(port))
    assert client.stdout == b"ok\n"
    assert server.stop() == 0
    runner.check(server, client, at_least=4, of_bytes=1_000_000)


def test_bash_dev_tcp(runner: Runner) -> None:
    port = free_port()
    server = runner.start(sys.executable, GUESTS / "pyecho.py", "server", str(port)).listening(port)
    client = runner.run("bash", "-c", BASH, "bash", str(port))
    assert client.stdout == b"ok\n"
    assert server.stop() == 0
    runner.check(server, client, of_bytes=1000)


def test_node_http(runner: Runner) -> None:
    port, script = free_port(), GUESTS / "nodehttp.js"
    server = runner.start("node", script, "server", str(port)).listening(port)
    client = runner.run("node", script, "client", str(port))
    assert client.stdout == b"ok\n"
    assert server.stop(signal.SIGTERM) == 0
    runner.check(server, client, at_least=4, of_bytes=1_000_000)
