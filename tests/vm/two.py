# SPDX-License-Identifier: Apache-2.0
"""Two machines with RDMA, joined by a wire: hosts a and b, each with its own kernel (guest.py makes them).

    python -m tests.vm.two [--limit SECONDS] [STEP...]

Both run tests/vm/across.py, and meet in a folder that is this machine's.  What they print comes out line by line,
behind `a: ` and `b: `; the exit status is 0 if both commands' was.  Once one has failed the other one has GRACE_S to
say what it knows; nothing is left of either afterwards, however this ends.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.guestbuild import Guests
from tests.vm.guest import BOOTS, FAILED, Machine, VmError, leave_when_told, make, share, until_ended

GRACE_S: Final = 60.0


def wire(control: Path, number: int) -> list[str]:
    """For QEMU. The first one listens; a unix socket has no Nagle (one of TCP costs 22 ms a message)."""
    server = "on" if number == 0 else "off"
    return ["-netdev", f"stream,id=n0,server={server},addr.type=unix,addr.path={control}/wire",
            "-device", f"virtio-net-pci,netdev=n0,mac=52:54:00:00:00:0{number + 1}"]


def start(control: Path, name: str, steps: list[str]) -> Machine:
    """One of them."""
    own = control / name
    own.mkdir()
    more = wire(control, "ab".index(name)) + share("meet", control / "meet")
    machine = Machine(own, ["bash", "tests/vm/across.sh", name, *steps], mark=f"{name}: ".encode(), more=more)
    deadline = time.monotonic() + 30
    while not (control / "wire").exists() and machine.running and time.monotonic() < deadline:
        time.sleep(0.05)
    return machine


def boot(steps: list[str], limit_s: float) -> int | None:
    """Both, once. None: one died before its command's end, which a kernel may do while it patches itself."""
    with tempfile.TemporaryDirectory(prefix="sdvm-") as folder:
        control = Path(folder)
        (control / "meet").mkdir()
        Guests(control / "meet")("integrity")
        machines: dict[str, Machine] = {}
        try:
            for name in "ab":
                machines[name] = start(control, name, steps)
            late = until_ended(list(machines.values()), limit_s, GRACE_S)
        finally:
            for machine in machines.values():
                machine.end()
        found = {name: machine.status for name, machine in machines.items()}
        for name, machine in machines.items():
            if machine.status is None:
                print(f"vm {name}: {late or 'not done'}; {machine.last_words}", file=sys.stderr)
        print(*(f"{name}: exit status {status}" for name, status in found.items()), sep=", ", flush=True)
        worst = [status for status in found.values() if status]
        died = None in found.values() and not worst and not late
        return None if died else worst[0] if worst else FAILED if None in found.values() else 0


def run(steps: list[str], limit_s: float) -> int:
    """Exit status."""
    make()
    for _ in range(BOOTS):
        status = boot(steps, limit_s)
        if status is not None:
            return status
    return FAILED


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Two hosts with RDMA, each an emulated machine.")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="of across.py; all")
    options = parser.parse_args()
    leave_when_told()
    try:
        return run(options.steps, options.limit)
    except (VmError, OSError, ValueError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
