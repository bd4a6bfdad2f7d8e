# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the monitor and its clients' programs (`--metrics [HOST:]PORT` or `/PATH`), from its own loop.

As much HTTP as a scrape needs: whatever is asked, the answer is the metrics. Who asks is a stranger: few at a time, a
request of a few kilobytes, five seconds for all of it. Supervisors are asked for their counters then (`gather`), once
for all who wait; those that do not tell within a second are left out, and counted.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from monitor.answers import Told
from monitor.programs import families
from sdlib.wire import trees

_CLIENTS_MAX: Final = 16
_REQUEST_MAX: Final = 8192
_PATIENCE_S: Final = 5.0


Gather = Callable[[Callable[[list[Told], int], None]], None]


class _Look(Collector):
    """What `sdctl status` shows, and what the clients have told, as families."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self.told: list[Told] = []
        self.missing = 0

    def collect(self) -> Iterator[Metric]:
        """From one look."""
        yield from self._of_monitor(self._status())
        yield GaugeMetricFamily("sdmonitor_silent_clients", "Clients that did not tell of their programs in time",
                                value=self.missing)
        yield from families({**one.paper, "uid": one.uid} for one in self.told if trees.well_formed(one.paper))

    @staticmethod
    def _of_monitor(now: dict[str, Any]) -> Iterator[Metric]:
        yield GaugeMetricFamily("sdmonitor_start_time_seconds", "When it started", value=now["started"])
        clients = GaugeMetricFamily("sdmonitor_clients", "Supervisors that are connected, by user", labels=["uid"])
        users = [str(client["uid"]) for client in now["clients"]]
        for uid in sorted(set(users)):
            clients.add_metric([uid], users.count(uid))
        yield clients
        yield GaugeMetricFamily("sdmonitor_open_offers", "Offers that wait for their other end",
                                value=now["offers_open"])
        yield GaugeMetricFamily("sdmonitor_segments", "Connections that hold shared memory", value=now["segments"])
        yield GaugeMetricFamily("sdmonitor_memory_bytes", "Ring memory in use", value=now["memory"])
        yield GaugeMetricFamily("sdmonitor_memory_limit_bytes", "Ring memory that may be in use",
                                value=now["limits"]["memory"])
        memory = GaugeMetricFamily("sdmonitor_user_memory_bytes", "Ring memory in use, by user", labels=["uid"])
        for uid, size in now["memory_by_user"].items():
            memory.add_metric([uid], size)
        yield memory
        events = CounterMetricFamily("sdmonitor_events", "Offers, pairs and refusals, by what became of them",
                                     labels=["event"])
        for event, times in now["counts"].items():
            events.add_metric([event], times)
        yield events


@dataclass
class _Visitor:
    """One scrape."""

    sock: socket.socket
    since: float
    request: bytearray = field(default_factory=bytearray)
    answer: bytes = b""


def listen(where: str) -> socket.socket:
    """A listening socket at [HOST:]PORT or an absolute path; OSError, or ValueError for what is neither."""
    if where.startswith("/"):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(where).st_mode):
                os.unlink(where)
        made = socket.socket(socket.AF_UNIX)
        try:
            made.bind(where)
            os.chmod(where, 0o600)
            made.listen()
        except OSError:
            made.close()
            raise
        return made
    host, _, port = where.rpartition(":")
    if not port.isdecimal() or int(port) > 0xFFFF:
        raise ValueError(f"{where}: neither [HOST:]PORT nor a path")
    host = host.strip("[]") or "127.0.0.1"
    return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


class Metrics:
    """The listening socket and those who are being answered, in the server's selector."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector,
                 status: Callable[[], dict[str, Any]], gather: Gather) -> None:
        """`status`: Server.status of all users; `gather`: Answers.gather."""
        self._listener = listener
        self._selector = selector
        self._registry = CollectorRegistry()
        self._look = _Look(status)
        self._registry.register(self._look)
        self._gather = gather
        self._visitors: list[_Visitor] = []
        self._waiting: list[_Visitor] = []
        self._gathering = False
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    @property
    def where(self) -> str:
        """For the log."""
        name = self._listener.getsockname()
        return name if isinstance(name, str) else f"http://{name[0]}:{name[1]}/metrics"

    def _accept(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            now = time.monotonic()
            for late in [one for one in self._visitors if now - one.since > _PATIENCE_S]:
                self._drop(late)
            if len(self._visitors) >= _CLIENTS_MAX:
                sock.close()
                return
            visitor = _Visitor(sock, now)
            self._visitors.append(visitor)
            self._selector.register(sock, selectors.EVENT_READ, self._turn_of(visitor))

    def _turn(self, visitor: _Visitor) -> None:
        try:
            over = self._send(visitor) if visitor.answer else self._read(visitor)
        except BlockingIOError:
            return
        except OSError:
            over = True
        if over:
            self._drop(visitor)

    def _read(self, visitor: _Visitor) -> bool:
        """True: nothing more is to be done."""
        data = visitor.sock.recv(_REQUEST_MAX)
        visitor.request += data
        if not data or len(visitor.request) > _REQUEST_MAX:
            return True
        if b"\r\n\r\n" not in visitor.request and b"\n\n" not in visitor.request:
            return False
        self._selector.unregister(visitor.sock)
        self._waiting.append(visitor)
        if not self._gathering:
            self._gathering = True
            self._gather(self._answer)
        return False

    def _answer(self, told: list[Told], missing: int) -> None:
        """To all who wait."""
        self._gathering = False
        self._look.told, self._look.missing = told, missing
        body = generate_latest(self._registry)
        head = f"HTTP/1.0 200 OK\r\nContent-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\nContent-Length: {len(body)}\r\n\r\n"
        waiting, self._waiting = self._waiting, []
        for visitor in waiting:
            visitor.answer = head.encode() + body
            self._selector.register(visitor.sock, selectors.EVENT_WRITE, self._turn_of(visitor))

    def _turn_of(self, visitor: _Visitor) -> Callable[[int], None]:
        return lambda _mask: self._turn(visitor)

    @staticmethod
    def _send(visitor: _Visitor) -> bool:
        visitor.answer = visitor.answer[visitor.sock.send(visitor.answer):]
        return not visitor.answer

    def _drop(self, visitor: _Visitor) -> None:
        self._visitors.remove(visitor)
        if visitor in self._waiting:  # its answer comes to nobody; those behind it still wait for theirs
            self._waiting.remove(visitor)
        else:
            self._selector.unregister(visitor.sock)
        visitor.sock.close()

    def close(self) -> None:
        """Nobody is answered any more."""
        for visitor in tuple(self._visitors):
            self._drop(visitor)
        self._selector.unregister(self._listener)
        if self._listener.family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                os.unlink(self._listener.getsockname())
        self._listener.close()
