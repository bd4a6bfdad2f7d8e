# SPDX-License-Identifier: Apache-2.0
"""`sdbench micro`: one mechanism at a time, against the kernel's own ways and against the bare ring.

Peers are ways to start tools/bench/pair.c: with another transport, or behind a command that redirects what it sends, as
sdrun is one.  `--peer NAME=COMMAND` adds more of the second kind, such as a library in LD_PRELOAD.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.sdbench.machine import SDRUN, congestion_controls, placements
from tools.sdbench.results import Sample
from tools.sdbench.runner import Ask, Case
from tools.sdbench.stage import Stage, own_network, program, sockmap

Prefix = Callable[[Stage], list[str]]
Place = tuple[int, int] | None

SIZES = (8, 64, 1024, 4096, 65536, 1048576)
QUICK_SIZES = (8, 1024, 65536)
CUBIC_FROM = 65536
"""Below this the congestion control of a loopback connection makes no difference."""


@dataclass(frozen=True)
class Plan:
    """How thorough a run is."""

    quick: bool = False
    warm_ms: int = 150
    ms: int = 400
    peers: dict[str, str] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=placements)
    sizes: tuple[int, ...] = SIZES

    @property
    def timing(self) -> list[str]:
        """Options of the programs of tools/bench."""
        return ["-w", str(self.warm_ms), "-t", str(self.ms)]


def quick_plan(**kept: dict[str, str]) -> Plan:
    """For a look: minutes instead of an hour."""
    places = {name: place for name, place in placements().items() if name != "unpinned"}
    return Plan(quick=True, warm_ms=100, ms=150, sizes=QUICK_SIZES, places=places, **kept)


def natively(_: Stage) -> list[str]:
    """No prefix."""
    return []


def under_sdrun(*options: str) -> Prefix:
    """sdrun with options."""
    return lambda stage: stage.sdrun(*options)


def behind(command: str) -> Prefix:
    """A command of the person's own."""
    return lambda _: shlex.split(command)


def size_text(size: int) -> str:
    """8 B, 4 KiB, 1 MiB."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def pinned(place: Place) -> list[str]:
    """Options of the programs of tools/bench."""
    return [] if place is None else ["-a", str(place[0]), "-b", str(place[1])]


def pair(prefix: Prefix, transport: str, mode: str, size: int, place: Place, plan: Plan,
         congestion: str = "", pairs: int = 1, options: tuple[str, ...] = ()) -> Ask:
    """Round trips or a stream; `options` are pair.c's."""
    own = [transport, mode, str(size), "-p", str(pairs), *pinned(place), *plan.timing, *options]
    if congestion:
        own += ["-c", congestion]

    def ask(stage: Stage) -> Sample:
        raw = json.loads(stage.run([*prefix(stage), program("pair"), *own]))
        if not raw["count"]:
            return {}
        sample = {"rate": raw["count"] / raw["seconds"], "cpu_us": raw["cpu"] / raw["count"] * 1e6}
        if mode == "rtt":
            sample |= {key.replace("_ns", "_us"): raw[key] / 1000 for key in ("p50_ns", "p99_ns", "p999_ns")}
        else:
            sample["mib_s"] = raw["bytes"] / raw["seconds"] / (1 << 20)
        return sample

    return ask


def transports(mode: str, size: int, place: Place, plan: Plan, pairs: int = 1) -> dict[str, Ask]:
    """Everybody who carries bytes, kernel TCP as this machine is set up first."""
    controls = congestion_controls()
    chosen = controls[:1] + (["cubic"] if "cubic" in controls[1:] and size >= CUBIC_FROM else [])

    def way(prefix: Prefix, transport: str, congestion: str = "", *options: str) -> Ask:
        return pair(prefix, transport, mode, size, place, plan, congestion, pairs, options)

    result = {f"tcp {name}": way(natively, "tcp", name) for name in chosen}
    result |= {name: way(natively, name) for name in ("unix", "pipe", "ring")}
    if mode == "rtt" and size < CUBIC_FROM:  # the floor: a yield costs what a call costs that can be intercepted
        result["ring, kernel"] = way(natively, "ring", "", "-k")
    if size >= CUBIC_FROM:  # smaller ones cost less than the system call that would save a copy
        result["one copy"] = way(natively, "one-copy")
    result["sockmap"] = way(lambda _: sockmap(), "tcp")
    result |= {name: way(behind(command), "tcp") for name, command in plan.peers.items()}
    return {**result, "sdrun": way(under_sdrun(), "tcp")}


def rtt(plan: Plan) -> list[Case]:
    """Round trips."""
    return [Case("rtt", {"size": size_text(size), "placement": name}, "p50_us", transports("rtt", size, place, plan))
            for name, place in plan.places.items() for size in plan.sizes]


