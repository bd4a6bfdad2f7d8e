# SPDX-License-Identifier: Apache-2.0
"""`sdrun --check` and `sdrun --print`: what the policy files say, without starting anything."""

from __future__ import annotations

import argparse
import os
import sys

import policies
from policies import loader, rules, values
from policies.model import KEYS, Policy, PolicyError, Settings


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sdrun", allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="check all policy files and options")
    what.add_argument("--print", action="store_true", help="also print what holds for a program, and who said so")
    parser.add_argument("--policy")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--rule", dest="rules", action="append", default=[])
    parser.add_argument("--command", default="")
    return parser.parse_args(argv)


def explain(settings: Settings, exe: str) -> str:
    """The values that hold for `exe`, each with its source, and the rules in the order in which they are asked."""
    shown = {
        "action": settings.action, "reason": settings.reason or "-", "upgrade": settings.upgrade,
        "ring": settings.ring_bytes, "total": settings.total_bytes, "connections": settings.connections,
        "spin_us": settings.spin_us, "idle_s": settings.idle_s, "io_uring": settings.io_uring,
        "strict": settings.strict, "patch": settings.patch, "without": settings.without,
    }  # fmt: skip
    lines = [f"program: {exe or '(any)'}"]
    lines += [f"{key + ':':<13}{values.show(key, shown[key]):<22} # {settings.source[key]}" for key in KEYS]
    lines.append("rules:" if settings.rules else "rules: none")
    lines += [f"  {number}. {rule.text:<50} # {rule.where}" for number, rule in enumerate(settings.rules, 1)]
    return "\n".join(lines)


def _notes(policy: Policy) -> list[str]:
    """What is right but may surprise: rules that decide differently about something in common, where order matters."""
    found = []
    own = loader.config_dir(os.environ)
    if loader.out_of_reach(own):
        found.append(f"{own}: note: not looked into, since uid {os.geteuid()} may not; HOME seems to be another user's")
    for layer in policy.layers:
        for app in layer.apps:
            for one, other in rules.overlaps(app.rules):
                first, second = app.rules[one], app.rules[other]
                found.append(f"{second.where}: note: `{second.text}` overlaps `{first.text}`, which decides")
    return found


def main(argv: list[str]) -> int:
    """Exit status: 0; 2 with one line per mistake."""
    options = _parse(argv)
    try:
        policy = policies.load(options.policy)
        settings = policies.effective(policy, options.command, options.sets, rules=options.rules)
        for app in (app for layer in policy.layers for app in layer.apps):
            if not set(app.program) & set("*?["):  # what is written about it together with what the options say
                policies.effective(policy, app.program, options.sets, app.uid, options.rules)
    except PolicyError as error:
        print(f"sdrun: {error}", file=sys.stderr)
        return 2
    if options.print:
        print(explain(settings, options.command))
        return 0
    for note in _notes(policy):
        print(note)
    print("\n".join(f"ok: {layer.name}" for layer in policy.layers) or f"ok: no policy files (uid {os.geteuid()})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
