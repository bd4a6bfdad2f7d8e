# SPDX-License-Identifier: Apache-2.0
"""The command line of sdbench."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tools.sdbench import apps, command, micro, report, where
from tools.sdbench.machine import ROOT, SDRUN, describe, placements
from tools.sdbench.results import Results
from tools.sdbench.runner import Case, Runner
from tools.sdbench.stage import BenchError, NotHere, Stage

FOLDER = ROOT / "build" / "bench" / "results"
ROUNDS, QUICK_ROUNDS = 5, 3

DESCRIPTION = """\
What sdrun is worth: every figure is a ratio against the native kernel, measured in the same run, in turn.

  sdbench micro      round trips, streams, many connections, rates, each technique switched off
  sdbench apps       redis, nginx, memcached, PostgreSQL, HAProxy, Go, gRPC, node
  sdbench -- CMD     your own command, natively and under sdrun
  sdbench report     one HTML page and plots from what was measured
"""


def peer(text: str) -> tuple[str, str]:
    """NAME=COMMAND."""
    name, equals, command = text.partition("=")
    if not (name and equals and command):
        raise argparse.ArgumentTypeError("must be NAME=COMMAND")
    return name, command


def parser() -> argparse.ArgumentParser:
    """All options."""
    result = argparse.ArgumentParser(prog="sdbench", description=DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = result.add_subparsers(dest="kind", metavar="micro | apps | report | -- CMD", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quick", action="store_true", help="a look: fewer cases, shorter, fewer rounds")
    common.add_argument("--rounds", type=int, help=f"rounds of each case (default {ROUNDS}, quick {QUICK_ROUNDS})")
    common.add_argument("--only", action="append", default=[], metavar="NAME", help="this benchmark; may be repeated")
    common.add_argument("--placement", action="append", default=[], choices=list(placements()),
                        help="where the two ends run; may be repeated (default all, quick fewer)")
    common.add_argument("--output", type=Path, help=f"the JSON (default in {FOLDER.relative_to(ROOT)}/)")
    one = kinds.add_parser("micro", parents=[common], help="one mechanism at a time")
    kinds.add_parser("apps", parents=[common], help="real programs")
    one.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=COMMAND",
                     help="also measure behind this command, such as 'vma=env LD_PRELOAD=libvma.so'")
    own = kinds.add_parser("command", prog="sdbench")  # without help it is not listed: `--` leads to it
    own.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each (default {ROUNDS})")
    own.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for sdrun")
    own.add_argument("--output", type=Path, default=FOLDER / "command.json", help="the JSON")
    result.epilog = f"{' '.join(own.format_usage().removeprefix('usage: ').split())} -- CMD"
    page = kinds.add_parser("report", help="HTML and plots")
    page.add_argument("results", nargs="*", type=Path, help=f"JSON files (default: all of {FOLDER.relative_to(ROOT)}/)")
    page.add_argument("--output", type=Path, default=FOLDER.parent / "report", help="folder for the page and the plots")
    page.add_argument("--docs", type=Path, help="also write the tables into this Markdown file, between its marks")
    return result


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The command line before `--`, made a `command` if it names no other, and the command after it."""
    if "--" not in words:
        return words, []
    at = words.index("--")
    return ["command", *words[:at]], words[at + 1:]


def chosen(names: list[str], known: list[str]) -> list[str]:
    """The benchmarks asked for. BenchError for one that is not there."""
    for name in names:
        if name not in known:
            raise BenchError(f"no benchmark {name}; there are {', '.join(known)}")
    return names or known


def places(options: argparse.Namespace, quick: list[str]) -> dict[str, micro.Place]:
    """The placements asked for; those of a quick run, or all, if none was."""
    names = options.placement or (quick if options.quick else list(placements()))
    return {name: place for name, place in placements().items() if name in names}


def micro_cases(options: argparse.Namespace) -> list[Case]:
    """What `sdbench micro` measures."""
    peers = dict(options.peer)
    plan = micro.quick_plan(peers=peers) if options.quick else micro.Plan(peers=peers)
    if options.placement:
        plan = replace(plan, places=places(options, []))
    benches = {**micro.BENCHES, where.BENCH: where.cases}
    return [case for name in chosen(options.only, list(benches)) for case in benches[name](plan)]


def wanted(options: argparse.Namespace, stage: Stage) -> list[Case]:
    """The cases of this command line."""
    if options.kind == "micro":
        return micro_cases(options)
    return apps.cases(stage, chosen(options.only, apps.NAMES), options.quick, places(options, ["unpinned"]))


def measure(options: argparse.Namespace, cases: list[Case], stage: Stage, console: Console) -> int:
    """Run the cases; exit status 1 if one failed."""
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    results = Results(options.kind, describe(), {"quick": options.quick, "rounds": rounds, "only": options.only})
    output = options.output or FOLDER / f"{options.kind}.json"
    machine = results.machine
    console.print(f"{machine['cpus']} CPUs ({machine['cpu']}, {machine['machine']}), Linux {machine['kernel']}, "
                  f"TCP congestion control {machine['congestion_control']}", highlight=False)
    Runner(stage, results, rounds, output, console).run(cases)
    console.print(f"written: {output}", markup=False, highlight=False)
    failed = [row for row in results.rows if any(text.startswith("failed") for text in row.skipped.values())]
    return 1 if failed else 0


def serve(options: argparse.Namespace, argv: list[str], stage: Stage, console: Console) -> int:
    """What the command line asks for."""
    if not SDRUN.exists():
        raise BenchError(f"{SDRUN} is missing; `make build` builds it")
    if options.kind == "command":
        if not argv or options.rounds < 1:
            raise BenchError("usage: sdbench [--rounds N] [--set KEY=VALUE] [--output FILE] -- CMD")
        return command.run(stage, command.Job(argv, options.rounds, options.set), options.output, console)
    return measure(options, wanted(options, stage), stage, console)


def main() -> int:
    """Exit status 0 if all was measured, 1 if something failed, 2 for a wrong command line."""
    words, argv = split(sys.argv[1:])
    options = parser().parse_args(words)
    if options.kind == "report":
        return report.main(options.results or sorted(FOLDER.glob("*.json")), options.output, options.docs)
    console = Console(soft_wrap=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    stage = Stage()
    try:
        return serve(options, argv, stage, console)
    except (BenchError, NotHere) as error:
        print(f"sdbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        stage.close()


if __name__ == "__main__":
    sys.exit(main())
