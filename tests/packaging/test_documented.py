# SPDX-License-Identifier: Apache-2.0
"""No command of the documentation escapes: each is run by a test, or declared with a reason that still holds."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.packaging.documented import NOT_RUN, WHERE, commands, pages
from tools.described import PARSERS
from tools.described import commands as programs

TYPED = re.compile(r"^\s*(?:[$#] )?(?:sudo |make |apt |systemctl |sd(?:run|ss|stat|top|trace|doctor|ctl|bench|monitor) "
                   r"[^(]|pip |docker |\.venv/)")


def place(page: Path, section: str) -> str | None:
    """The entry of WHERE for it."""
    name = str(page.relative_to(ROOT))
    return next((key for key in (f"{name}#{section}", name) if key in WHERE), None)


def test_each_command_is_run_somewhere() -> None:
    used, declared = set(), set()
    for page in pages():
        for section, who, command in commands(page):
            if f"{who} {command}" in NOT_RUN:
                declared.add(f"{who} {command}")
                continue
            where = place(page, section)
            assert where, f"{page.name}, {section!r}: nobody runs {command!r}: documented.py"
            used.add(where)
    assert used == set(WHERE), "sections that have gone"
    assert declared == set(NOT_RUN), "commands that have gone"


@pytest.mark.parametrize("where", list(WHERE))
def test_who_is_said_to_run_it_reads_it(where: str) -> None:
    page, _, section = where.partition("#")
    for name in re.findall(r"test_\w+\.py", WHERE[where]):
        [found] = (ROOT / "tests").glob(f"*/{name}")
        text = found.read_text()
        assert f'"{page}"' in text and (not section or f'"{section}"' in text), (where, name)


@pytest.mark.parametrize("command", list(NOT_RUN))
def test_what_is_not_run_still_cannot_be(command: str) -> None:
    """The probe fails; where it does not any more, the command can be run and has to be."""
    reason, probe = NOT_RUN[command]
    assert len(reason) > 20
    if probe:
        done = subprocess.run(["sh", "-c", probe], capture_output=True, timeout=60, check=False)
        assert done.returncode != 0, f"{probe}: works here, so {command!r} can be run"


def test_commands_stand_in_blocks_that_are_run() -> None:
    """Nothing to be typed hides in a block of another kind, or in an indented one."""
    for page in pages():
        text = re.sub(r"^```console\n.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for block in re.findall(r"^```(?!ini|yaml|python|json)\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            assert not [line for line in block.splitlines() if TYPED.match(line)], (page.name, block)
        without = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for line in re.findall(r"^    .*$", without, re.MULTILINE):
            assert not TYPED.match(line.strip()), (page.name, line)


VALUES: list[list[str]] = [[], ["1"], ["0:1"], ["/run/netns/a:/run/netns/b"]]


def _parses(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    """What is named for its option alone (`sdmonitor --metrics`) may lack the value."""
    try:
        parser.parse_args(words)
    except SystemExit as error:
        return not error.code
    return True


def test_inline_commands_are_understood() -> None:
    """A command of ours between the lines has a command line that its parser takes."""
    from importlib import import_module

    known = {command.name for command in programs(Path(sys.executable).parent / "sdrun")}
    tried = 0
    for page in pages():
        for code in re.findall(r"(?<!`)`(sd\w+ [^`\n]+)`(?!`)", page.read_text()):
            name, _, rest = code.partition(" ")
            if name not in PARSERS or "…" in rest or "..." in rest:
                continue
            assert name in known
            module, _, attribute = PARSERS[name].partition(":")
            words = ["4711" if word in ("PID", "N") else word for word in shlex.split(rest.partition(" -- ")[0])]
            if name == "sdbench":
                continue  # its command line is split at `--` first
            parser = getattr(import_module(module), attribute)()
            assert any(_parses(parser, words + more) for more in VALUES), (page.name, code)
            tried += 1
    assert tried > 15
