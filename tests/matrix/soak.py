# SPDX-License-Identifier: Apache-2.0
"""Random columns and states of the matrix, one after the other, while supervisor and monitor are killed at random.

    python -m tests.matrix.soak [--minutes 30] [--seed N]

Every cell has to be right each time, whoever dies: both ends check every byte, error and end.  Afterwards nothing may
be left: no process of ours, no file, no ring in the monitor, neither as a descriptor nor mapped, and the monitor has
not grown, in memory, mappings or descriptors.  The seed is printed; the same one makes the same choices.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.harness import SDRUN, Mode, Program, Report, Runner, end_monitor
from tests.matrix import cells
from tests.sdtrace.support import supervisor_of

VICTIMS: Final = ("", "", "", "supervisor", "monitor", "both")
GONE_WITHIN_S: Final = 30.0
HUNG_AFTER_S: Final = 120.0
MONITOR_MAY_GROW: Final = 16 * 1024
"""KiB of resident memory, over the whole soak: Python's heap settles in the first minutes."""
MAPPINGS_MAY_GROW: Final = 32
DESCRIPTORS_MAY_GROW: Final = 4
FILES_MOST: Final = 8
"""The monitor's socket, lock and log; two names each of two supervisors that were killed, until the next one starts."""


class SoakError(Exception):
    """What went wrong, for people."""


