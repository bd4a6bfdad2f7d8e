# SPDX-License-Identifier: Apache-2.0
"""The tutorial, run as it is written, in a network namespace where its ports are free."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from sdlib import abi
from tests.harness import ROOT, SDRUN
from tools import reference

TUTORIAL = ROOT / "docs" / "tutorial.md"


def script() -> str:
    """The lines that begin with `$`, here-documents with what follows them."""
    lines: list[str] = []
    until = ""
    for block in re.findall(r"```console\n(.*?)```", TUTORIAL.read_text(), re.DOTALL):
        for line in block.splitlines():
            if until:
                lines.append(line)
                until = "" if line == until else until
            elif line.startswith("$ "):
                lines.append(line[2:])
                until = "END" if "<<'END'" in line else ""
    return "\n".join(lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_the_tutorial(sd_env: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="sd-tutorial-") as name:
        os.chmod(name, 0o755)  # root's nginx has workers of another user
        run_in(Path(name), sd_env)


def run_in(tmp_path: Path, sd_env: dict[str, str]) -> None:
    # sddoctor says 1 where there is no RDMA; what is killed at the end says so, too.
    wanted = script().replace("sddoctor\n", "sddoctor || test $? = 1\n", 1).removesuffix("wait") + "wait || true\n"
    env = {**sd_env, "PATH": f"{SDRUN.parent}:{os.environ['PATH']}"}
    (tmp_path / "script").write_text(f"set -x\nip link set lo up\n{wanted}")
    command = ["timeout", "-k", "5", "100", "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
               "bash", "-e", "script"]
    with (tmp_path / "output").open("w") as output:
        status = subprocess.run(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=output,
                                stderr=output, check=False).returncode
    said = (tmp_path / "output").read_text()
    assert status == 0, said[-5000:]
    for text in ("ok            trial", "few-operations", "lib-calls", "hello"):
        assert text in said, said[-5000:]
    for name, ends in (("fast", 1), ("wrk", 4)):
        carried = json.loads((tmp_path / "sd-tutorial" / f"{name}.json").read_text())["connections"]
        assert carried["shm"] >= ends, (name, carried)


def test_the_policy_reference_is_of_this_schema() -> None:
    assert (ROOT / "docs" / "policy-reference.md").read_text() == reference.text(), "python -m tools.reference"


def test_links_and_reasons_in_the_documentation() -> None:
    """A page that is linked is there; what looks like a reason is one."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(pages) > 10
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
    table = (ROOT / "docs" / "operating.md").read_text().partition("## When something is wrong")[2]
    named = set(re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", table, re.MULTILINE))
    reasons = {word for cell in named for word in re.findall(r"`([\w-]+)`", cell)}
    assert len(reasons) > 4 and reasons <= set(abi.REASONS), reasons - set(abi.REASONS)
