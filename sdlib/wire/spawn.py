# SPDX-License-Identifier: Apache-2.0
"""Starting a monitor for a client that found none.

The monitor takes its lock, binds and listens before it detaches, so when the starter returns 0 somebody listens:
the new monitor, or the one that won the race. The starter's exit status is the only readiness signal needed.

Isolated mode (-I) because the environment is the program's: its PYTHONPATH and PYTHONHOME are not meant for us.
"""

from __future__ import annotations

import os
import sys

import sdlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MAIN: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(sdlib.__file__))), "monitor", "__main__.py")
IDLE_EXIT_S: Final = 30


class SpawnFailed(Exception):
    """No monitor could be started; str() is one line."""


def spawn_monitor(socket_path: str, timeout_s: float, idle_exit_s: float = IDLE_EXIT_S) -> None:
    """Start a detached monitor at `socket_path` that leaves when idle; raises SpawnFailed.

    Returns once it listens, or once another one that listens there was found.
    """
    import subprocess  # imported here: most clients find a monitor and never need it

    command = [sys.executable, "-I", _MAIN, "--detach", "--socket", socket_path, "--idle-exit", f"{idle_exit_s:g}"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            close_fds=True,
            start_new_session=True,
            timeout=max(timeout_s, 0.01),
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SpawnFailed(f"sdmonitor could not be started: {error}") from None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise SpawnFailed(f"sdmonitor failed (exit {done.returncode}): {said[-1] if said else 'it said nothing'}")
