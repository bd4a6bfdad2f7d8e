# SPDX-License-Identifier: Apache-2.0
"""PNG plots of results. matplotlib is an optional dependency: without it there are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tools.sdbench.results import METRICS, Row
from tools.sdbench.tables import TITLES

COLOURS = {"sdrun": "#c02020", "tcp": "#202020", "tcp bbr": "#202020", "tcp cubic": "#e08020",
           "ring": "#808080", "unix": "#2060c0", "pipe": "#20a0a0", "sockmap": "#8040a0"}
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}


def possible() -> bool:
    """Is matplotlib there?"""
    return importlib.util.find_spec("matplotlib") is not None


def size_of(text: str) -> int:
    """Bytes of "4 KiB"."""
    number, unit = text.split()
    return int(number) * UNITS[unit]


def by_size(rows: list[Row], metric: str, target: Path) -> None:
    """One panel for each placement, one line for each transport, with the spread as a band."""
    from matplotlib.figure import Figure

    placements = list(dict.fromkeys(row.case["placement"] for row in rows))
    figure = Figure(figsize=(5 * len(placements), 4.2), layout="constrained")
    panels = figure.subplots(1, len(placements), squeeze=False)[0]
    for panel, placement in zip(panels, placements, strict=True):
        own = sorted((row for row in rows if row.case["placement"] == placement),
                     key=lambda row: size_of(row.case["size"]))
        for variant in dict.fromkeys(name for row in own for name in row.samples):
            points = [(size_of(row.case["size"]), row.median(variant, metric), *spread) for row in own
                      if (spread := row.spread(variant, metric))]
            sizes, middles, lows, highs = zip(*points, strict=True) if points else ((), (), (), ())
            colour = COLOURS.get(variant)
            drawn = panel.plot(sizes, middles, marker=".", label=variant, color=colour)
            panel.fill_between(sizes, lows, highs, alpha=0.15, color=drawn[0].get_color())
        panel.set(xscale="log", yscale="log", title=placement, xlabel="bytes", ylabel=METRICS[metric][0])
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    figure.savefig(target, dpi=110)


def ratios(rows: list[Row], target: Path) -> None:
    """A bar for each case and variant: how many times better than native."""
    from matplotlib.figure import Figure

    variants = [name for name in dict.fromkeys(name for row in rows for name in row.samples)
                if any(row.native != name and row.ratio(name) for row in rows)]
    height = 0.8 / max(len(variants), 1)
    figure = Figure(figsize=(9, 1.2 + 0.16 * len(rows) * (len(variants) + 1)), layout="constrained")
    panel = figure.subplots()
    for index, variant in enumerate(variants):
        bars = [(number + index * height, ratio) for number, row in enumerate(rows)
                if row.native != variant and (ratio := row.ratio(variant))]
        panel.barh([at for at, _ in bars], [ratio.median for _, ratio in bars], height, label=variant,
                   color=COLOURS.get(variant),
                   xerr=[[ratio.median - ratio.low for _, ratio in bars],
                         [ratio.high - ratio.median for _, ratio in bars]],
                   error_kw={"linewidth": 0.7})
    panel.axvline(1, color="black", linewidth=0.8)
    ticks = [number + 0.4 - height / 2 for number in range(len(rows))]
    panel.set_yticks(ticks, [row.title for row in rows], fontsize="small")
    panel.invert_yaxis()
    panel.set(xscale="log", xlabel="times better than native (right of the line is better)")
    panel.legend(fontsize="small")
    figure.savefig(target, dpi=110)


def draw(rows: list[Row], folder: Path) -> dict[str, str]:
    """All plots: file name by title."""
    files: dict[str, str] = {}
    for bench in dict.fromkeys(row.bench for row in rows):
        own = [row for row in rows if row.bench == bench]
        title = TITLES.get(bench, bench)
        target = folder / f"{bench}.png"
        if bench in ("rtt", "stream"):
            by_size(own, "p50_us" if bench == "rtt" else "mib_s", target)
        elif any(row.ratio(name) for row in own for name in row.samples if name != row.native):
            ratios(own, target)
        else:
            continue
        files[title] = target.name
    return files
