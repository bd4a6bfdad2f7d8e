# SPDX-License-Identifier: Apache-2.0
"""Man pages and shell completion of every command, from what `--help` is made of. `python -m tools.manual DIRECTORY`.

Python's commands are asked for their argparse parsers; sdrun, a C program, for its --help, whose option lines have one
form.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final

_PARSERS: Final = {
    "sdmonitor": "monitor.cli:parser", "sdctl": "tools.sdctl:parser", "sdbench": "tools.sdbench.cli:parser",
    "sddoctor": "tools.doctor.cli:parser", "sdss": "tools.observe.sdss:parser",
    "sdstat": "tools.observe.sdstat:parser", "sdtop": "tools.observe.sdtop:parser",
    "sdtrace": "tools.observe.sdtrace:parser",
}  # fmt: skip
_OPTION_LINE: Final = re.compile(r"^  (-\S+(?: [A-Z=]+)?)(?:  +(.*))?$")
_COMMAND_FOLLOWS: Final = ("sdrun", "sdbench")


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
    for name, place in _PARSERS.items():
        module, _, attribute = place.partition(":")
        make: Callable[[], argparse.ArgumentParser] = getattr(import_module(module), attribute)
        found.append(_of_parser(name, make()))
    return found


def _roff(text: str) -> str:
    """A dot or quote at the start of a line, and every backslash and hyphen, would mean something."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def _option_lines(options: list[Option]) -> list[str]:
    lines = []
    for option in options:
        names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in option.names)
        value = f"\\fI{_roff(option.value)}\\fR"
        if option.joined:
            names += f"[={value}]"
        elif option.value:
            names += f" {value}" if option.names else value
        lines += [".TP", names, _roff(option.text)]
    return lines


def man_page(command: Command) -> str:
    """Section 1."""
    usages = [one.usage for one in (command, *command.leaves())]
    lines = [f'.TH {command.name.upper()} 1 "" sdrun "User Commands"', ".SH NAME",
             f"{command.name} \\- {_roff(command.summary.split('. ')[0].rstrip('.'))}", ".SH SYNOPSIS",
             "\n.br\n".join(_roff(usage) for usage in usages), ".SH DESCRIPTION", _roff(command.summary)]
    if command.arguments:
        lines += [".SH ARGUMENTS", *_option_lines(command.arguments)]
    lines += [".SH OPTIONS", *_option_lines(command.options)]
    if command.subs:
        lines.append(".SH COMMANDS")
        for leaf in command.leaves():
            own = [option for option in leaf.arguments + leaf.options if "--help" not in option.names]
            lines += [f'.SS "{_roff(leaf.name)}"', _roff(leaf.summary), *_option_lines(own)]
    if command.epilog:
        lines += [".SH NOTES", _roff(command.epilog)]
    others = [name for name in ("sdrun", *_PARSERS) if name != command.name]
    return "\n".join([*lines, ".SH SEE ALSO", ", ".join(f"\\fB{name}\\fR(1)" for name in others), ""])


_PIDS: Final = "$(cd /proc && printf '%s ' [0-9]*)"


def _values(command: Command) -> str:
    """Arms of a case of the option in front: what may follow it."""
    arms = []
    for option in command.options:
        if option.value and not option.joined:
            words = " ".join(option.choices) or (_PIDS if option.value == "PID" else "")
            found = f'-W "{words}"' if words else "-f"
            arms.append(f"""{'|'.join(option.names)}) COMPREPLY=($(compgen {found} -- "$cur")); return ;;""")
    return "\n                ".join(arms) or "'') ;;"


def _level(command: Command, top: Command) -> str:
    """The arm for what stands behind `command` and its own subcommands' names."""
    names = [name + ("=" if option.joined else "") for option in command.options for name in option.names]
    words = [sub.name.rpartition(" ")[2] for sub in command.subs]
    words += [choice for argument in command.arguments for choice in argument.choices]
    return f"""
        "{command.name.removeprefix(top.name).strip()}")
            case $prev in
                {_values(command)}
            esac
            case $cur in
                -*) COMPREPLY=($(compgen -W "{' '.join(dict.fromkeys(names))}" -- "$cur")); return ;;
            esac
            COMPREPLY=($(compgen -W "{' '.join(words)}" -- "$cur")) ;;"""


def completion(command: Command) -> str:
    """A bash function; zsh takes it through bashcompinit."""
    tail = "_command_offset $COMP_CWORD; return" if command.name in _COMMAND_FOLLOWS else "COMPREPLY=()"
    levels = "".join(_level(one, command) for one in command.below())
    paths = "|".join(f'"{one.name.removeprefix(command.name).strip()}"' for one in command.below()[1:]) or "''"
    return f"""# Generated by tools/manual.py.
_{command.name}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} below= word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "${{below:+$below }}$word" in
            {paths}) below="${{below:+$below }}$word" ;;
        esac
    done
    case $below in{levels}
    esac
    [[ ${{#COMPREPLY[@]}} -gt 0 ]] || {{ declare -F _command_offset >/dev/null && {{ {tail}; }}; }}
}}
complete -o default -F _{command.name} {command.name}
"""


def write(directory: Path, sdrun: Path) -> None:
    """man/man1/NAME.1 and completion/NAME under `directory`."""
    for command in commands(sdrun):
        for path, text in ((directory / "man" / "man1" / f"{command.name}.1", man_page(command)),
                           (directory / "completion" / command.name, completion(command))):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tools.manual", description="Write man pages and shell completion.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sdrun", type=Path, default=Path(sys.executable).parent / "sdrun", help="the launcher")
    options = parser.parse_args(argv)
    write(options.directory, options.sdrun)
    return 0


if __name__ == "__main__":
    sys.exit(main())