@dataclass
class Soak:
    """The state of a soak."""

    folder: Path
    choice: random.Random
    programs: cells.Programs
    env: dict[str, str]
    natively: dict[tuple[str, str], dict[str, cells.Cell]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    """How large the monitor was when it was first looked at; it starts anew after it was killed."""
    last: dict[str, int] = field(default_factory=dict)

    def expected(self, column: str, state: str) -> dict[str, cells.Cell]:
        """What the kernel says, asked once."""
        if (column, state) not in self.natively:
            runner = Runner(Mode.NATIVE, self._place("native"), self.env)
            try:
                self.natively[column, state] = cells.run(runner, self.programs, column, state)
            finally:
                runner.close()
        return self.natively[column, state]

    def once(self) -> None:
        """One run of a column in a state."""
        column, state = self.choice.choice(cells.COLUMNS), self.choice.choice(cells.STATES)
        victims, after_s = self.choice.choice(VICTIMS), self.choice.random() * 2
        expected = self.expected(column, state)
        place = self._place("sdrun")
        runner = Runner(Mode.SHM, place, self.env, cells.options(state))
        what = f"{column}, {state}, killed: {victims or 'nobody'} after {after_s:.2f} s"
        try:
            program = runner.start(*self.programs.command(column, state))
            if victims:
                self._kill(program, victims, after_s)
            self._finish(program, what)
            found = cells.parse(program.stdout, self._report(program, victims))
        finally:
            runner.close()
        wrong = {name: cell for name, cell in found.items()
                 if (cell.holder, cell.peer) != (expected[name].holder, expected[name].peer)}
        if wrong or found.keys() != expected.keys():
            raise SoakError(f"{what}: {wrong}\n{program.describe()}")
        self.done[f"killed: {victims or 'nobody'}"] += 1
        self.done["cells"] += len(found)
        self.done["cells on shared memory"] += sum(cell.path.startswith("shm") for cell in found.values())
        shutil.rmtree(place)

    def _finish(self, program: Program, what: str) -> None:
        try:
            program.ok(HUNG_AFTER_S)
        except AssertionError as error:
            states = "\n".join(f"{pid} {line}: {_where(pid)}" for pid, line in self.ours().items())
            raise SoakError(f"{what}: {error}\n{states}") from None

    def _place(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def _kill(self, program: Program, victims: str, after_s: float) -> None:
        supervisor = supervisor_of(program)
        # Before that nobody has looked at the options: then nothing is started.
        program.until(lambda: os.readlink(f"/proc/{program.pid}/exe") != str(SDRUN), "execve")
        time.sleep(after_s)
        with suppress(OSError):  # it may have come to its end before
            if victims != "supervisor":
                end_monitor(self.folder, signal.SIGKILL)
            if victims != "monitor":
                os.kill(supervisor, signal.SIGKILL)

    def _report(self, program: Program, victims: str) -> Report | None:
        report = program.report()
        if "error" in report.raw:
            if victims in ("", "monitor"):
                raise SoakError(f"{report.raw['error']}\n{program.describe()}")
            return None  # a successor's, which does not know all connections, or the keeper's, which knows none
        return report

    def ours(self) -> dict[int, str]:
        """Living processes of this soak, by the environment that all of them have."""
        mark = f"XDG_RUNTIME_DIR={self.folder}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = line.decode(errors="replace")
        found.pop(os.getpid(), None)
        return found

    def settle(self) -> None:
        """Only the monitor may be left, with no ring, and not have grown."""
        deadline = time.monotonic() + GONE_WITHIN_S
        while True:
            left = self.ours()
            monitors = {pid for pid, line in left.items() if "monitor" in line}
            rings = [ring for pid in monitors for ring in (*_memfds(pid), *_mapped_memfds(pid))]
            if len(monitors) == len(left) and len(monitors) <= 1 and not rings:
                break
            if time.monotonic() > deadline:
                raise SoakError(f"left behind: {left}, rings {rings}")
            time.sleep(0.2)
        for pid in monitors:
            self._has_not_grown(pid)
        files = sorted(path.name for path in self.folder.glob("socksdirect/*"))
        if len(files) > FILES_MOST:
            raise SoakError(f"files are left: {files}")

    def _has_not_grown(self, pid: int) -> None:
        now = {"KiB": _resident_kib(pid), "mappings": _count(pid, "maps"), "descriptors": _descriptors(pid)}
        if 0 in now.values():
            return  # it has ended meanwhile
        limits = {"KiB": MONITOR_MAY_GROW, "mappings": MAPPINGS_MAY_GROW, "descriptors": DESCRIPTORS_MAY_GROW}
        self.first = self.first or now
        grown = [what for what, limit in limits.items() if now[what] > self.first[what] + limit]
        if grown:
            raise SoakError(f"the monitor has grown: {grown}, {now}, in the beginning {self.first}")
        self.last = now


def _memfds(pid: int) -> list[str]:
    found = []
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(entry.readlink())
                if "memfd:" in target:
                    found.append(target)
    return found


def _mapped_memfds(pid: int) -> list[str]:
    """Rings that are mapped, whose descriptor may be closed."""
    with suppress(OSError):
        return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/memfd:" in line]
    return []


def _count(pid: int, name: str) -> int:
    """Lines of a file in /proc; 0: it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text().count("\n")
    return 0


def _descriptors(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _where(pid: int) -> str:
    """What the threads of a process are doing: system call and arguments, kernel function."""
    places = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            places.append(f"{(thread / 'syscall').read_text().strip()} in {(thread / 'wchan').read_text()}")
    return "; ".join(places)


def _resident_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, found, rest = status.partition("VmRSS:")
    return int(rest.split()[0]) if found else 0


def main() -> int:
    """Exit status: was all of it right?"""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"soak: seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sdsoak-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SD_", "XDG_"))}
        env |= {"XDG_RUNTIME_DIR": name, "XDG_CONFIG_HOME": f"{name}/config", "LC_ALL": "C.UTF-8"}
        soak = Soak(folder, random.Random(seed), cells.Programs(folder), env)
        end = time.monotonic() + options.minutes * 60
        try:
            while time.monotonic() < end:
                soak.once()
                soak.settle()
        except (SoakError, AssertionError) as error:
            print(f"soak: seed {seed}, after {soak.done}: {error}", file=sys.stderr)
            return 1
        finally:
            end_monitor(folder)
    print(f"soak: all right: {dict(soak.done)}; the monitor had {soak.first}, and has {soak.last}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
