# SPDX-License-Identifier: Apache-2.0
"""The documentation's commands, run as they are written, from the wheel, in a network where their ports are free."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdlib import abi
from tests.harness import ROOT
from tests.packaging.conftest import run
from tests.packaging.documented import of_section, pages
from tools import reference


def script(page: str, *sections: str) -> str:
    """All its commands, one after the other."""
    return "\n".join(command for _, command in of_section(page, *sections))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Others may enter it: root's nginx has workers of another user."""
    with tempfile.TemporaryDirectory(prefix="sd-docs-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def as_written(wanted: str, folder: Path, env: dict[str, str], installed: Path) -> str:
    """What `wanted` prints, in a network, processes and a /run of its own, with the commands of the wheel."""
    env = {**env, "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
    (folder / "script").write_text(f"set -x\nip link set lo up\nmount -t tmpfs run /run\n{wanted}")
    command = ["timeout", "-k", "5", "100", "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
               "bash", "-e", "script"]
    with (folder / "output").open("w") as output:
        status = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output,
                                stderr=output, check=False).returncode
    said = (folder / "output").read_text()
    assert status == 0, said[-5000:]
    return said


pytestmark = pytest.mark.timeout(900)  # the first of them waits for the package
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")


@needs_root
def test_the_tutorial(folder: Path, sd_env: dict[str, str], installed: Path) -> None:
    # sddoctor says 1 where there is no RDMA; what is killed at the end says so, too.
    text = script("docs/tutorial.md").replace("sddoctor\n", "sddoctor || test $? = 1\n", 1)
    said = as_written(text.removesuffix("wait") + "wait || true\n", folder, sd_env, installed)
    for text in ("ok            trial", "few-operations", "lib-calls", "hello", "ns/call", "Follow: tcp,ascii"):
        assert text in said, said[-5000:]
    for name, ends in (("fast", 1), ("wrk", 4)):
        carried = json.loads((folder / "sd-tutorial" / f"{name}.json").read_text())["connections"]
        assert carried["shm"] >= ends, (name, carried)


@needs_root
def test_the_guide_for_operators(folder: Path, sd_env: dict[str, str], installed: Path) -> None:
    env = {name: value for name, value in sd_env.items() if name != "XDG_RUNTIME_DIR"}
    said = as_written(script("docs/operating.md", "Without systemd"), folder, env, installed)
    for text in ("sdmonitor_segments", "is on shm", "PONG"):
        assert text in said, said[-5000:]


@needs_root
def test_the_page_about_looking(folder: Path, sd_env: dict[str, str], installed: Path) -> None:
    said = as_written(script("docs/observing.md"), folder, sd_env, installed)
    for text in ("Follow: tcp,ascii", "% time", "uptime_s", "sdrun_bytes_shm_tx_total{", "<= 64", "shm_sent:", "sdtop"):
        assert text in said, said[-5000:]


@needs_root
def test_the_first_commands_of_the_readme(folder: Path, sd_env: dict[str, str], installed: Path) -> None:
    (folder / ".venv").symlink_to(installed)
    first = [line for line in script("README.md", "").splitlines() if line.startswith(".venv/bin/")]
    assert len(first) >= 2
    said = as_written("\n".join([first[0], "until redis-cli ping; do sleep 0.1; done", *first[1:], "kill %1", "wait"]),
                      folder, sd_env, installed)
    assert "requests per second" in said and "shared memory" in said, said


def test_targets_and_commands_of_the_documentation_exist(installed: Path) -> None:
    """`make X`, and options of our commands, in all pages."""
    makefile = (ROOT / "Makefile").read_text()
    helps: dict[str, str] = {}
    for page in pages():
        text = page.read_text()
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page.name, target)
        for command, options in re.findall(r"`(sd(?:run|ss|stat|top|trace|doctor|monitor|ctl))((?: [^`]*)?)`", text):
            if command not in helps:
                helps[command] = run(installed / "bin" / command, "--help")
            for option in re.findall(r" (--[a-z-]+)", options.partition(" -- ")[0]):
                assert option in helps[command], (page.name, command, option)


def test_the_policy_reference_is_of_this_schema() -> None:
    assert (ROOT / "docs" / "policy-reference.md").read_text() == reference.text(), "python -m tools.reference"


def test_links_and_reasons_in_the_documentation() -> None:
    """A page that is linked is there; what looks like a reason is one."""
    assert len(pages()) > 10
    for page in pages():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
    table = (ROOT / "docs" / "operating.md").read_text().partition("## When something is wrong")[2]
    named = set(re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", table, re.MULTILINE))
    reasons = {word for cell in named for word in re.findall(r"`([\w-]+)`", cell)}
    assert len(reasons) > 4 and reasons <= set(abi.REASONS), reasons - set(abi.REASONS)
