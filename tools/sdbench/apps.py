# SPDX-License-Identifier: Apache-2.0
"""`sdbench apps`: real servers with real or small clients, over TCP, over a unix socket, and over TCP under sdrun.

Every sample starts its servers afresh, so that one variant inherits nothing from another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tools.net import free_port, is_listening, is_unix_listening
from tools.sdbench import floor, postgres
from tools.sdbench.machine import ROOT
from tools.sdbench.micro import Place, natively, under_sdrun
from tools.sdbench.results import Sample
from tools.sdbench.runner import Ask, Case
from tools.sdbench.stage import BenchError, NotHere, Stage, program
from tools.sdbench.ways import Load, Serve, Served, Way, asked

FILES = ROOT / "tools" / "bench" / "apps"
WARM_MS = 1000
"""Before a load program measures, in any language: the monitor starts, connections move, a JIT compiles."""
HELLO_GRPC = str(FILES / "hello_grpc.py")


def new_address(stage: Stage, way: Way, name: str) -> str:
    """Where a server is to listen."""
    return str(Path(tempfile.mkdtemp(dir=stage.folder)) / f"{name}.sock") if way.local else str(free_port())


def is_up(address: str) -> bool:
    """True once somebody listens there."""
    return is_unix_listening(address) if address.startswith("/") else is_listening(int(address))


def service(name: str, argv: Callable[[Stage, str], list[str]], stop: signal.Signals = signal.SIGTERM) -> Serve:
    """A server that is one command, given its address."""

    @contextmanager
    def serve(stage: Stage, way: Way) -> Iterator[Served]:
        address = new_address(stage, way, name)
        with stage.server([*way.server(stage), *argv(stage, address)], lambda: is_up(address), stop) as running:
            yield Served(address, [running.pid])

    return serve


# ------------------------------------------------------------------- clients


def quantiles(raw: dict[str, float]) -> Sample:
    """What the load programs print; `user_ns` is of those that take long to start.

    `whole_rate` has the time before they measure in it, as CPU times have.
    """
    user = {"client_user_us": raw["user_ns"] / 1000} if "user_ns" in raw else {}
    whole = raw["total"] / (raw["seconds"] + WARM_MS / 1000)
    return {"rate": raw["count"] / raw["seconds"], "whole_rate": whole, **user,
            **{key.replace("_ns", "_us"): raw[key] / 1000 for key in ("p50_ns", "p99_ns", "p999_ns")}}


def load_program(protocol: str, connections: int, *options: str) -> Load:
    """tools/bench/load.c."""

    def load(stage: Stage, way: Way, served: Served) -> tuple[Sample, int]:
        timing = ["-w", str(WARM_MS), "-t", str(int(way.seconds * 1000))]
        argv = [program("load"), protocol, served.address, str(connections), *options, *timing]
        raw = json.loads(stage.run([*way.client(stage), *argv]))
        if not raw["count"]:
            raise BenchError("no request was answered")
        return quantiles(raw), raw["total"]

    return load


def redis_load(test: str, connections: int, pipeline: int) -> Load:
    """redis-benchmark; it takes a number of requests, no time."""

    def load(stage: Stage, way: Way, served: Served) -> tuple[Sample, int]:
        requests = int((40_000 if connections == 1 else 150_000) * (4 if pipeline > 1 else 1) * way.seconds)
        where = ["-s", served.address] if way.local else ["-h", "127.0.0.1", "-p", served.address]
        printed = stage.run([*way.client(stage), "redis-benchmark", *where, "-t", test, "--csv", "-c", str(connections),
                             "-P", str(pipeline), "-n", str(requests)])
        fields = [text.strip('"') for text in printed.splitlines()[-1].split(",")]
        figures = {"rate": float(fields[1]), "p50_us": float(fields[4]) * 1000, "p99_us": float(fields[6]) * 1000}
        return figures, requests

    return load


def own_client(argv: Callable[[str], list[str]]) -> Load:
    """A client of tools/bench/apps, with the seconds as its last word."""

    def load(stage: Stage, way: Way, served: Served) -> tuple[Sample, int]:
        raw = json.loads(stage.run([*way.client(stage), *argv(served.address), str(way.seconds)]))
        return quantiles(raw), raw["total"]

    return load


# ------------------------------------------------------------------- servers

NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    sendfile on;
    {upstream}
    server {{
        listen {listen};
        root {folder}/www;
        {location}
    }}
}}
"""
UPSTREAM = "upstream origin {{ server {origin}; keepalive 64; keepalive_requests 1000000000; }}"
PROXY = 'location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }'
HAPROXY = """\
global
    maxconn 1000
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind {listen}
    default_backend out
backend out
    http-reuse always
    server origin {origin}
"""
SMALL, LARGE = 612, 65536


