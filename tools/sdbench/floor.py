# SPDX-License-Identifier: Apache-2.0
"""The floor of an application's case: what server and client take for a request where their sockets cost nothing.

tools/bench/apps/free.c plays one exchange to each of them again and again, without a system call for any socket, in the
same run as all else. With one connection a request takes what both take, one after the other: nobody who carries the
bytes can be faster. And bytes have to get to the other end somehow: what two ends of the bare ring take for that is
measured beside it (`between_us`).
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from tools.sdbench.machine import PROGRAMS
from tools.sdbench.micro import Place, pinned
from tools.sdbench.results import Sample
from tools.sdbench.runner import Ask
from tools.sdbench.stage import BenchError, Stage, program
from tools.sdbench.ways import Load, Serve, Way

FREE = "free sockets"
"""The name of the variant, for the report too."""
SERVER_AFTER, CLIENT_AFTER = 200, 500
"""Exchanges until each has its turn; the other waits for it meanwhile."""


@dataclass(frozen=True)
class Freed(Way):
    """A way on which both ends have the library of free.c."""

    def server(self, stage: Stage) -> list[str]:
        return [*super().server(stage), *self._preloaded(stage, "server", SERVER_AFTER)]

    def client(self, stage: Stage) -> list[str]:
        return [*super().client(stage), *self._preloaded(stage, "client", CLIENT_AFTER)]

    def _preloaded(self, stage: Stage, end: str, after: int) -> list[str]:
        return ["env", f"LD_PRELOAD={PROGRAMS / 'free.so'}", f"SDBENCH_FREE={file_of(stage, end)}",
                f"SDBENCH_FREE_AFTER={after}"]


def file_of(stage: Stage, end: str) -> Path:
    """Where an end leaves its seconds. Whoever it runs as can write there."""
    folder = stage.folder / "free"
    if not folder.exists():
        stage.folder.chmod(0o755)
        folder.mkdir()
        folder.chmod(0o1777)
    return folder / end


def seconds_of(stage: Stage, end: str) -> float:
    """What it has taken for an exchange. BenchError if it was not asked often enough."""
    file = file_of(stage, end)
    found = [float(line) for line in file.read_text().splitlines()] if file.exists() else []
    if not found:
        raise BenchError(f"the {end} made fewer than {CLIENT_AFTER} exchanges, or waits as free.c does not know")
    file.unlink()
    return statistics.median(found)


def hand_over(stage: Stage, way: Way) -> float:
    """Seconds of a round trip on the bare ring."""
    raw = json.loads(stage.run([program("pair"), "ring", "rtt", "8", *pinned(way.place), "-w", "50", "-t", "150"]))
    return float(raw["p50_ns"]) / 1e9


def rate(server: float, client: float, connections: int, place: Place) -> float:
    """Requests a second. Of one connection one after the other; else as many at a time as there are CPUs for them."""
    if connections == 1 or (place and place[0] == place[1]):
        return 1 / (server + client)
    return 1 / max(server, client) if place else (os.cpu_count() or 1) / (server + client)


def free(serve: Serve, load: Load, way: Way, connections: int = 1, depth: int = 1) -> Ask:
    """Free sockets at both ends; `load` is that of one connection, also where the case has more.

    `depth`: how many requests are an exchange.
    """
    freed = Freed(way.prefix, way.local, way.place, way.seconds)

    def ask(stage: Stage) -> Sample:
        for end in ("server", "client"):
            file_of(stage, end).unlink(missing_ok=True)
        with serve(stage, freed) as served:
            load(stage, freed, served)
        server, client = (seconds_of(stage, end) / depth for end in ("server", "client"))
        per_second = rate(server, client, connections, way.place)
        return {"rate": per_second, "p50_us": connections * depth / per_second * 1e6, "cpu_us": (server + client) * 1e6,
                "server_us": server * 1e6, "client_us": client * 1e6, "between_us": hand_over(stage, way) / depth * 1e6}

    return ask
