# SPDX-License-Identifier: Apache-2.0
"""`make newcomer`: a Debian with nothing on it, the README's first commands, and packages built and installed there.

Debian's and PyPI's registries are asked, as a new user's machine would.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.packaging.documented import of_section

pytestmark = [pytest.mark.skipif("SDRUN_NEWCOMER" not in os.environ, reason="`make newcomer` runs it"),
              pytest.mark.timeout(1800)]
BASE = ROOT / "build" / "newcomer" / "debian"


@pytest.fixture(scope="session")
def base() -> Path:
    """The smallest Debian 12; made once, and never written to."""
    if not (BASE / "etc" / "debian_version").exists():
        made = BASE.with_name("debian.new")
        subprocess.run(["rm", "-rf", made], check=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", made], check=True, timeout=900,
                       stdout=subprocess.DEVNULL)
        made.rename(BASE)
    return BASE


def test_a_new_user_on_a_clean_debian(base: Path, tmp_path: Path) -> None:
    """make demo and what follows it; then a wheel from the sdist alone, and both packages with what they depend on."""
    first = [command for _, command in of_section("README.md", "")]
    assert first[0] == "make demo" and first[1].endswith("&"), first
    lines = [
        # A minimal Debian lacks even make, and any has lists of packages.
        "apt-get update -q", "apt-get install -y -q make",
        "cd /root/sdrun", first[0], first[1], "until redis-cli ping; do sleep 0.2; done", *first[2:],
        "kill %1", "wait %1 || true", "make package",
        # Out of the sdist, by what PyPI has for building: nothing is left of the checkout's environment.
        "cd /tmp", "python3 -m venv build",
        "build/bin/pip wheel -q --no-deps -w out /root/sdrun/build/dist/sdrun-*.tar.gz",
        "mv /root/sdrun/.venv /root/sdrun/gone",
        "python3 -m venv sd", "sd/bin/pip install -q out/sdrun-*.whl", "sd/bin/sddoctor || test $? = 1",
        "apt-get install -y -q /root/sdrun/build/dist/sdrun_*.deb", "sddoctor || test $? = 1",
        "setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/nonexistent sddoctor || test $? = 1",
        "apt-get purge -y -q sdrun", "test ! -e /usr/lib/sdrun", "test ! -e /usr/bin/sdrun",
    ]  # fmt: skip
    (tmp_path / "script").write_text("\n".join(lines))
    (tmp_path / "scratch").mkdir()
    places = (Path(__file__).with_name("clean_debian.sh"), base, tmp_path / "scratch", ROOT, tmp_path / "script")
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", *map(str, places)]
    with (tmp_path / "said").open("w") as file:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=1500,
                                check=False).returncode
    said = (tmp_path / "said").read_text()
    assert status == 0, said[-6000:]
    assert re.search(r"redis GET, 1 connection +│.*x │", said), "the demo's table"
    assert "carried by shared memory" in said and "requests per second" in said
    assert said.count("trial: 200 round trips") == 3, said[-6000:]
