# SPDX-License-Identifier: Apache-2.0
"""The host's hardened unit between hosts: with the drop-in of docs/hosts.md its monitor wakes programs of any user up
itself; without the capability in it, their supervisors do.

The other host is a network namespace of the machine; the device is made of sockets (tests/hosted/softverbs.c).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guestbuild import C_FLAGS
from tests.harness import ROOT
from tests.packaging.machine import Machine, NoMachine, machine

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="a machine of namespaces needs root"),
              pytest.mark.timeout(900)]

UNIT = "/etc/systemd/system/sdmonitor.service.d"
PREPARE = """
    apt install ./sdrun_*.deb
    ip netns add far
    ip link add va type veth peer name vb netns far
    ip addr add 10.9.0.1/24 dev va && ip link set va up
    ip -n far addr add 10.9.0.2/24 dev vb && ip -n far link set vb up && ip -n far link set lo up
    mkdir -p /etc/socksdirect /root/far /opt/soft
    for host in a b; do
        gids=/opt/soft/$host/soft/ports/1/gids types=/opt/soft/$host/soft/ports/1/gid_attrs/types
        mkdir -p $gids $types && echo "RoCE v2" > $types/0
    done
    echo ::ffff:10.9.0.1 > /opt/soft/a/soft/ports/1/gids/0
    echo ::ffff:10.9.0.2 > /opt/soft/b/soft/ports/1/gids/0
    umask 077
    echo "a key that the two of them share" | tee /etc/socksdirect/b.key > /root/far/a.key
"""
TALK = """
    sdrun -- redis-server --port 7060 --bind 10.9.0.1 --protected-mode no --save "" --dir /tmp > redis.log &
    until redis-cli -h 10.9.0.1 -p 7060 ping; do sleep 0.1; done
"""
FAR = """
    cd /root/far
    export SOFTVERBS=/run/socksdirect/wire SDRUN_INFINIBAND=/opt/soft/b
    ip netns exec far sdmonitor --socket /root/far/m.sock --hosts /root/far/hosts.yaml --verbose > log 2>&1 &
    until grep -q host-up log; do sleep 0.1; done
"""


# How many requests it takes until the connection has moved is the machine's affair.
ASK = """
    SOCKSDIRECT_MONITOR=/root/far/m.sock XDG_RUNTIME_DIR=/root/far ip netns exec far sdrun --set upgrade=eager -- \\
        redis-benchmark -h 10.9.0.1 -p 7060 -t get -c 1 -n 100000000 -q > /root/far/bench 2>&1 &
    until sdctl status --json > /root/far/status && python3 -c '
import json, sys
sys.exit(not any(one["in"] > 40_000 for one in json.load(open("/root/far/status"))["hosts"]["connections"]))'
    do sleep 0.2; done
"""


def config(name: str, own: str, other: str, address: str) -> str:
    return json.dumps({
        "name": name, "listen": f"{own}:7471", "spin_us": 0,
        "peers": {other: {"monitor": f"{address}:7471", "addresses": [f"{address}/32"], "key_file": f"{other}.key"}},
        "device": {"library": "/opt/soft/libsoft.so"}})


@pytest.fixture(scope="module")
def hosts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with ExitStack() as scope:
        try:
            booted = scope.enter_context(machine(tmp_path_factory.mktemp("hosts")))
        except NoMachine as why:
            pytest.skip(str(why))
        [package] = wheel.parent.glob("*.deb")
        shutil.copy(package, booted.root / "root")
        booted.run(PREPARE, timeout=300)
        subprocess.run(["gcc", *C_FLAGS, "-shared", "-fPIC", "-o", booted.root / "opt/soft/libsoft.so",
                        ROOT / "tests/hosted/softverbs.c"], check=True)
        (booted.root / "etc/socksdirect/hosts.yaml").write_text(config("a", "10.9.0.1", "b", "10.9.0.2"))
        (booted.root / "root/far/hosts.yaml").write_text(config("b", "10.9.0.2", "a", "10.9.0.1"))
        yield booted


def rings(booted: Machine, drop_in: str) -> tuple[int, str]:
    """Doorbells that the unit's monitor has sent itself to a program of the unprivileged user's; what it has logged."""
    folder = booted.root / UNIT[1:]
    folder.mkdir(parents=True, exist_ok=True)
    more = ("Environment=SOFTVERBS=/run/socksdirect/wire SDRUN_INFINIBAND=/opt/soft/a\n"
            "ExecStartPre=mkdir -p /run/socksdirect/wire\n")
    (folder / "hosts.conf").write_text(drop_in + more)
    booted.run("systemctl daemon-reload && systemctl restart sdmonitor")
    booted.run(FAR)
    booted.run(TALK, "$")
    try:
        booted.run(ASK)
    except (AssertionError, subprocess.TimeoutExpired):
        raise AssertionError(booted.run("journalctl --no-pager -u sdmonitor | tail -40")) from None
    status = json.loads((booted.root / "root/far/status").read_text())
    booted.run("pkill -x redis-server; ip netns pids far | { xargs -r kill || true; }; systemctl stop sdmonitor\n"
               "rm -f /root/far/m.sock")
    [peer] = status["hosts"]["peers"]
    return int(peer["port"]["rings"]), booted.run("journalctl --no-pager -u sdmonitor -o cat")


def test_the_drop_in_lets_the_monitor_wake_programs_up(hosts: Machine) -> None:
    page = (ROOT / "docs" / "hosts.md").read_text()
    [drop_in] = re.findall(r"```ini\n(\[Service\]\nPrivateNetwork=no\n.*?)```", page, re.DOTALL)
    less = "".join(line for line in drop_in.splitlines(keepends=True) if "PTRACE" not in line and "pidfd" not in line)
    assert less.count("\n") == drop_in.count("\n") - 2
    done, log = rings(hosts, less)
    assert done == 0, log
    done, log = rings(hosts, drop_in)
    assert done > 300, log
