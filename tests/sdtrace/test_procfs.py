# SPDX-License-Identifier: Apache-2.0
"""What /proc is asked when it cannot be opened."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.harness import ROOT


def test_nobody_is_dead_because_descriptors_are_lacking() -> None:
    script = (
        "import os, resource, sys; from sdtrace import procfs\n"
        "print(procfs.running(os.getpid()), procfs.running(int(sys.argv[1])))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "print(procfs.running(os.getpid()))\n"
    )
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    done = subprocess.run([sys.executable, "-c", script, str(gone.pid)], cwd=ROOT, env=dict(os.environ),
                          stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]
