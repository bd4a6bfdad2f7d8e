# SPDX-License-Identifier: Apache-2.0
"""What the pages say about packages, services, upgrades and crashes, as it is written, on a machine with systemd."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.packaging.conftest import NEEDED, run
from tests.packaging.documented import of_section
from tests.packaging.machine import USER, Machine, NoMachine, Who, machine, segments

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="a machine of namespaces needs root"),
              pytest.mark.timeout(900)]  # the first of them waits for the package

HOME = f"/home/{USER}"
TRIED = "trial: 200 round trips"
# In /var others write all the time, and the package manager keeps its books there: ours would have our names.
FILES = (r"find /usr /etc /opt /srv /root /home -xdev -name __pycache__ -prune -o -print; find /var -xdev -path "
         r"/var/lib/dpkg -prune -o \( -name '*sdrun*' -o -name '*socksdirect*' -o -name '*sdmonitor*' \) -print")


@pytest.fixture(scope="module")
def newcomer(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With a checkout's build/dist in his home, and the packages that ours need where pip looks."""
    with ExitStack() as scope:
        try:
            booted = scope.enter_context(machine(tmp_path_factory.mktemp("machine")))
        except NoMachine as why:
            pytest.skip(str(why))
        home = booted.root / HOME[1:]
        (home / "build" / "dist").mkdir(parents=True)
        for made in wheel.parent.iterdir():
            if made.is_file():
                shutil.copy(made, home / "build" / "dist")
        [package] = wheel.parent.glob("*.deb")
        shutil.copy(package, booted.root / "root")
        needed = tmp_path_factory.mktemp("wheels")
        run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download", "-d", needed, "-c",
            ROOT / "requirements.lock", *NEEDED)
        shutil.copytree(needed, home / "wheels")
        booted.run(f"chown -R {USER}: {HOME}")
        yield booted


def follow(booted: Machine, commands: list[tuple[Who, str]], cwd: str) -> str:
    """All of them, as who is named; what they say."""
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"{HOME}/wheels"}
    return "".join(booted.run(script, who, cwd if who == "#" else HOME, env=pip) for who, script in segments(commands))


def test_install_and_remove(newcomer: Machine) -> None:
    """The README's section; nothing is left of the package, nor of what is in an environment."""
    before = newcomer.run(FILES)
    said = follow(newcomer, of_section("README.md", "Install"), HOME)
    assert said.count(TRIED) == 2, said
    left = set(newcomer.run(FILES).splitlines()) - set(before.splitlines())
    assert not [path for path in left if not path.startswith(f"{HOME}/.")], left


def test_the_guide_for_operators(newcomer: Machine) -> None:
    said = follow(newcomer, of_section("docs/operating.md", "Install and remove", "One monitor per host"), "/root")
    for page in ("sdrun", "sdss", "sdmonitor"):
        assert f"/usr/share/man/man1/{page}.1.gz" in said
    assert TRIED in said and "Active: active (running)" in said
    assert "monitor" in said and "/run/socksdirect/monitor.sock" in said
    _pairs_of_a_user(newcomer)
    log = newcomer.run("journalctl --no-pager -u sdmonitor -o cat")
    assert "/run/socksdirect/monitor.sock" in log and "Traceback" not in log, log
    newcomer.run("systemd-analyze verify sdmonitor.service && systemctl disable --now sdmonitor && apt purge sdrun")


def _pairs_of_a_user(newcomer: Machine) -> None:
    """An unprivileged user's programs meet at the host's monitor."""
    newcomer.run("""
        rm -rf /tmp/socksdirect-$(id -u)
        sdrun -- redis-server --port 7051 --save "" --appendonly no > redis.log &
        until redis-cli -p 7051 ping; do sleep 0.1; done
        sdrun --set upgrade=eager --report report.json -- redis-benchmark -p 7051 -t get -c 1 -n 20000 -q
        kill $! && wait $! || true
        until [ -s report.json ]; do sleep 0.1; done
        python3 -c 'import json; assert json.load(open("report.json"))["connections"]["shm"] >= 1'
        test ! -e /tmp/socksdirect-$(id -u)/monitor.sock
        rm -f report.json redis.log""", "$")


def test_a_hardened_service(newcomer: Machine) -> None:
    """Debian's redis-server.service: as it is sdrun says why not; with the drop-in of the page it is carried."""
    newcomer.run("apt install ./sdrun_*.deb")
    newcomer.run("""
        systemctl restart redis-server
        sddoctor --unit redis-server > doctor.txt || test $? = 3
        mkdir -p /etc/systemd/system/redis-server.service.d
        cat > /etc/systemd/system/redis-server.service.d/sdrun.conf <<'END'
[Service]
Restart=no
ExecStart=
ExecStart=/usr/bin/sdrun -- /usr/bin/redis-server /etc/redis/redis.conf --supervised systemd --daemonize no
END
        systemctl daemon-reload
        if systemctl restart redis-server; then false; fi""")
    assert "SystemCallFilter= may only list what it denies" in newcomer.run("journalctl -u redis-server -o cat")
    commands = of_section("docs/operating.md", "Hardened units")
    [written] = [text for _, text in commands if text.startswith("cat > ")]
    doctor = (newcomer.root / "root" / "doctor.txt").read_text()
    assert doctor.partition("# systemctl edit redis-server\n")[2].strip() in written, doctor
    said = follow(newcomer, commands, "/root")
    assert "denies nothing that sdrun needs" in said and '("redis-server",pid=' in said, said[-3000:]
    newcomer.run("systemctl stop redis-server; systemctl disable --now sdmonitor; apt purge sdrun")


def test_the_questions_of_who_runs_nginx(newcomer: Machine) -> None:
    """Put under a service, looked at, crashed, given back, upgraded and removed; wrk sees no error in all of it."""
    newcomer.run("apt install ./sdrun_*.deb")
    said = follow(newcomer, of_section("docs/questions.md"), "/root")
    before, _, detached = said.partition("sdrun --detach")
    # Ends of wrk's two connections, of the one with which it has looked whether somebody listens, and of curl's.
    assert re.search(r"\(shm [1-4], rdma 0, tcp \d\)", before), before[:5000]
    assert "(shm 0, rdma 0, tcp 2)" in detached, detached[:3000]
    assert "1 reinstalled" in said and "monitor " in said
    bug = (newcomer.root / HOME[1:] / "bug.json").read_text()
    assert '"trial"' in bug and '"python"' in bug
    assert (newcomer.root / HOME[1:] / "explain.txt").read_text().strip()
