# SPDX-License-Identifier: Apache-2.0
"""The packages as a new user has them: built from the sdist, installed where nothing was, tried, taken away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.packaging.conftest import NEEDED, pip, run
from tools import manual
from tools.completion import SHELLS
from tools.described import commands
from tools.manual import man_page

BIN = Path(sys.executable).parent
TRIED = "trial: 200 round trips"


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def test_a_wheel_in_an_empty_environment(installed: Path, tmp_path: Path, sd_env: dict[str, str]) -> None:
    doctor = json.loads(run_doctor(installed / "bin" / "sddoctor", sd_env))
    assert {line["name"]: line["level"] for line in doctor["findings"]}["trial"] == "ok", doctor
    report = tmp_path / "report.json"
    run(installed / "bin" / "sdrun", "--report", report, "--", "python3", "-c", "print(1)", env=sd_env)
    assert json.loads(report.read_text())["exit_status"] == 0
    assert "Recv-Q" in run(installed / "bin" / "sdss", "-a", env=sd_env)
    for command in commands(BIN / "sdrun"):
        page = installed / "share" / "man" / "man1" / f"{command.name}.1"
        assert page.read_text() == man_page(command), "made from the same as --help"
        for place, (make, name) in SHELLS.items():
            assert (installed / place / name.format(command.name)).read_text() == make(command)
    env = {**sd_env, "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
    assert run("man", "-w", "sdss", env=env).strip() == str(installed / "share/man/man1/sdss.1")
    text = (ROOT / "pyproject.toml").read_text()
    assert json.loads(re.search(r"^dependencies = (\[.*\])$", text, re.MULTILINE)[1]) == list(NEEDED)  # type: ignore[index]


def test_a_wheel_that_comes_and_goes(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    run(sys.executable, "-m", "venv", "--without-pip", home)
    before = files(home)
    pip(home, "install", "--no-index", "--no-deps", wheel)
    assert (home / "bin" / "sdrun").exists()
    pip(home, "uninstall", "-y", "sdrun")
    assert not files(home) - before


def run_doctor(command: Path, env: dict[str, str]) -> str:
    """Its status is 1 where there is no RDMA device."""
    done = subprocess.run([command, "--json"], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


# A mount and PID namespace of our own over the host's files: what dpkg changes there is gone with it.
IN_OVERLAY = """
set -e
. "$3"
overlay / "$1"
mount --rbind /dev dev
cp "$2" tmp/sdrun.deb
chroot . sh -ec '
    cd /
    dpkg -i /tmp/sdrun.deb >&2
    man -w sdss >/dev/null
    test -f /usr/lib/systemd/system/sdmonitor.service
    for file in bash-completion/completions/sdss zsh/vendor-completions/_sdss fish/vendor_completions.d/sdss.fish; do
        grep -q "sdss" "/usr/share/$file"
    done
    dpkg -c /tmp/sdrun.deb > /tmp/contents  # hosts may leave out what is in /usr/share/doc
    grep -q "^-rwxr-xr-x.*/usr/share/doc/sdrun/examples/containers/pod.sh" /tmp/contents
    grep -q "/usr/share/doc/sdrun/docs/tutorial.md" /tmp/contents
    env -i PATH=/usr/bin:/bin sddoctor || test $? = 1
    nobody="setpriv --reuid 65534 --regid 65534 --clear-groups"
    env -i PATH=/usr/bin:/bin HOME=/nonexistent $nobody sddoctor || test $? = 1
    dpkg -P sdrun >&2
'
echo left:
cd "$1/up"
find . \\( -name "sd*" -o -path "*/sdrun*" \\) ! -path "./var/lib/dpkg/*" ! -path "./tmp*"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="dpkg needs root")
def test_a_debian_package_that_comes_and_goes(wheel: Path, tmp_path: Path) -> None:
    """Tried by root and by nobody; nothing is left of it."""
    [package] = wheel.parent.glob("*.deb")
    scratch = tmp_path / "overlay"
    scratch.mkdir()
    said = run("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", IN_OVERLAY, "sh", scratch, package,
               Path(__file__).with_name("overlay.sh"))
    tried, _, left = said.partition("left:\n")
    assert tried.count(TRIED) == 2, said
    assert not left, left


def test_pages_have_every_option_and_command() -> None:
    for command in commands(BIN / "sdrun"):
        page = man_page(command)
        assert len(command.options) >= 2 and command.summary, command
        for one in [command, *command.leaves()]:
            help_text = run(BIN / command.name, *one.name.split()[1:], "--help")
            assert "SUPPRESS" not in help_text, one.name
            for option in one.options + one.arguments:
                assert option.text, (one.name, option)
                for name in option.names:
                    assert name.replace("-", "\\-") in page and (name in help_text or name == "-h"), (one.name, name)


def test_pages_are_well_formed(tmp_path: Path) -> None:
    """groff has no complaint, and what it shows has the sections of a manual page."""
    manual.write(tmp_path, BIN / "sdrun")
    pages = sorted((tmp_path / "share" / "man" / "man1").iterdir())
    assert [page.stem for page in pages] == sorted(command.name for command in commands(BIN / "sdrun"))
    for page in pages:
        done = subprocess.run(["groff", "-ww", "-man", "-Tutf8", page], capture_output=True, text=True, check=True)
        assert not done.stderr, done.stderr
        shown = re.sub(r".\x08", "", done.stdout)  # bold is printed twice
        for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SEE ALSO"):
            assert re.search(rf"^{section}$", shown, re.MULTILINE), (page.stem, section)
        assert re.match(rf"{page.stem} \\- [A-Za-z]", page.read_text().splitlines()[2]), "what apropos finds"
