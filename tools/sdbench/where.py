# SPDX-License-Identifier: Apache-2.0
"""`where`: what the time of a message, of a KiB and of a hand-over is for, by samples of what runs (perf).

Both ends of pair.c are sampled by the CPU's clock, with their call chains; what a function of the kernel or an address
of the library is for, tools/purposes.py knows. A sample is worth what the run took by samples, so the parts add up to
the CPU time of a message. Sampling itself takes some percent of it, the same for everybody.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sdlib import abi
from tools import purposes
from tools.instructions import IMAGE_ELF
from tools.sdbench.micro import Place, Plan, Prefix, natively, pinned, size_text, under_sdrun
from tools.sdbench.results import Row, Sample, short
from tools.sdbench.runner import Ask, Case
from tools.sdbench.stage import NotHere, Stage, program

PROGRAM = "the program itself"
PARTS = (PROGRAM, *purposes.PURPOSES)
BENCH = "where"
_HZ = 4999
_LEAST_SAMPLES = 50
_KERNEL = "([kernel.kallsyms])"
_IMAGE = "/memfd:sdlib.img"


def chains(printed: str) -> Iterator[tuple[str, list[str]]]:
    """Command and frames, the innermost first, of each sample that `perf script -F comm,ip,sym,dso` prints."""
    for block in printed.split("\n\n"):
        comm, *frames = block.strip("\n").splitlines() or [""]
        if frames:
            yield comm.strip(), [frame.strip() for frame in frames]


def parts_of(printed: str, comm: str, elf: Path) -> Counter[str]:
    """How many samples of that command were for what."""
    counts: Counter[str] = Counter()
    library: Counter[int] = Counter()
    for who, frames in chains(printed):
        if who != comm:
            continue
        kernel = [frame.split()[1] for frame in frames if frame.endswith(_KERNEL)]
        if kernel:
            counts[purposes.of_kernel(kernel)] += 1
        elif _IMAGE in frames[0]:
            library[abi.const.SD_LIB_BASE + int(frames[0].split()[0], 16)] += 1
        else:
            counts[PROGRAM] += 1
    known = purposes.of_library(library, elf) if library else {}
    for address, times in library.items():
        counts[known[address]] += times
    return counts


def _sampled(stage: Stage, argv: list[str]) -> tuple[dict[str, float], Counter[str]]:
    data = stage.folder / "where.data"
    recorder = ["perf", "record", "-q", "-F", str(_HZ), "-e", "cpu-clock", "-g", "-o", str(data), "--"]
    raw = json.loads(stage.run([*recorder, *argv]))
    script = ["perf", "script", "-i", str(data), "-F", "comm,ip,sym,dso"]
    printed = subprocess.run(script, capture_output=True, text=True, check=False, errors="replace").stdout
    if _KERNEL not in printed:
        raise NotHere("perf may not see the kernel's functions (kernel.perf_event_paranoid, kernel.kptr_restrict)")
    return raw, parts_of(printed, "pair", IMAGE_ELF)


def asked(prefix: Prefix, transport: str, mode: str, size: int, place: Place, plan: Plan) -> Ask:
    """CPU time of one message (of one round trip) and its parts, in ns."""
    own = [transport, mode, str(size), *pinned(place), "-w", str(plan.warm_ms), "-t", str(plan.ms * 4)]

    def ask(stage: Stage) -> Sample:
        raw, counts = _sampled(stage, [*prefix(stage), program("pair"), *own])
        total = counts.total()
        if not raw["count"] or total < _LEAST_SAMPLES:
            return {}
        each = raw["cpu"] / raw["count"] * 1e9
        return {"cpu_us": each / 1000, **{part: each * counts[part] / total for part in PARTS}}

    return ask


SHAPES = (("stream", 8), ("stream", 65536), ("rtt", 8))


def cases(plan: Plan) -> list[Case]:
    """Messages, KiB and hand-overs of TCP, unix sockets and sdrun."""
    ways: dict[str, tuple[Prefix, str]] = {
        "tcp": (natively, "tcp"), "unix": (natively, "unix"), "sdrun": (under_sdrun(), "tcp")}
    return [Case(BENCH, {"mode": mode, "size": size_text(size), "placement": name}, "cpu_us", {
        way: asked(prefix, transport, mode, size, place, plan) for way, (prefix, transport) in ways.items()}, rounds=3)
            for name, place in plan.places.items() if name != "unpinned" for mode, size in SHAPES]


# ------------------------------------------------------------------- table


def _by_shape(rows: list[Row], placement: str) -> dict[tuple[str, str], Row]:
    return {(row.case["mode"], row.case["size"]): row for row in rows if row.case["placement"] == placement}


def cost(shapes: dict[tuple[str, str], Row], what: str, way: str, part: str) -> float | None:
    """ns of CPU of one part; None where it was not measured."""

    def of(mode: str, size: int) -> float | None:
        row = shapes.get((mode, size_text(size)))
        if row is None or row.median(way, "cpu_us") is None:
            return None
        return row.median(way, part) or 0.0

    if what == "message":
        return of("stream", 8)
    if what == "hand-over":
        trip = of("rtt", 8)
        return None if trip is None else trip / 2
    small, large = of("stream", 8), of("stream", 65536)
    return None if small is None or large is None else max(large - small, 0) / 64


def lines(rows: list[Row], placement: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of one placement; no rows where nothing was measured."""
    shapes = _by_shape(rows, placement)
    columns = [(what, way) for what in ("message", "KiB", "hand-over") for way in ("tcp", "unix", "sdrun")]
    table = []
    for part in PARTS:
        costs = [cost(shapes, what, way, part) for what, way in columns]
        if any(costs):
            table.append([part, *("-" if value is None else short(value) for value in costs)])
    return ["", *(f"{way}, {what}" for what, way in columns)], table

