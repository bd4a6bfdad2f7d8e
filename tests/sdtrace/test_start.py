# SPDX-License-Identifier: Apache-2.0
"""A program waits for the supervisor's start at its first socket: what that imports is kept small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from policies.loader import PACKAGED_DIR, packaged_layers, read_packaged

# Each takes milliseconds, by itself or by what it imports. `enum` would be here if socket did not need it.
FORBIDDEN = {
    "argparse", "ast", "asyncio", "concurrent.futures", "dataclasses", "datetime", "fnmatch", "glob", "hashlib",
    "inspect", "ipaddress", "json", "jsonschema", "locale", "logging", "multiprocessing", "pathlib", "random", "re",
    "shutil", "subprocess", "tempfile", "traceback", "typing", "urllib", "uuid", "yaml",
    "sdlib.wire.client", "sdlib.wire.messages", "sdlib.wire.reach", "sdtrace.giveback",
    "sdtrace.recall", "sdtrace.refill", "sdtrace.trace",
}  # fmt: skip

START = """
import sys
sys.path[:] = {path!r}
import policies
from sdlib import abi
from sdtrace import image, supervisor
image.load(abi.const.SD_ABI_VERSION)
policy = policies.load(None, {{}})
for program in "/usr/bin/true", "/usr/bin/nginx", "/usr/bin/python3":
    policies.effective(policy, program, ["upgrade=eager", "ring=64KiB"])
print(*sys.modules)
"""


def test_what_the_start_imports() -> None:
    start = [sys.executable, "-I", "-S", "-c", START.format(path=sys.path)]
    done = subprocess.run(start, capture_output=True, text=True, check=True)
    assert "sdtrace.answers" in done.stdout.split()
    assert not FORBIDDEN & set(done.stdout.split())


def test_packaged_policies_are_as_their_files_say() -> None:
    for path in sorted(Path(PACKAGED_DIR).glob("*.yaml")):
        program = {"postgresql": "postgres"}.get(path.stem, path.stem)
        assert read_packaged(str(path)) in packaged_layers(f"/usr/bin/{program}")