def nginx_folder(stage: Stage, address: str, origin: str | None) -> Path:
    """Configuration and two files."""
    # Not named after the port: the kernel gives one out again within minutes.
    folder = Path(tempfile.mkdtemp(prefix="nginx-", dir=stage.folder))
    folder.chmod(0o755)
    (folder / "www").mkdir()
    (folder / "www" / "small").write_bytes(b"x" * SMALL)
    (folder / "www" / "large").write_bytes(b"x" * LARGE)
    stage.folder.chmod(0o755)
    to = None if origin is None else f"unix:{origin}" if origin.startswith("/") else f"127.0.0.1:{origin}"
    listen = f"unix:{address}" if address.startswith("/") else f"127.0.0.1:{address}"
    (folder / "nginx.conf").write_text(NGINX.format(
        folder=folder, user="user root;" if os.geteuid() == 0 else "", listen=listen,
        upstream=UPSTREAM.format(origin=to) if to else "", location=PROXY if to else ""))
    return folder


@contextmanager
def nginx(stage: Stage, way: Way, origin: str | None = None) -> Iterator[Served]:
    """Two files, or what `origin` serves."""
    address = new_address(stage, way, "nginx")
    folder = nginx_folder(stage, address, origin)
    argv = [*way.server(stage), "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with stage.server(argv, lambda: is_up(address), signal.SIGQUIT) as running:
        yield Served(address, [running.pid])


@contextmanager
def nginx_before_nginx(stage: Stage, way: Way) -> Iterator[Served]:
    """A reverse proxy and its origin."""
    with ExitStack() as stack:
        origin = stack.enter_context(nginx(stage, way))
        front = stack.enter_context(nginx(stage, way, origin.address))
        yield Served(front.address, [*front.pids, *origin.pids])


@contextmanager
def haproxy(stage: Stage, way: Way) -> Iterator[Served]:
    """HAProxy before nginx."""
    with nginx(stage, way) as origin:
        address = new_address(stage, way, "haproxy")

        def named(where: str) -> str:
            return f"unix@{where}" if where.startswith("/") else f"127.0.0.1:{where}"

        config = stage.folder / f"haproxy-{address.strip('/').replace('/', '-')}.cfg"
        config.write_text(HAPROXY.format(listen=named(address), origin=named(origin.address)))
        argv = [*way.server(stage), "haproxy", "-db", "-f", str(config)]
        with stage.server(argv, lambda: is_up(address), signal.SIGUSR1) as running:
            yield Served(address, [running.pid, *origin.pids])


def redis_server(stage: Stage, address: str) -> list[str]:
    """No persistence."""
    where = ["--port", "0", "--unixsocket", address] if address.startswith("/") else ["--port", address]
    return ["redis-server", *where, "--bind", "127.0.0.1", "--save", "", "--dir", str(stage.folder)]


def memcached_server(_: Stage, address: str) -> list[str]:
    """Two worker threads."""
    where = ["-s", address] if address.startswith("/") else ["-l", "127.0.0.1", "-p", address, "-U", "0"]
    return ["memcached", "-t", "2", "-u", "root", *where]


def go_address(address: str) -> str:
    """As hello.go wants it."""
    return address if address.startswith("/") else f"127.0.0.1:{address}"


def grpc_address(address: str) -> str:
    """As gRPC wants it."""
    return f"unix:{address}" if address.startswith("/") else f"127.0.0.1:{address}"


REDIS = service("redis", redis_server)
MEMCACHED = service("memcached", memcached_server)
GO = service("go", lambda _, address: [program("hello"), "serve", go_address(address)])
GRPC = service("grpc", lambda _, address: [sys.executable, HELLO_GRPC, "serve", grpc_address(address)])
NODE = service("node", lambda _, address: ["node", str(FILES / "hello.js"), address])


def go_load(connections: int) -> Load:
    """hello.go."""
    return own_client(lambda address: [program("hello"), "load", go_address(address), str(connections)])


def grpc_load() -> Load:
    """hello_grpc.py."""
    return own_client(lambda address: [sys.executable, HELLO_GRPC, "load", grpc_address(address)])


@contextmanager
def postgresql(stage: Stage, way: Way) -> Iterator[Served]:
    """A small database of pgbench's."""
    with postgres.serve(stage, way.server, free_port()) as (address, pid):
        yield Served(address, [pid])


def pgbench(clients: int) -> Load:
    """`pgbench -S`: one row by its key, each in a transaction of its own."""

    def load(stage: Stage, way: Way, served: Served) -> tuple[Sample, int]:
        printed = postgres.bench(stage, way.client, served.address, way.local, clients, max(1, round(way.seconds)))
        rate = re.search(r"tps = ([\d.]+)", printed)
        done = re.search(r"transactions actually processed: (\d+)", printed)
        if not rate or not done:
            raise BenchError(f"pgbench printed no figures: {printed[-200:]}")
        return {"rate": float(rate[1]), "p50_us": clients / float(rate[1]) * 1e6}, int(done[1])

    return load


# --------------------------------------------------------------------- cases


def plural(connections: int) -> str:
    """1 connection, 50 connections."""
    return f"{connections} connection{'s' if connections > 1 else ''}"


PG_CLIENTS = (1, 8)


def http(serve: Serve, file: str, connections: int) -> tuple[Serve, Load]:
    """GETs of one file."""
    return serve, load_program("http", connections, "-g", f"/{file}")


def everything(quick: bool) -> dict[str, dict[str, tuple[Serve, Load]]]:
    """By application, then by what is asked of it."""
    few = (1, 32)
    redis = {f"{test.upper()}, {plural(count)}, pipeline {depth}": (REDIS, redis_load(test, count, depth))
             for test in (("get",) if quick else ("get", "set")) for count in (1, 50) for depth in (1, 16)}
    return {
        "redis": redis,
        "nginx": {f"{size}, {plural(count)}": http(nginx, file, count)
                  for file, size in (("small", "612 bytes"), ("large", "64 KiB")) for count in few},
        "proxy": {f"nginx before nginx, 612 bytes, {plural(count)}": http(nginx_before_nginx, "small", count)
                  for count in few},
        "haproxy": {f"HAProxy before nginx, 612 bytes, {plural(count)}": http(haproxy, "small", count)
                    for count in few},
        "memcached": {f"get of 100 bytes, {plural(count)}": (MEMCACHED, load_program("memcached", count))
                      for count in (1, 32, 50)},
        "postgresql": {f"pgbench -S, {plural(count)}": (postgresql, pgbench(count)) for count in PG_CLIENTS},
        "go": {f"net/http at both ends, {plural(count)}": (GO, go_load(count)) for count in few},
        "grpc": {"Python at both ends, 64 bytes, 1 connection": (GRPC, grpc_load())},
        "node": {f"http server, {plural(count)}": http(NODE, "", count) for count in few},
    }


def ways(place: Place, seconds: float) -> dict[str, Way]:
    """The variants of every case."""
    return {"tcp": Way(natively, False, place, seconds), "unix": Way(natively, True, place, seconds),
            "sdrun": Way(under_sdrun(), False, place, seconds)}


NEEDS = {"redis": ("redis-server", "redis-benchmark"), "nginx": ("nginx",), "proxy": ("nginx",),
         "haproxy": ("haproxy", "nginx"), "memcached": ("memcached",), "node": ("node",)}


def needed(app: str, path: str) -> str | None:
    """What is missing for an application, for people."""
    missing = [name for name in NEEDS.get(app, ()) if not shutil.which(name, path=path)]
    return f"{', '.join(missing)}: not installed; `make bench` installs it" if missing else None


def floor_of(app: str, what: str, place: Place) -> dict[str, Ask]:
    """The case with sockets that cost nothing (floor.py), where it has one connection.

    With more of them an event loop has less work for each. Not PostgreSQL, which has a process for each.
    """
    questions = everything(False)[app]
    way = Way(natively, False, place, 1.5)
    if app == "postgresql":
        count = next(count for count in PG_CLIENTS if plural(count) in what)
        return {floor.FREE: floor.free(*questions[f"pgbench -S, {plural(1)}"], way, count)}
    if app not in ("redis", "nginx", "memcached") or what not in questions or plural(1) not in what:
        return {}
    return {floor.FREE: floor.free(*questions[what], way, depth=16 if "pipeline 16" in what else 1)}


def refuse(reason: str) -> Ask:
    """A variant that says why it is not there."""

    def ask(_: Stage) -> Sample:
        raise NotHere(reason)

    return ask


def cases(stage: Stage, names: list[str], quick: bool, places: dict[str, Place]) -> list[Case]:
    """Rows of the applications asked for."""
    found = []
    for app, questions in everything(quick).items():
        if app not in names:
            continue
        missing = needed(app, stage.env["PATH"])
        for what, (serve, load) in questions.items():
            for name, place in places.items():
                variants = {variant: refuse(missing) if missing else asked(serve, load, way)
                            for variant, way in ways(place, 0.7 if quick else 1.5).items()}
                variants |= {} if missing else floor_of(app, what, place)
                found.append(Case(app, {"what": what, "placement": name}, "rate", variants))
    return found


NAMES = list(everything(True))
