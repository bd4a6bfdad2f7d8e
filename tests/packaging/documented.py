# SPDX-License-Identifier: Apache-2.0
"""The commands in the documentation, as they are written, and which of them are run where.

A block of a page is marked `console`; in it, lines that begin with `$` are typed by anybody, those with `#` by root. A
here-document belongs to its command. What is behind two spaces and a `#` is a remark to the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.harness import ROOT
from tests.packaging.machine import Who

_BLOCK: Final = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)

WHERE: Final = {
    "README.md#": "make newcomer: the first commands, on a Debian with nothing else on it (test_clean_debian.py)",
    "README.md#Install": "test_machine.py",
    "docs/tutorial.md": "test_tutorial.py",
    "docs/operating.md#Install and remove": "test_machine.py",
    "docs/operating.md#One monitor per host": "test_machine.py",
    "docs/operating.md#Without systemd": "test_tutorial.py",
    "docs/operating.md#Hardened units": "test_machine.py",
    "docs/questions.md": "test_machine.py",
    "docs/examples.md": "make examples: test_examples.py",
    "docs/observing.md": "test_tutorial.py",
}
"""Who runs the blocks of a page, or of one of its sections."""

NOT_RUN: Final = {
    "$ make test": ("it is what runs these tests; .ci/run is it in a clean checkout", ""),
    **dict.fromkeys(("$ .venv/bin/sdbench micro", "$ .venv/bin/sdbench apps", "$ .venv/bin/sdbench -- CMD",
                     "$ .venv/bin/sdbench report"), (
        "an hour, and a quiet machine: tests/tools/test_sdbench.py measures a little of each and reports it", "")),
    "# docker compose -f examples/containers/compose.yaml up": (
        "no daemon runs here, and there is no registry to take images from; pod.sh does with unshare what it says",
        "docker info"),
}
"""Commands of console blocks that nothing runs: why, and what must fail for that to be true. Each must still be in a
page (test_documented.py)."""


def pages() -> list[Path]:
    """All that people read."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def _commands(block: str) -> Iterator[tuple[Who, str]]:
    until = ""
    lines: list[str] = []
    who: Who = "$"
    for line in block.splitlines():
        if until or (lines and lines[-1].endswith("\\")):
            lines.append(line)
            until = "" if line == until else until
        elif line[:2] in ("$ ", "# "):
            if lines:
                yield who, "\n".join(lines)
            who = "$" if line[0] == "$" else "#"
            lines = [re.sub(r"  +# .*$", "", line[2:])]
            found = re.search(r"<<'(\w+)'", line)
            until = found[1] if found else ""
    if lines:
        yield who, "\n".join(lines)


def commands(page: Path) -> list[tuple[str, Who, str]]:
    """(heading of its section, who types it, command), in the page's order."""
    text = page.read_text()
    found: list[tuple[str, Who, str]] = []
    for block in _BLOCK.finditer(text):
        headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text[:block.start()],
                                                   flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
        section = headings[-1] if len(headings) > 1 else ""
        found += [(section, who, command) for who, command in _commands(block[1])]
    return found


def of_section(page: str, *sections: str) -> list[tuple[Who, str]]:
    """The commands of these sections of a page (all, if none is named), without those that NOT_RUN declares."""
    found = [(who, command) for section, who, command in commands(ROOT / page)
             if (not sections or section in sections) and f"{who} {command}" not in NOT_RUN]
    assert found, (page, sections)
    return found
