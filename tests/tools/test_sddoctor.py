# SPDX-License-Identifier: Apache-2.0
"""sddoctor: what it says where all is well, and that it notices what is taken away from it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import SDRUN
from tools.doctor import kernel, unit
from tools.doctor.cli import examine
from tools.doctor.findings import Finding, Level

DOCTOR = SDRUN.parent / "sddoctor"


def ask(env: dict[str, str], *options: str, before: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([*before, DOCTOR, "--json", *options], env=env, capture_output=True, text=True, timeout=90,
                          check=False)
    assert not done.stderr, done.stderr
    said = json.loads(done.stdout)
    return done.returncode, {line["name"]: line for line in said["findings"]} | {"worst": said["worst"]}


def test_here_nothing_stops_sdrun(sd_env: dict[str, str]) -> None:
    status, said = ask(sd_env)
    assert status in (0, 1), [line for line in said.values() if "stops" in str(line)]
    assert said["trial"]["level"] == "ok", said["trial"]
    assert "bytes through shared memory" in said["trial"]["text"]
    assert re.match(r"\d+ processes under \d+ sdrun", said["programs"]["text"])
    names = ("kernel", "memfd seals", "membarrier", "library", "policies", "sdrun")
    assert all(said[name]["level"] == "ok" for name in names)


def test_a_bug_report_says_where_it_is_from_and_not_whose_it_is(sd_env: dict[str, str]) -> None:
    said = subprocess.run([DOCTOR, "--json", "--no-trial"], env={**sd_env, "SECRET": "hunter2"}, capture_output=True,
                          text=True, timeout=90, check=False).stdout
    document = json.loads(said)
    assert document["system"].startswith("Linux-") and document["host"]["cpus"] == os.cpu_count()
    assert all(document["host"][name] for name in ("distribution", "libc", "cpu", "memory", "clocksource"))
    assert "hunter2" not in said


def test_a_wrong_policy_stops(sd_env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "socksdirect"
    folder.mkdir()
    (folder / "own.yaml").write_text("version: 1\nno-such-key: 1\n")
    status, said = ask({**sd_env, "XDG_CONFIG_HOME": str(tmp_path)}, "--no-trial")
    assert (status, said["worst"]) == (3, "stops")
    assert said["policies"]["level"] == "stops" and "own.yaml" in said["policies"]["text"]
    assert "sdrun --check" in said["policies"]["mend"]


def test_few_descriptors_are_told(sd_env: dict[str, str]) -> None:
    status, said = ask(sd_env, "--no-trial", before=("prlimit", "--nofile=300:300"))
    assert status == 1
    assert said["open files"]["level"] == "without" and "ulimit" in said["open files"]["mend"]


@pytest.mark.parametrize("lacks", ["ptrace", "pidfd_getfd"])
def test_what_a_container_forbids(lacks: str) -> None:
    """A target that is out of reach is what Yama, or a missing capability, looks like."""

    def out_of_reach(target: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert kernel._between_siblings(out_of_reach) == "EPERM"
    attempt = {"ptrace": kernel._trace, "pidfd_getfd": kernel._copy}[lacks]
    assert kernel._between_siblings(attempt) == ""


def test_an_unprivileged_user_cannot_reach_what_is_not_dumpable() -> None:
    def as_nobody(target: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(117, 65534, 65534, 65534) < 0:  # setresuid, of this child only
            raise OSError(ctypes.get_errno(), "setresuid")
        kernel._trace(target)

    assert kernel._between_siblings(as_nobody) == "EPERM"


def test_a_check_that_fails_is_a_finding() -> None:
    def broken() -> Finding:
        raise RuntimeError("oops")

    [found] = examine([broken])
    assert found.level is Level.STOPS and "oops" in found.text


# What `systemctl show` says of Debian's redis-server.service, and of one that holds nothing back.
REDIS = {
    "LoadState": "loaded", "User": "redis", "NoExecPaths": "/", "ExecPaths": "/usr/bin/redis-server /usr/lib /lib",
    "ExecStart": "{ path=/usr/bin/redis-server ; argv[]=/usr/bin/redis-server /etc/redis/redis.conf --supervised "
                 "systemd --daemonize no ; ignore_errors=no ; start_time=[n/a] }",
    "SystemCallFilter": "_llseek accept accept4 memfd_create membarrier", "MemoryDenyWriteExecute": "yes",
    "PrivateTmp": "yes", "PrivateNetwork": "no", "CapabilityBoundingSet": "",
}  # fmt: skip
PLAIN = {"LoadState": "loaded", "ExecStart": "{ path=/usr/bin/sdrun ; argv[]=/usr/bin/sdrun -- nginx ; }"}


def test_what_a_unit_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "yama", lambda: "0")
    found = {check(REDIS).name: check(REDIS) for check in unit.CHECKS}
    assert {name: finding.level.name for name, finding in found.items()} == {
        "ExecStart": "WITHOUT", "SystemCallFilter": "STOPS", "NoExecPaths": "STOPS",
        "MemoryDenyWriteExecute": "WITHOUT", "User": "OK", "monitor": found["monitor"].level.name}
    text = unit.drop_in(list(found.values()))
    assert text.startswith("[Service]\nExecStart=\nExecStart=/") and "systemctl" not in text
    assert "sdrun -- /usr/bin/redis-server /etc/redis/redis.conf --supervised systemd --daemonize no\n" in text
    assert "SystemCallFilter=\nSystemCallFilter=~" in text and "MemoryDenyWriteExecute=no" in text
    assert "ExecPaths=/" in text and "python3" in text
    mended = REDIS | {"SystemCallFilter": "~clock_settime swapon", "ExecPaths": "/", "MemoryDenyWriteExecute": "no",
                      "ExecStart": PLAIN["ExecStart"]}
    assert not unit.drop_in([check(mended) for check in unit.CHECKS])
    assert unit.calls(REDIS | {"SystemCallFilter": "~ptrace swapon"}).mend == "SystemCallFilter=ptrace"
    monkeypatch.setattr(unit, "yama", lambda: "1")
    assert unit.tracing(REDIS).level is Level.OK
    monkeypatch.setattr(unit, "yama", lambda: "2")
    assert unit.tracing(REDIS).level is Level.STOPS
    assert unit.tracing(PLAIN | {"CapabilityBoundingSet": "cap_sys_ptrace"}).level is Level.OK


def test_a_unit_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "ask", lambda _: {"LoadState": "not-found"})
    [finding] = unit.examine("no-such")
    assert finding.level is Level.STOPS and "not-found" in finding.text
