# SPDX-License-Identifier: Apache-2.0
"""Programs on two hosts: what they see is what they would see by TCP, and the report says what carried it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from tests.guestbuild import Guests
from tests.harness import PATIENCE, SDRUN
from tests.hosts.talk import ROUNDS, assert_whole, echo, ping, sums
from tests.hosts.world import VERBS, Mode, World, assert_rdma, wait_for

LONG_S = 60.0 * PATIENCE
OTHERWISE = {"depth": 64, "inline": 0, "mtu": 1024, "port": 1}
"""Instead of what is found out about the device."""
quick_only = pytest.mark.skipif(VERBS, reason="the same without RDMA shows it, in a hundredth of the time")


def assert_shown(world: World) -> None:
    """sdss --hosts and sdstat --hosts say what the link carries."""
    env = {**os.environ, "SOCKSDIRECT_MONITOR": world.a.socket}
    shown = shown_links(env)
    assert len(shown) == 1 and shown[0] | {
        "host": "b", "link": "rdma" if world.a.rdma else "tcp", "connections": 1, "links": 1, "left": 0,
    } == shown[0]  # fmt: skip
    assert shown[0]["credits"] + shown[0]["unread"] > 0
    if VERBS:
        assert shown[0]["depth"] == OTHERWISE["depth"] > shown[0]["under_way"]
        assert shown[0]["writes"] and shown[0]["received"]
        port = world.a.peer("b")["port"]
        assert (port["depth"], port["inline"]) == (OTHERWISE["depth"], OTHERWISE["inline"])
    assert wait_for(lambda: tool("sdss", "--hosts", env=env).splitlines()[1:], "a line of sdss")[0].split()[0] == "b"
    wait_for(lambda: "host b: " in tool("sdstat", "--hosts", env=env), "sdstat")


def shown_links(env: dict[str, str]) -> list[dict[str, Any]]:
    """By sdss, which shows none while the monitor does not answer."""
    links: list[dict[str, Any]] = wait_for(lambda: json.loads(tool("sdss", "--hosts", "--json", env=env))["hosts"],
                                           "sdss --hosts")
    return links


def tool(*words: str, env: dict[str, str]) -> str:
    return subprocess.run([SDRUN.parent / words[0], *words[1:]], env=env, check=True, stdout=subprocess.PIPE,
                          text=True).stdout


@pytest.mark.parametrize("here, there", [
    pytest.param("direct", "fork", marks=quick_only), ("exec", "fork"), ("fork", "exec"),
    pytest.param("fork", "fork", marks=quick_only), pytest.param("exec", "exec", marks=quick_only),
])  # fmt: skip
def test_fork_and_exec_on_both_ends(world: World, here: str, there: str) -> None:
    world.start(**({"device": OTHERWISE} if VERBS else {}))
    go = world.a.folder / "go"
    server = echo(world.b, 7000, go, how=there)
    client = ping(world.a, world.b, 7000, go, here)
    world.a.carried(1)
    assert_shown(world)
    go.touch()
    world.finish(client, server)
    assert server.stdout.split()[-1] == client.stdout.strip()
    for program in (client, server):
        assert_rdma(program.report(), 1, 60_000 if VERBS else 250_000)


def test_redis(world: World) -> None:
    world.start()
    server = world.b.runner().start("redis-server", "--port", "7001", "--bind", world.b.address, "--save", "",
                                    "--dir", world.b.folder, "--protected-mode", "no")
    client = world.a.runner()
    server.until(lambda: b"Ready to accept" in server.stdout, "listens")
    requests = "200" if VERBS else "1000"
    words = ["redis-benchmark", "-h", world.b.address, "-p", "7001", "-t", "set,get", "-c", "4", "-d", "300", "--csv"]
    # How many requests it takes until the monitors have paired its connections is the machine's affair.
    endless = client.start(*words, "-n", "100000000")
    world.a.carried(4, 15_000)
    assert endless.stop() == -signal.SIGTERM
    assert_rdma(endless.report(), 4, 60_000)
    assert client.run(*words, "-n", requests, timeout=LONG_S).stdout.count(b"\n") >= 2
    value = "x" * 100_000
    commands = f"set key {value}\nget key\n".encode() * 5
    script = client.run("redis-cli", "-h", world.b.address, "-p", "7001", stdin=commands, timeout=LONG_S)
    assert script.stdout.decode().split() == ["OK", value] * 5
    server.stop(signal.SIGTERM)
    assert_rdma(server.report(), 4, 60_000)


@quick_only
def test_a_round_trip_costs_few_looks(world: World) -> None:
    """With programs that sleep between messages, a monitor that goes on looking takes their processor."""
    world.start(spin_us=0)
    go = world.a.folder / "go"
    server = echo(world.b, 7006, world.b.folder / "never")
    client = ping(world.a, world.b, 7006, go)
    world.a.carried(1)
    before = [host.far()["looks"] for host in (world.a, world.b)]
    go.touch()
    world.finish(client, server)
    spent = [host.far()["looks"] - looks for host, looks in zip((world.a, world.b), before, strict=True)]
    assert max(spent) < 20 * int(ROUNDS), spent


def test_integrity_both_ways(world: World, guests: Guests) -> None:
    world.start()
    size = (1 if VERBS else 8) << 20
    server, client = world.exchange(guests("integrity"), 7002, size)
    world.finish(client, server)
    assert_whole(client, server, size)
    wait_for(lambda: not any(host.far()["connections"] for host in (world.a, world.b)),
             "both monitors forget what has ended")


@quick_only
def test_a_killed_sender_leaves_all_that_it_sent(world: World, guests: Guests) -> None:
    world.start()
    server, client = world.exchange(guests("integrity"), 7003, 1 << 30, "1500000", seeds=("7", "8"), ONE_WAY="1")
    assert client.wait(LONG_S) == -signal.SIGKILL
    server.ok(LONG_S)
    assert sums(client)["sent"] == sums(server)["received"]
    assert_rdma(server.report(), 1, 500_000)


def test_a_host_without_sdrun_and_one_with_another_key_stay_on_tcp(world: World) -> None:
    world.start()
    go = world.a.folder / "go"
    go.touch()
    server = echo(world.b, 7004, go, 2)
    plain = ping(world.hosts["c"], world.b, 7004, go, mode=Mode.NATIVE).ok()
    world.a.kill_monitor()
    key = world.a.folder / "b.key"
    key.write_text("not the key that they share")
    world.a.start_monitor()
    wait_for(lambda: "has another key" in world.a.log + world.b.log, "they have called each other")
    stranger = ping(world.a, world.b, 7004, go).ok()
    server.ok()
    assert sorted(server.stdout.split()[1:]) == sorted((plain.stdout.strip(), stranger.stdout.strip()))
    for program in (stranger, server):
        assert program.report().raw["connections"]["rdma"] == 0


@quick_only
def test_a_rule_keeps_connections_off_rdma(world: World) -> None:
    world.start()
    go = world.a.folder / "go"
    server = echo(world.b, 7005, world.b.folder / "never")
    client = ping(world.a, world.b, 7005, go, options=["-r", "out tcp *:* accelerate transport=shm"])
    wait_for(lambda: "paired with other hosts" in str(world.a.status()), lambda: world.a.log)
    go.touch()
    world.finish(client, server)
    assert server.stdout.split()[-1] == client.stdout.strip()
    kept = client.report().raw["connections"]
    assert kept["rdma"] == 0 and kept["tcp_reasons"] == {"policy": 1}
