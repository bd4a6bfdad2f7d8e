# SPDX-License-Identifier: Apache-2.0
"""The containers' example as it is shipped: two of them, made with unshare, one monitor outside."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.harness import ROOT, SDRUN

EXAMPLE = ROOT / "examples" / "containers"


@pytest.mark.skipif(os.geteuid() != 0, reason="containers of the host's monitor need root")
def test_two_containers_and_one_monitor(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{SDRUN.parent}:{os.environ['PATH']}"}
    done = subprocess.run([EXAMPLE / "pod.sh", tmp_path], env=env, capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for end in ("server", "client"):
        report = json.loads((tmp_path / f"{end}.json").read_text())
        assert report["connections"]["shm"] >= 4, report["connections"]
        assert report["processes"][0]["pid"] == 1, "each is the first process of its container"


def test_compose_says_what_the_script_does() -> None:
    """Nobody has Docker here; what it is told are the three things that the script shows to be enough."""
    services = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())["services"]
    script = (EXAMPLE / "pod.sh").read_text()
    assert services["client"]["network_mode"] == "service:server" and "nsenter --net" in script
    for service in services.values():
        assert service["volumes"] == ["/run/socksdirect:/run/socksdirect"] and "/run/socksdirect" in script
        assert service["command"][0] in script and service["cap_add"] == ["SYS_PTRACE"]
