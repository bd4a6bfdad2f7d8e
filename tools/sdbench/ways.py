# SPDX-License-Identifier: Apache-2.0
"""How an application's server and client are connected, and what is asked of them."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tools.sdbench import cputime
from tools.sdbench.micro import Place, Prefix
from tools.sdbench.results import Sample
from tools.sdbench.runner import Ask
from tools.sdbench.stage import Stage


@dataclass(frozen=True)
class Way:
    """TCP or a unix socket, natively or under sdrun, on which CPUs."""

    prefix: Prefix
    local: bool
    place: Place
    seconds: float

    def server(self, stage: Stage) -> list[str]:
        """The words before a server's command."""
        return [*self._pinned(0), *self.prefix(stage)]

    def client(self, stage: Stage) -> list[str]:
        """The words before a client's command."""
        return [*self._pinned(1), *self.prefix(stage)]

    def _pinned(self, side: int) -> list[str]:
        return ["taskset", "-c", str(self.place[side])] if self.place else []


@dataclass(frozen=True)
class Served:
    """A server that runs: where, and whose CPU time counts."""

    address: str
    """A port or the path of a socket."""
    pids: list[int]


Serve = Callable[[Stage, Way], AbstractContextManager[Served]]
Load = Callable[[Stage, Way, Served], tuple[Sample, int]]
"""Figures, and how many requests were made in all."""


def asked(serve: Serve, load: Load, way: Way) -> Ask:
    """Start, load, stop."""

    def ask(stage: Stage) -> Sample:
        with serve(stage, way) as served:
            own = _of_children()
            before = cputime.of_servers(served.pids)
            sample, requests = load(stage, way, served)
            server = cputime.of_servers(served.pids) - before
            client = _of_children() - own
        per_request = {"cpu_us": server.all + client.all, "server_user_us": server.user, "client_user_us": client.user}
        return {**{name: seconds / requests * 1e6 for name, seconds in per_request.items()}, **sample}

    return ask


def _of_children() -> cputime.Used:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return cputime.Used(used.ru_utime + used.ru_stime, used.ru_utime)
