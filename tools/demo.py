# SPDX-License-Identifier: Apache-2.0
"""make demo: redis and nginx, natively and under sdrun, as one table.

Native rounds and rounds under sdrun take turns, so that what else the machine does meets both alike; each figure is
the median of its rounds.  The reports of both ends say how many connections shared memory carried: a demo in which
it carried none has failed, however good its figures are.

Bounds: about 80 seconds; every server has its own folder and port on 127.0.0.1, and whatever was started is gone
at the end, also after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.groups import Leader
from tools.net import free_port, is_listening

SDRUN = Path(sys.executable).parent / "sdrun"
ROUNDS = 3
REDIS_REQUESTS = {1: 40_000, 50: 80_000}
WRK_SECONDS = 3
LONGEST_STEP_S = 60.0
LONGEST_DEMO_S = 300.0

NGINX = """\
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    keepalive_requests 100000000;
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


class DemoError(Exception):
    """A step failed; the text says which and why."""


@dataclass(frozen=True)
class Sample:
    """What one client measured: requests per second, and latencies in microseconds."""

    rate: float
    p50: float
    p99: float


@dataclass
class Row:
    """One line of the table: samples natively and under sdrun."""

    name: str
    native: list[Sample] = field(default_factory=list)
    sdrun: list[Sample] = field(default_factory=list)


@dataclass
class Tally:
    """Ends of connections, summed over all reports."""

    total: int = 0
    shm: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, report: Path) -> None:
        """Add one report; DemoError if it does not appear, because the last process is gone by now."""
        deadline = time.monotonic() + 20
        while not report.exists():
            if time.monotonic() > deadline:
                raise DemoError(f"no report {report.name} within 20 s of the program's end")
            time.sleep(0.02)
        connections = json.loads(report.read_text())["connections"]
        self.total += connections["total"]
        self.shm += connections["shm"]
        for reason, count in connections["tcp_reasons"].items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count


class Stage:
    """Starts programs, natively or under sdrun, in one temporary folder, and ends what it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tally = Tally()
        self.accelerated = False
        self._running: list[Leader] = []
        self._reports: list[Path] = []
        self._count = 0

    def _spawn(self, argv: Sequence[str], stdout: int) -> Leader:
        """Start a command in a session of its own, its complaints in a file."""
        self._count += 1
        if self.accelerated:
            report = self.folder / f"report-{self._count}.json"
            self._reports.append(report)
            argv = [str(SDRUN), "--report", str(report), "--", *argv]
        env = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin", "LC_ALL": "C.UTF-8"}
        with (self.folder / f"stderr-{self._count}").open("wb") as errors:
            program = Leader(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=errors, env=env)
        self._running.append(program)
        return program

    def _complaint(self) -> str:
        """The last line that the latest program wrote to its stderr."""
        lines = (self.folder / f"stderr-{self._count}").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    @contextmanager
    def server(self, port: int, stop: signal.Signals, *argv: str) -> Iterator[None]:
        """A server that listens on `port` in the body and is gone after it."""
        program = self._spawn(argv, subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not is_listening(port):
            if program.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"{argv[0]} does not listen on port {port}: {self._complaint()}")
            time.sleep(0.02)
        yield
        program.send_signal(stop)
        try:
            program.wait(15)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{argv[0]} did not end within 15 s of {stop.name}") from None

    def client(self, *argv: str) -> str:
        """Run a client to its end and return what it printed."""
        program = self._spawn(argv, subprocess.PIPE)
        try:
            printed, _ = program.communicate(timeout=LONGEST_STEP_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{' '.join(argv)} did not end within {LONGEST_STEP_S:.0f} s") from None
        if program.returncode != 0:
            raise DemoError(f"{' '.join(argv)} ended with status {program.returncode}: {self._complaint()}")
        return printed.decode()

    def collect(self) -> None:
        """Read the reports of the programs that have ended."""
        for report in self._reports:
            self.tally.add(report)
        self._reports.clear()

    def close(self) -> None:
        """Kill the process groups that are left, all of our own making."""
        for program in self._running:
            program.kill_group()
            with suppress(subprocess.TimeoutExpired):
                program.wait(5)


def redis_sample(line: str) -> Sample:
    """A line of `redis-benchmark --csv`: test, rps, avg, min, p50, p95, p99, max; milliseconds."""
    fields = [text.strip('"') for text in line.split(",")]
    return Sample(float(fields[1]), float(fields[4]) * 1000, float(fields[6]) * 1000)


def redis_round(stage: Stage, rows: dict[str, Row]) -> None:
    """One server, and a benchmark with 1 and with 50 connections."""
    port = free_port()
    server = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no",
              "--dir", str(stage.folder)]
    with stage.server(port, signal.SIGTERM, *server):
        for connections, requests in REDIS_REQUESTS.items():
            printed = stage.client("redis-benchmark", "-h", "127.0.0.1", "-p", str(port), "-t", "set,get", "--csv",
                                   "-c", str(connections), "-n", str(requests))
            for line in printed.splitlines()[1:]:
                name = f"redis {line.split(',')[0].strip(chr(34))}, {plural(connections)}"
                note(stage, rows, name, redis_sample(line))


def wrk_sample(printed: str) -> Sample:
    """The output of `wrk --latency`; DemoError if it saw errors or has no figures."""
    if "Socket errors" in printed or "Non-2xx" in printed:
        raise DemoError(f"wrk saw errors: {printed.strip().splitlines()[-3:]}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    latency = dict(re.findall(r"(50|99)%\s+([\d.]+[a-z]+)", printed))
    if not rate or len(latency) != 2:
        raise DemoError("wrk printed no figures")
    unit = {"us": 1.0, "ms": 1e3, "s": 1e6}
    times = {}
    for percent, text in latency.items():
        found = re.fullmatch(r"([\d.]+)(us|ms|s)", text)
        if not found:
            raise DemoError(f"wrk printed the latency {text!r}")
        times[percent] = float(found[1]) * unit[found[2]]
    return Sample(float(rate[1]), times["50"], times["99"])


def nginx_round(stage: Stage, rows: dict[str, Row]) -> None:
    """One nginx, and a keep-alive client with one connection."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="nginx-", dir=stage.folder))
    (folder / "www").mkdir()
    (folder / "www" / "index.html").write_bytes(b"x" * 612)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, user="user root;" if os.geteuid() == 0 else ""))
    with stage.server(port, signal.SIGQUIT, "nginx", "-p", str(folder), "-c", str(config)):
        for connections in (1, 20):
            printed = stage.client("wrk", "--latency", "-t", "1", "-c", str(connections), "-d", f"{WRK_SECONDS}s",
                                   f"http://127.0.0.1:{port}/")
            note(stage, rows, f"nginx 612 bytes, {plural(connections)}", wrk_sample(printed))


