# SPDX-License-Identifier: Apache-2.0
"""What a machine is at when something on it does not go on: for the message of a test that has waited in vain.

Everything is read and nothing is touched, so it is of use while the processes still hang.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

_OURS: Final = ("sdrun", "sdtrace", "monitor", "integrity")
_TEXT_MAX: Final = 6000


class Syslog:
    """Whoever writes to /dev/log where nobody listens: supervisors say there why they have no monitor."""

    def __init__(self, path: Path = Path("/dev/log")) -> None:
        self._lines: list[str] = []
        self._path = path
        self._sock: socket.socket | None = None
        if path.exists() or os.geteuid() != 0:
            return
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        threading.Thread(target=self._read, args=(self._sock,), daemon=True).start()

    def _read(self, sock: socket.socket) -> None:
        with suppress(OSError):
            while data := sock.recv(4096):
                self._lines.append(data.decode(errors="replace"))

    def last(self, count: int = 80) -> str:
        """What was said."""
        return "\n".join(self._lines[-count:])

    def close(self) -> None:
        """Nobody listens any more."""
        if self._sock is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()
            self._sock = None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stdout.decode(errors="replace")


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip()
    return "?"


def _tasks(pid: int) -> str:
    """Where each thread of a process is in the kernel."""
    found = []
    with suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            state = next((line for line in _read(task / "status").splitlines() if line.startswith("State")), "?")
            stack = _read(task / "stack").replace("\n", " < ")
            found.append(f"  {task.name} {state} syscall {_read(task / 'syscall')}\n    {stack}")
    return "\n".join(found)


def _ours() -> list[tuple[int, str]]:
    """Processes that may be the project's, or are stuck in the kernel or dead: by pid."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        command = _read(entry / "cmdline").replace("\0", " ")
        stat = _read(entry / "stat")
        state = stat.rsplit(")", 1)[-1].split()[:1]
        if any(word in command for word in _OURS) or state in (["D"], ["Z"]):
            found.append((int(entry.name), f"{stat.split(' ', 2)[1:2]} {command}"))
    return sorted(found)


def gather() -> str:
    """All of it, as text."""
    parts = [("processes", _output("ps", "-eo", "pid,ppid,stat,wchan:24,etimes,time,args", "--cols", "200"))]
    parts += [(f"{pid} {name}", _tasks(pid)) for pid, name in _ours()]
    parts.append(("locks", _read(Path("/proc/locks"))))
    parts.append(("unix sockets", _output("ss", "-xlp")))
    parts.append(("tcp", _output("ss", "-tanp")))
    parts.append(("rdma", _output("rdma", "-d", "resource", "show", "qp")))
    parts.append(("kernel", _output("dmesg")[-_TEXT_MAX:]))
    return "\n".join(f"--- {title}\n{text[-_TEXT_MAX * 4:]}" for title, text in parts)
