# SPDX-License-Identifier: Apache-2.0
"""What the shells themselves offer, with what the packages bring them (tools/completion.py)."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import struct
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.packaging.conftest import run
from tools import manual
from tools.completion import SHELLS
from tools.described import commands

BIN = Path(sys.executable).parent
CASES = [
    ("sdrun --tr", {"--trace"}, {"--set"}), ("sdrun --report READ", {"README.md"}, set()),
    ("sdrun -- redis-serv", {"redis-server"}, set()), ("sdss --r", {"--rates"}, {"--json"}),
    ("sdctl ", {"status", "policy"}, {"explain"}), ("sdctl policy ", {"explain"}, {"status"}),
    ("sdctl policy explain --dir ", {"in", "out"}, {"status"}),
    ("sdctl policy explain --", {"--uid"}, {"--json"}), ("sdctl status --", {"--json"}, {"--uid"}),
    ("sdmonitor --log ", {"text", "json"}, set()), ("sdtrace --path ", {"ring", "kernel"}, set()),
    ("sdbench ", {"micro", "apps", "report"}, {"redis-server"}), ("sdbench -- redis-serv", {"redis-server"}, {"micro"}),
    ("sddoctor --j", {"--json"}, {"--no-trial"}), ("sdtop --int", {"--interval"}, set()),
    ("sdstat --h", {"--help", "--hosts"}, set()),
]  # fmt: skip
OF_BASH_ALONE = [("sdrun --attach ", {"1"}, {"README.md"})]
"""zsh and fish name the processes, in forms of their own."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the packages install."""
    folder = tmp_path_factory.mktemp("completion")
    manual.write(folder, BIN / "sdrun")
    for place in SHELLS:
        assert len(list((folder / place).iterdir())) == len(commands(BIN / "sdrun"))
    return folder


def needed(shell: str) -> str:
    found = shutil.which(shell)
    if not found:
        pytest.skip(f"no {shell} here")
    return found


@pytest.mark.parametrize(("line", "offered", "others"), CASES + OF_BASH_ALONE)
def test_bash(written: Path, line: str, offered: set[str], others: set[str]) -> None:
    if line.partition(" -- ")[2]:
        pytest.skip("bash asks bash-completion for what follows, which takes a terminal")
    file = written / "share/bash-completion/completions" / line.split(maxsplit=1)[0]
    words = line.split(" ")
    script = (f". {file}\nCOMP_WORDS=({' '.join(map(repr, words))}) COMP_CWORD={len(words) - 1}\n"
              f"_{words[0]}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"")
    said = {word.removesuffix("=") for word in run("bash", "-c", script).split()}
    assert offered <= said and not others & said, said


@pytest.mark.parametrize(("line", "offered", "others"), CASES)
def test_fish(written: Path, tmp_path: Path, line: str, offered: set[str], others: set[str]) -> None:
    """By the way that fish itself finds them, for commands that are there."""
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path),
           "XDG_DATA_DIRS": f"{written}/share:/usr/share", "PATH": f"{BIN}:{os.environ['PATH']}"}
    text = run(needed("fish"), "-c", f"complete -C '{line}'", env=env)
    said = {each.partition("\t")[0] for each in text.splitlines()}
    assert offered <= said and not others & said, said


class Zsh:
    """One in a terminal, whose ^T lists what could stand there; whatever is typed meanwhile would end the list."""

    def __init__(self, written: Path) -> None:
        zsh = needed("zsh")
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.execve(zsh, ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "PS1": "", "RPS1": ""})
        ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 2000, 300, 0, 0))
        self.text = ""
        self.type(f"fpath=({written}/share/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D; "
                  "LISTMAX=0; PS1=; bindkey '^T' list-choices; print READ''Y\n")
        self.until(r"READY\r\n")

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def until(self, wanted: str) -> None:
        deadline = time.monotonic() + 60
        while not re.search(wanted, self.text):
            ready, _, _ = select.select([self.terminal], [], [], max(deadline - time.monotonic(), 0))
            assert ready, self.text
            self.text += os.read(self.terminal, 65536).decode(errors="replace")

    def offers(self, line: str, wanted: set[str]) -> str:
        """What is listed behind `line`, once all of `wanted` is."""
        self.type(line)
        self.until(re.escape(line))
        self.text = ""
        self.type("\x14")
        for word in wanted:
            self.until(rf"(?m)(^|\s){re.escape(word)}(\s|$)")
        said = self.text
        self.type("\x15print DO''NE\n")
        self.until(r"DONE\r\n")
        return said + self.text

    def close(self) -> None:
        self.type("exit\n")
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture(scope="module")
def zsh(written: Path) -> Iterator[Zsh]:
    shell = Zsh(written)
    yield shell
    shell.close()


@pytest.mark.parametrize(("line", "offered", "others"), CASES)
def test_zsh(zsh: Zsh, line: str, offered: set[str], others: set[str]) -> None:
    said = zsh.offers(line, offered)
    zsh.text = ""
    assert not others & {word for row in said.splitlines() for word in row.partition(" -- ")[0].split()}, said