def plural(connections: int) -> str:
    """1 connection, 50 connections."""
    return f"{connections} connection{'s' if connections > 1 else ''}"


def note(stage: Stage, rows: dict[str, Row], name: str, sample: Sample) -> None:
    """File a sample under its row and side."""
    row = rows.setdefault(name, Row(name))
    (row.sdrun if stage.accelerated else row.native).append(sample)


def median(samples: list[Sample]) -> Sample:
    """Median of each figure."""
    return Sample(*(statistics.median(values) for values in
                    zip(*((sample.rate, sample.p50, sample.p99) for sample in samples), strict=True)))


def render(rows: dict[str, Row]) -> Table:
    """The one table."""
    table = Table(title=f"natively | under sdrun, median of {ROUNDS} rounds each; latencies in µs")
    table.add_column("what", no_wrap=True)
    for heading in ("requests/s", "p50", "p99", "requests/s", "p50", "p99", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows.values():
        before, after = median(row.native), median(row.sdrun)
        figures = [text for sample in (before, after)
                   for text in (f"{sample.rate:,.0f}", f"{sample.p50:.0f}", f"{sample.p99:.0f}")]
        table.add_row(row.name, *figures, f"{after.rate / before.rate:.1f}x")
    return table


def measure(stage: Stage, console: Console) -> dict[str, Row]:
    """All rounds; the order of native and sdrun alternates."""
    rows: dict[str, Row] = {}
    rounds: list[Callable[[Stage, dict[str, Row]], None]] = [redis_round, nginx_round]
    started = time.monotonic()
    for number in range(ROUNDS):
        for run in rounds:
            for accelerated in (False, True) if number % 2 == 0 else (True, False):
                if time.monotonic() - started > LONGEST_DEMO_S:
                    raise DemoError(f"took more than {LONGEST_DEMO_S:.0f} s, much more than it should; giving up")
                stage.accelerated = accelerated
                how = "under sdrun" if accelerated else "natively"
                with console.status(f"round {number + 1} of {ROUNDS}: {run.__name__.split('_')[0]} {how}"):
                    run(stage, rows)
                    stage.collect()
    return rows


def missing_programs() -> list[str]:
    """Commands that the demo needs and PATH does not have."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    return [name for name in ("redis-server", "redis-benchmark", "nginx", "wrk") if not shutil.which(name, path=path)]


def main() -> int:
    """Exit status 0 only if everything ran and shared memory carried connections."""
    console = Console(width=None if sys.stdout.isatty() else 118)
    if missing := missing_programs():
        console.print(f"demo: not installed: {', '.join(missing)}; `make demo` installs them")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="sdrun-demo-") as name:
        stage = Stage(Path(name))
        try:
            rows = measure(stage, console)
        except DemoError as error:
            console.print(f"demo: {error}", markup=False)
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            stage.close()
    console.print(render(rows))
    tally = stage.tally
    console.print(f"{tally.shm} of {tally.total} connection ends under sdrun were carried by shared memory"
                  + "".join(f"; {count} on TCP: {reason}" for reason, count in sorted(tally.reasons.items())))
    if tally.shm == 0:
        console.print("demo: shared memory carried no connection, so the figures show nothing")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
