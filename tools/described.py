# SPDX-License-Identifier: Apache-2.0
"""Every command with its options and arguments, from what `--help` is made of: for man pages and shell completion.

Python's commands are asked for their argparse parsers; sdrun, a C program, for its --help, whose option lines have one
form.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final

PARSERS: Final = {
    "sdmonitor": "monitor.cli:parser", "sdctl": "tools.sdctl:parser", "sdbench": "tools.sdbench.cli:parser",
    "sddoctor": "tools.doctor.cli:parser", "sdss": "tools.observe.sdss:parser",
    "sdstat": "tools.observe.sdstat:parser", "sdtop": "tools.observe.sdtop:parser",
    "sdtrace": "tools.observe.sdtrace:parser",
}  # fmt: skip
_OPTION_LINE: Final = re.compile(r"^  (-\S+(?: [A-Z=]+)?)(?:  +(.*))?$")


@dataclass
class Option:
    """One option: its names, its value's name ("" for none) and what it does."""

    names: list[str]
    value: str
    text: str
    choices: list[str] = field(default_factory=list)
    joined: bool = False
    """Its value, if it has one, stands behind a `=`, and may be missing."""


@dataclass
class Command:
    """What a page says."""

    name: str
    usage: str
    summary: str
    options: list[Option] = field(default_factory=list)
    arguments: list[Option] = field(default_factory=list)
    """What is no option; `names` is its place holder."""
    subs: list[Command] = field(default_factory=list)
    """Its commands, named with it: "sdctl policy"."""
    epilog: str = ""

    def leaves(self) -> list[Command]:
        """All below it that can be used."""
        return [leaf for sub in self.subs for leaf in (sub.leaves() or [sub])]

    def below(self) -> list[Command]:
        """It and all below it."""
        return [self, *(found for sub in self.subs for found in sub.below())]


def _of_parser(name: str, parser: argparse.ArgumentParser, summary: str = "") -> Command:
    usage = " ".join(parser.format_usage().removeprefix("usage:").split())
    description = parser.description if parser.description != argparse.SUPPRESS else ""
    command = Command(name, usage, " ".join((description or summary).split()),
                      epilog=" ".join((parser.epilog or "").split()))
    formatter = argparse.HelpFormatter(name)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            command.subs = [_of_parser(f"{name} {word}", sub, texts[word]) for word, sub in action.choices.items()
                            if word in texts]
            for word in action.choices.keys() - texts.keys():  # not listed: what `--` leads to
                own = _of_parser(name, action.choices[word]).options
                command.options += [option for option in own if "--help" not in option.names]
        elif action.help != argparse.SUPPRESS:
            value = "" if action.nargs == 0 else str(formatter._format_args(action, _value_name(action)))
            text = formatter._expand_help(action) if action.help else ""
            option = Option(list(action.option_strings), value, text, [str(one) for one in action.choices or ()])
            (command.options if action.option_strings else command.arguments).append(option)
    return command


def _value_name(action: argparse.Action) -> str:
    if action.option_strings:
        return action.dest.upper()
    return f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest


def _of_help(name: str, text: str) -> Command:
    usage, _, rest = text.partition("\n")
    head, _, after = rest.strip().partition("\n\n")
    command = Command(name, usage.removeprefix("usage: "), " ".join(head.split()))
    lines, _, command.epilog = after.partition("\n\n")
    for line in lines.splitlines():
        found = _OPTION_LINE.match(line)
        if found:
            option, _, value = found[1].replace("[=", " [").partition(" ")
            command.options.append(Option([option], value.strip("[]"), found[2] or "", joined="[=" in found[1]))
        elif command.options:
            command.options[-1].text += " " + line.strip()
    return command


def commands(sdrun: Path) -> list[Command]:
    """All of them. `sdrun`: the launcher."""
    text = subprocess.run([sdrun, "--help"], capture_output=True, text=True, check=True).stdout
    found = [_of_help("sdrun", text)]
    for name, place in PARSERS.items():
        module, _, attribute = place.partition(":")
        make: Callable[[], argparse.ArgumentParser] = getattr(import_module(module), attribute)
        found.append(_of_parser(name, make()))
    return found
