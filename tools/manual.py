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


@dataclass
class Command:
    """What a page says."""

    name: str
    usage: str
    summary: str
    options: list[Option] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """Subcommands."""
    epilog: str = ""


def _of_parser(name: str, parser: argparse.ArgumentParser) -> Command:
    usage = " ".join(parser.format_usage().removeprefix("usage:").split())
    command = Command(name, usage, " ".join((parser.description or "").split()),
                      epilog=" ".join((parser.epilog or "").split()))
    _add_actions(command, parser, parser)
    return command


def _add_actions(command: Command, parser: argparse.ArgumentParser, top: argparse.ArgumentParser) -> None:
    formatter = argparse.HelpFormatter(command.name)
    known = {name for option in command.options for name in option.names}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                command.words.append(word)
                _add_actions(command, sub, top)
        elif action.option_strings and action.help != argparse.SUPPRESS and not known & set(action.option_strings):
            value = "" if action.nargs == 0 else str(formatter._format_args(action, action.dest.upper()))
            command.options.append(Option(list(action.option_strings), value, formatter._expand_help(action)
                                          if action.help else ""))


def _of_help(name: str, text: str) -> Command:
    usage, _, rest = text.partition("\n")
    head, _, after = rest.strip().partition("\n\n")
    command = Command(name, usage.removeprefix("usage: "), " ".join(head.split()))
    lines, _, command.epilog = after.partition("\n\n")
    for line in lines.splitlines():
        found = _OPTION_LINE.match(line)
        if found:
            option, _, value = found[1].replace("[=", " [").partition(" ")
            command.options.append(Option([option], value, found[2] or ""))
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


def man_page(command: Command) -> str:
    """Section 1."""
    lines = [f'.TH {command.name.upper()} 1 "" sdrun "User Commands"', ".SH NAME",
             _roff(f"{command.name} - {command.summary.split('. ')[0].rstrip('.')}"), ".SH SYNOPSIS",
             _roff(command.usage), ".SH DESCRIPTION", _roff(command.summary), ".SH OPTIONS"]
    for option in command.options:
        names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in option.names)
        lines += [".TP", f"{names} \\fI{_roff(option.value)}\\fR" if option.value else names, _roff(option.text)]
    if command.epilog:
        lines += [".SH NOTES", _roff(command.epilog)]
    others = [name for name in ("sdrun", *_PARSERS) if name != command.name]
    return "\n".join([*lines, ".SH SEE ALSO", ", ".join(f"\\fB{name}\\fR(1)" for name in others), ""])


def completion(command: Command) -> str:
    """A bash function; zsh takes it through bashcompinit."""
    names = " ".join(name for option in command.options for name in option.names)
    with_value = "|".join(name for option in command.options if option.value for name in option.names) or "''"
    tail = "_command_offset $COMP_CWORD; return" if command.name in _COMMAND_FOLLOWS else "COMPREPLY=()"
    words = " ".join(command.words)
    return f"""# Generated by tools/manual.py.
_{command.name}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
    case $prev in
        {with_value}) COMPREPLY=($(compgen -f -- "$cur")); return ;;
    esac
    case $cur in
        -*) COMPREPLY=($(compgen -W "{names}" -- "$cur")); return ;;
    esac
    COMPREPLY=($(compgen -W "{words}" -- "$cur"))
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
