# SPDX-License-Identifier: Apache-2.0
"""Man pages and shell completion of every command. `python -m tools.manual DIRECTORY`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tools.completion import SHELLS
from tools.described import PARSERS, Command, Option, commands


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
    others = [name for name in ("sdrun", *PARSERS) if name != command.name]
    return "\n".join([*lines, ".SH SEE ALSO", ", ".join(f"\\fB{name}\\fR(1)" for name in others), ""])


def write(directory: Path, sdrun: Path) -> None:
    """share/man/man1/NAME.1, and what each shell reads, under `directory`."""
    for command in commands(sdrun):
        written = {directory / "share" / "man" / "man1" / f"{command.name}.1": man_page(command)}
        for place, (make, name) in SHELLS.items():
            written[directory / place / name.format(command.name)] = make(command)
        for path, text in written.items():
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