def sessions(plan: Plan) -> list[Case]:
    """Round trips on one core of two ends in sessions of their own, as servers and clients are (`-s` of pair.c)."""
    place = plan.places.get("one core")
    ends = {"tcp": (natively, "tcp"), "unix": (natively, "unix"), "pipe": (natively, "pipe"),
            "sdrun": (under_sdrun(), "tcp"), "never napping": (switched("without=nap"), "tcp")}
    return [Case("sessions", {"size": size_text(size)}, "p50_us", {
        name: pair(prefix, transport, "rtt", size, place, plan, options=("-s",))
        for name, (prefix, transport) in ends.items()}) for size in (8, 1024) if place]


def stream(plan: Plan) -> list[Case]:
    """Messages one way, the reader taking them one by one."""
    return [Case("stream", {"size": size_text(size), "placement": name}, "rate" if size <= 1024 else "mib_s",
                 transports("stream", size, place, plan)) for name, place in plan.places.items() for size in plan.sizes]


def batch(plan: Plan) -> list[Case]:
    """Small messages one way, the reader taking what is there."""
    return [Case("batch", {"size": "8 B", "placement": name}, "rate", transports("batch", 8, place, plan))
            for name, place in plan.places.items()]


def pairs(plan: Plan) -> list[Case]:
    """Several pairs of processes at the same time."""
    return [Case("pairs", {"pairs": str(count), "mode": mode, "size": size_text(size), "placement": name},
                 "rate", transports(mode, size, place, plan, count))
            for count in ((2,) if plan.quick else (2, 3, 4)) for mode, size in (("rtt", 8), ("stream", 4096))
            for name, place in plan.places.items()]


def crowd(prefix: Prefix, connections: int, active: int, place: Place, plan: Plan, *options: str) -> Ask:
    """Many connections; see many.c."""
    own = [str(connections), str(active), *pinned(place), *plan.timing, *options]

    def ask(stage: Stage) -> Sample:
        raw = json.loads(stage.run([*prefix(stage), program("many"), *own]))
        if not active:
            return {"cpu_ms_s": raw["cpu"] / raw["seconds"] * 1000, "kib": raw["pss_kib"] / connections}
        if not raw["count"]:
            return {}
        return {"rate": raw["count"] / raw["seconds"], "cpu_us": raw["cpu"] / raw["count"] * 1e6,
                **{key.replace("_ns", "_us"): raw[key] / 1000 for key in ("p50_ns", "p99_ns", "p999_ns")}}

    return ask


