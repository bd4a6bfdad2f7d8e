# SPDX-License-Identifier: Apache-2.0
"""`sdbench -- CMD`: a person's own command, natively and under sdrun in turn, and a verdict."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tools.sdbench.machine import SDRUN, describe
from tools.sdbench.results import Results, Row, Sample, short
from tools.sdbench.runner import add_reports
from tools.sdbench.stage import BenchError, Stage

NATIVE, UNDER = "native", "sdrun"
NO_DIFFERENCE = 1.02
"""A difference that is smaller than this is not worth a word."""


@dataclass(frozen=True)
class Job:
    """A command and how often."""

    argv: list[str]
    rounds: int
    sets: list[str]


def once(stage: Stage, argv: list[str], output: Path) -> Sample:
    """Wall and CPU time of the command with its children; its output goes to a file. BenchError if it fails."""
    with output.open("wb") as out:
        before = time.perf_counter()
        try:
            running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                       env=stage.env)
        except OSError as error:
            raise BenchError(f"{argv[0]}: {error.strerror}") from None
        try:
            _, status, used = os.wait4(running.pid, 0)
        except KeyboardInterrupt:
            running.kill()
            raise
        took = time.perf_counter() - before
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode != 0:
        last = output.read_text(errors="replace").strip().splitlines()[-1:]
        raise BenchError(f"{' '.join(argv)} ended with status {running.returncode}: {' '.join(last)}")
    return {"s": took, "cpu_s": used.ru_utime + used.ru_stime}


def measure(stage: Stage, job: Job, console: Console) -> Row:
    """All rounds; the order alternates.

    One run under sdrun that is not timed comes first: it reads files from disk and tells what carried the connections.
    The others are without a report, for which the command's end would have to wait.
    """
    row = Row("command", {"command": " ".join(job.argv)}, "s", NATIVE)
    options = [word for value in job.sets for word in ("--set", value)]
    with console.status("once, to warm up"):
        first = once(stage, [*stage.sdrun(*options), *job.argv], stage.folder / f"output-{UNDER}")
        add_reports(row, UNDER, first, stage.reports())
    for number in range(job.rounds):
        for name in (NATIVE, UNDER) if number % 2 == 0 else (UNDER, NATIVE):
            with console.status(f"round {number + 1} of {job.rounds}: {name}"):
                argv = [str(SDRUN), *options, "--", *job.argv] if name == UNDER else job.argv
                sample = once(stage, argv, stage.folder / f"output-{name}")
            row.samples.setdefault(name, []).append(sample)
    return row


def verdict(row: Row) -> list[str]:
    """What it came to, for people."""
    lines = []
    for metric, what in (("s", "wall time"), ("cpu_s", "CPU time")):
        native, under, ratio = row.median(NATIVE, metric), row.median(UNDER, metric), row.ratio(UNDER, metric)
        if native is None or under is None or ratio is None:
            continue
        lines.append(f"{what}: natively {short(native)} s, under sdrun {short(under)} s: {ratio} times")
    ratio = row.ratio(UNDER)
    if ratio is None:
        word = "cannot be compared"
    elif ratio.low > NO_DIFFERENCE:
        word = f"faster under sdrun, {short(ratio.median)} times"
    elif ratio.high < 1 / NO_DIFFERENCE:
        word = f"slower under sdrun, {short(1 / ratio.median)} times"
    else:
        word = "no clear difference: the rounds do not agree, or it is less than 2 %"
    counters = row.counters.get(UNDER, {})
    carried, total = counters.get("conns_shm", 0), counters.get("conns_total", 0)
    lines.append(f"{carried:.0f} of {total:.0f} ends of connections on shared memory"
                 + "".join(f"; {count:.0f} on TCP: {name.removeprefix('tcp: ')}" for name, count in counters.items()
                           if name.startswith("tcp: ")))
    return [*lines, f"verdict: {word}"]


def run(stage: Stage, job: Job, output: Path, console: Console) -> int:
    """Measure, say and keep it."""
    row = measure(stage, job, console)
    for line in verdict(row):
        console.print(line, markup=False, highlight=False)
    Results("command", describe(), {"rounds": job.rounds, "set": job.sets}, [row]).save(output)
    return 0
