# SPDX-License-Identifier: Apache-2.0
"""What the tests of the tools have in common: a server to look at, and asking the tools."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.harness import SDRUN

BIN = SDRUN.parent

SERVER = """
import socket, sys, threading
def serve(conn):
    while data := conn.recv(64):
        if data.startswith(b"stop"): return threading.Event().wait()
        conn.sendall(data)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    kept = []
    while True:
        kept.append(listener.accept()[0])
        threading.Thread(target=serve, args=kept[-1:], daemon=True).start()
"""


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", code, *arguments)


def ask(env: dict[str, str], command: str, *options: str) -> str:
    done = subprocess.run([BIN / command, *options], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(env: dict[str, str], *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ask(env, "sdss", "--json", *options))["connections"]
    return found


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (result := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result