def many(plan: Plan) -> list[Case]:
    """1 to 10,000 connections with a part of them active."""
    shapes = [(connections, max(1, connections * percent // 100), percent)
              for connections in ((100, 1000) if plan.quick else (1, 10, 100, 1000, 10_000))
              for percent in ((10, 100) if plan.quick else (1, 10, 100)) if connections * percent >= 100]
    return [Case("many", {"connections": str(count), "active": f"{percent} %", "placement": name}, "rate", {
        "tcp": crowd(natively, count, active, place, plan),
        "unix": crowd(natively, count, active, place, plan, "-u"),
        "sockmap": crowd(lambda _: sockmap(), count, active, place, plan),
        "sdrun": crowd(under_sdrun(), count, active, place, plan),
    }, rounds=3) for count, active, percent in shapes for name, place in plan.places.items()]


def idle(plan: Plan) -> list[Case]:
    """Open connections on which nothing happens: CPU time and memory."""
    count = 1000
    longer = Plan(warm_ms=1500, ms=1000)  # whatever is still being taken care of is over by then
    ways = {"tcp": crowd(natively, count, 0, None, longer), "unix": crowd(natively, count, 0, None, longer, "-u"),
            "sdrun": crowd(under_sdrun(), count, 0, None, longer),
            "sdrun eager": crowd(under_sdrun("--set", "upgrade=eager"), count, 0, None, longer)}
    return [Case("idle", {"connections": str(count), "what": "CPU"}, "cpu_ms_s", ways, rounds=3),
            Case("idle", {"connections": str(count), "what": "memory of both processes per connection"}, "kib", ways,
                 rounds=1 if plan.quick else 3)]


def rate(prefix: Prefix, what: str, place: Place, plan: Plan, *options: str) -> Ask:
    """How often; see rates.c."""

    def ask(stage: Stage) -> Sample:
        argv = [*own_network(), *prefix(stage), program("rates"), what, *options, *pinned(place), *plan.timing]
        raw = json.loads(stage.run(argv))
        if not raw["count"]:
            return {}
        each = raw["seconds"] / raw["count"]
        return {"rate": 1 / each, "ns": each * 1e9, "cpu_us": raw["cpu"] / raw["count"] * 1e6}

    return ask


def setup(plan: Plan) -> list[Case]:
    """Connections per second, and those that carry one request; `kernel` as in `calls`."""
    return [Case("setup", {"what": what, "placement": name}, "rate", {
        "tcp": rate(natively, mode, place, plan), "kernel": rate(natively, mode, place, plan, "-k"),
        "sdrun": rate(under_sdrun(), mode, place, plan),
        "sdrun --no-accel": rate(under_sdrun("--no-accel"), mode, place, plan),
    }) for mode, what in (("setup", "connect and close"), ("short", "one request a connection"))
        for name, place in plan.places.items()]


def fork(plan: Plan) -> list[Case]:
    """Children per second of a process that has a connection."""
    return [Case("fork", {"placement": name}, "rate", {"native": rate(natively, "fork", place, plan),
                                                       "sdrun": rate(under_sdrun(), "fork", place, plan)})
            for name, place in plan.places.items() if name != "unpinned"]


def calls(plan: Plan) -> list[Case]:
    """What a call costs that is not a socket's; `filter`, `kernel`: what interception takes (rates.c)."""
    place = next(iter(plan.places.values()))
    return [Case("calls", {"call": what}, "ns", {
        "native": rate(natively, what, place, plan), "filter": rate(natively, what, place, plan, "-f"),
        "kernel": rate(natively, what, place, plan, "-k"), "sdrun": rate(under_sdrun(), what, place, plan),
        "sdrun patch=off": rate(under_sdrun("--set", "patch=off"), what, place, plan),
    }) for what in ("getppid", "read", "poll", "sigprocmask")]


def startup(_: Plan) -> list[Case]:
    """From fork to exit of a program that does nothing, and of one that makes a socket."""

    def timed(prefix: Prefix, argv: list[str]) -> Ask:
        def ask(stage: Stage) -> Sample:
            words = [*prefix(stage), *argv]
            before = time.perf_counter()
            stage.run(words)
            return {"ms": (time.perf_counter() - before) * 1000}

        return ask

    # A report makes the program's exit wait for the supervisor, which is not what most people run.
    return [Case("startup", {"what": what}, "ms", {
        "native": timed(natively, argv), "sdrun": timed(lambda _: [str(SDRUN), "--"], argv),
        "sdrun --report": timed(under_sdrun(), argv)}, rounds=11)
            for what, argv in (("true", ["/bin/true"]), ("one socket", [program("rates"), "once"]))]


SWITCHES = {
    "sites not patched": "patch=off",
    "no short way": "without=short",
    "always a doorbell": "without=arming",
    "never yielding": "without=yield",
    "whole ring in turn": "without=window",
    "through the caches": "without=past",
    "never spinning": "spin_us=0",
    "spinning 20 us": "spin_us=20",
    "spinning 1 ms": "spin_us=1000",
    "never napping": "without=nap",
    "ring 16 KiB": "ring=16KiB",
    "ring 64 KiB": "ring=64KiB",
    "ring 256 KiB": "ring=256KiB",
    "upgrade eager": "upgrade=eager",
    "upgrade never": "upgrade=never",
}


def switched(setting: str) -> Prefix:
    """sdrun with one value changed."""
    return under_sdrun("--set", setting)


def techniques(plan: Plan) -> list[Case]:
    """Each technique switched off alone."""
    cases = []
    for mode, size in (("rtt", 8), ("stream", 8), ("stream", 65536)):
        main = "p50_us" if mode == "rtt" else "rate"
        for name, place in plan.places.items():
            ways = {"sdrun": pair(under_sdrun(), "tcp", mode, size, place, plan)}
            ways |= {switch: pair(switched(setting), "tcp", mode, size, place, plan)
                     for switch, setting in SWITCHES.items()}
            case = {"mode": mode, "size": size_text(size), "placement": name}
            cases.append(Case("switch", case, main, ways, rounds=3))
            if size == 8:
                prefixes = {"sdrun": under_sdrun(), "a lock": switched("without=tokens")}
                ways = {switch: pair(prefix, "tcp", mode, size, place, plan, options=("-m",))
                        for switch, prefix in prefixes.items()}
                cases.append(Case("tokens", case, main, ways, rounds=3))
    cases += [Case("barriers", {"connections": "100", "active": "10 %", "placement": name}, "rate", {
        switch: crowd(prefix, 100, 10, place, plan)
        for switch, prefix in (("sdrun", under_sdrun()), ("one each", switched("without=batching")))}, rounds=3)
        for name, place in plan.places.items()]
    return cases


BENCHES: dict[str, Callable[[Plan], list[Case]]] = {
    "rtt": rtt, "sessions": sessions, "stream": stream, "batch": batch, "pairs": pairs, "many": many, "idle": idle,
    "setup": setup, "fork": fork, "calls": calls, "startup": startup, "techniques": techniques,
}
"""By the names that people give to --only."""
