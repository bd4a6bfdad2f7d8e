# SPDX-License-Identifier: Apache-2.0
"""A machine of a newcomer: systemd, apt, an unprivileged user and a network of its own, over the host's files.

It is no container of Docker's: systemd is the first process in namespaces that unshare has made, so that `systemctl`,
units, `apt` and `useradd` are the real ones, and nothing of it is left on the host.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

HERE: Final = Path(__file__).resolve().parent
USER: Final = "newcomer"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT_S: Final = 120.0

Who = Literal["$", "#"]


def _own_cgroup() -> Path:
    """A control group of our own in the unified hierarchy, wherever that is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            folder = Path(before.split()[4]) / f"sdrun-newcomer-{os.getpid()}"
            try:
                folder.mkdir()
            except OSError as error:
                raise NoMachine(f"no control group for systemd: {error}") from None
            return folder
    raise NoMachine("no cgroup2 is mounted: systemd cannot run here")


class NoMachine(Exception):
    """None can be made on this host; str() says why."""


class Machine:
    """A machine that has booted. `root`: its files, as seen from here."""

    def __init__(self, init: int, root: Path, log: Path) -> None:
        self.root, self._init, self._log = root, init, log

    def run(self, script: str, who: Who = "#", cwd: str | None = None, timeout: float = 120,
            env: dict[str, str] | None = None) -> str:
        """What a script prints, errors too; as root (#) or as the unprivileged user ($)."""
        home = "/root" if who == "#" else f"/home/{USER}"
        login = [] if who == "#" else ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"]
        user = "root" if who == "#" else USER
        variables = {"PATH": _PATH, "HOME": home, "USER": user, "LANG": "C.UTF-8", **(env or {})}
        words = ["nsenter", "-t", str(self._init), "--all", f"--root={self.root}", f"--wd={self.root}{cwd or home}",
                 *login, "env", "-i", *(f"{name}={value}" for name, value in variables.items()),
                 "bash", "-e", "-o", "pipefail", "/tmp/script"]
        (self.root / "tmp" / "script").write_text(f"set -x\n{script}\n")  # not -c: `pkill -f` would find itself
        output = self._log.with_name("said")
        with output.open("w") as file:  # not a pipe: what goes on in the background would hold it
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=timeout,
                                  check=False)
        said = output.read_text()
        assert done.returncode == 0, f"{script}\n{said[-6000:]}\n{self._log.read_text()[-2000:]}"
        return said

    def wait(self, condition: str, timeout: float = 60) -> None:
        """Until a shell condition holds for root."""
        self.run(f"until {condition}; do sleep 0.1; done", timeout=timeout)


def segments(lines: Sequence[tuple[Who, str]]) -> Iterator[tuple[Who, str]]:
    """Commands one after the other, those of one user together: what a shell is told before another one is used."""
    who: Who = "#"
    collected: list[str] = []
    for marker, line in lines:
        if marker != who and collected:
            yield who, "\n".join(collected)
            collected = []
        who = marker
        collected.append(line)
    if collected:
        yield who, "\n".join(collected)


def _child_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(text[0]) if text else 0


def _end(process: subprocess.Popen[bytes], group: Path) -> None:
    process.kill()  # --kill-child: its systemd with it, and that one's processes with that
    process.wait()
    deadline = time.monotonic() + 30
    while True:
        for place in sorted(group.rglob("*"), reverse=True):
            if place.is_dir():
                with suppress(OSError):
                    place.rmdir()
        try:
            return group.rmdir()
        except OSError:
            assert time.monotonic() < deadline, f"{group}: not empty"
            time.sleep(0.1)


@contextmanager
def machine(scratch: Path) -> Iterator[Machine]:
    """One that runs, with its user; it ends with the scope. Needs root."""
    group = _own_cgroup()
    (scratch / "root").mkdir()
    log = scratch / "log"
    command = (f"echo $$ >{shlex.quote(str(group / 'cgroup.procs'))}; exec unshare --cgroup --mount --pid --net --ipc "
               f"--uts --fork --kill-child sh {HERE / 'machine.sh'} {shlex.quote(str(scratch / 'root'))}")
    with log.open("wb") as file:
        process = subprocess.Popen(["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                   start_new_session=True)
    try:
        init = _until_booted(process, log)
        booted = Machine(init, Path(f"/proc/{init}/root"), log)
        booted.wait("systemctl is-active basic.target >/dev/null")
        booted.run(f"useradd -m -s /bin/bash {USER}")
        yield booted
    finally:
        _end(process, group)


def _until_booted(process: subprocess.Popen[bytes], log: Path) -> int:
    """The pid of its systemd, once that is what runs there."""
    deadline = time.monotonic() + _BOOT_S
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoMachine(f"systemd does not start in namespaces: {log.read_text()[-300:]}")
        init = _child_of(process.pid)
        with suppress(OSError):
            if init and re.search("systemd$", os.readlink(f"/proc/{init}/exe")):
                return init
        time.sleep(0.05)
