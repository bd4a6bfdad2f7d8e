# SPDX-License-Identifier: Apache-2.0
"""The command line of sddoctor."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress

from tools.doctor.findings import Finding, Level, stops, worst

_WORDS = {Level.OK: "ok", Level.WITHOUT: "works without", Level.STOPS: "stops you"}
_STYLES = {Level.OK: "green", Level.WITHOUT: "yellow", Level.STOPS: "bold red"}


def parser() -> argparse.ArgumentParser:
    """All options."""
    result = argparse.ArgumentParser(
        prog="sddoctor",
        description="Look whether sdrun can work here: kernel, permissions, containers, policies, monitor, devices; "
        "and try it on two programs. Each line says ok, works without something, or stops you, and how to mend it.",
        epilog="Exit status: 0 all is well, 1 works without something, 3 something stops sdrun, 2 wrong usage.",
    )
    result.add_argument("--json", action="store_true", help="print one JSON document: a whole bug report")
    result.add_argument("--unit", metavar="NAME", help="instead, look whether this unit of systemd can run under "
                        "sdrun, and print the drop-in that mends what cannot")
    result.add_argument("--no-trial", action="store_true", help="only look, start no programs under sdrun")
    return result


def _checks(*, trial: bool) -> list[Callable[[], Finding]]:
    # Imported late: on a kernel of another make, the reason is to be said, not a traceback of ours.
    from tools.doctor import host, kernel, setup
    from tools.doctor import trial as last

    return [*setup.CHECKS, *kernel.CHECKS, *host.CHECKS, *((last.run,) if trial else ())]


def examine(checks: Iterable[Callable[[], Finding]]) -> list[Finding]:
    """All findings, in order; a check that fails itself is one, too."""
    found = []
    for check in checks:
        try:
            found.append(check())
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found.append(stops(check.__name__, f"the check itself failed: {error!r} ({last.filename}:{last.lineno})"))
    return found


def _first_line(path: str, start: str = "") -> str:
    """The first line of a file that begins so, without that; "" if there is none."""
    with suppress(OSError), open(path, errors="replace") as file:
        return next((line.removeprefix(start).strip(" :=\t\n\"") for line in file if line.startswith(start)), "")
    return ""


def _host() -> dict[str, str | int]:
    """What decides how sdrun fares, and names nobody."""
    return {
        "distribution": _first_line("/etc/os-release", "PRETTY_NAME"), "libc": " ".join(platform.libc_ver()),
        "cpu": _first_line("/proc/cpuinfo", "model name"), "cpus": os.cpu_count() or 0,
        "memory": _first_line("/proc/meminfo", "MemTotal"), "hypervisor": _first_line("/sys/hypervisor/type"),
        "lsm": _first_line("/sys/kernel/security/lsm"), "swap": _first_line("/proc/meminfo", "SwapTotal"),
        "overcommit": _first_line("/proc/sys/vm/overcommit_memory"),
        "ptrace_scope": _first_line("/proc/sys/kernel/yama/ptrace_scope"),
        "memfd_noexec": _first_line("/proc/sys/vm/memfd_noexec"),
        "congestion_control": _first_line("/proc/sys/net/ipv4/tcp_congestion_control"),
        "clocksource": _first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    }


def as_json(found: list[Finding]) -> str:
    """The document, with what a bug report needs besides."""
    return json.dumps({
        "version": 1, "worst": worst(found).name.lower(), "system": platform.platform(),
        "python": sys.version.split()[0], "uid": os.geteuid(), "host": _host(),
        "findings": [finding.as_json() for finding in found],
    }, indent=1)  # fmt: skip


def show(found: list[Finding]) -> None:
    """A line each, and the mending below it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for finding in found:
        line = Text(f"{_WORDS[finding.level]:<14}", style=_STYLES[finding.level])
        line.append(f"{finding.name}: {finding.text}", style="default")
        console.print(line, soft_wrap=True)
        if finding.mend:
            for mending in finding.mend.split("\n"):
                console.print(f"{'':<14}  mend: {mending}", markup=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit status says the worst."""
    options = parser().parse_args(argv)
    drop_in = ""
    try:
        if options.unit:
            from tools.doctor import unit

            found = unit.examine(options.unit)
            drop_in = unit.drop_in(found)
        else:
            found = examine(_checks(trial=not options.no_trial))
    except ImportError as error:
        found = [stops("installation", str(error), "make build")]
    if options.json:
        print(as_json(found))
    else:
        show(found)
        if drop_in:
            print(f"\n# systemctl edit {options.unit}\n{drop_in}")
    return int(worst(found))


if __name__ == "__main__":
    sys.exit(main())
