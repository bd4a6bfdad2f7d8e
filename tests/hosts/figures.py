# SPDX-License-Identifier: Apache-2.0
"""Figures of the ways between two hosts, in the same guest: only good for comparing these ways with each other.

    bash tests/vm/run.sh --figures        # in the guest; `make figures-rdma` starts it

Plain TCP, TCP under sdrun without acceleration, and rings mirrored by each loop.  A round trip is 64 bytes and back;
redis is redis-benchmark with one client; monitors_cpu_s is what both monitors have used meanwhile, per round trip and
MiB of the first two together.  One JSON document on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.guestbuild import Guests
from tests.hosts.world import VERBS, Mode, World

COUNT, STREAM = ("300", str(4 << 20)) if VERBS else ("2000", str(64 << 20))
REQUESTS = "150" if VERBS else "2000"
LIMIT_S = 200.0


def monitors_s(world: World) -> float:
    """Processor time of both monitors so far, in seconds."""
    stats = (Path(f"/proc/{host.monitor_pid()}/stat").read_text() for host in (world.a, world.b))
    fields = [stat.rsplit(")", 1)[1].split() for stat in stats]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def measure(world: World, guest: Path, mode: Mode, carried: bool, *options: str) -> dict[str, Any]:
    """One way."""
    folder = world.a.folder / f"{len(world.a.runners)}"
    go = folder.with_suffix(".go")
    server = world.b.runner(mode, *options).start(guest, "server", world.b.address, "7100")
    world.b.listens(7100)
    client = world.a.runner(mode, *options).start(guest, "client", world.b.address, "7100", go, "64", COUNT, STREAM)
    if carried:
        world.a.carried(1)
    before = monitors_s(world)
    go.touch()
    client.ok(LIMIT_S)
    server.ok(LIMIT_S)
    found: dict[str, Any] = {"monitors_cpu_s": round(monitors_s(world) - before, 3)}
    for line in client.stdout.decode().splitlines():
        name, *values = line.split()
        found[name] = [float(value) for value in values]
    server = world.b.runner(mode, *options).start(
        "redis-server", "--port", "7101", "--bind", world.b.address, "--save", "", "--dir", world.b.folder,
        "--protected-mode", "no")
    server.until(lambda: b"Ready to accept" in server.stdout, "listens", LIMIT_S)
    done = world.a.runner(mode, *options).run(
        "redis-benchmark", "-h", world.b.address, "-p", "7101", "-t", "get", "-c", "1", "-n", REQUESTS, "-d", "64",
        "--csv", timeout=LIMIT_S)
    found["redis_get_per_s"] = float(done.stdout.decode().splitlines()[-1].split(",")[1].strip('"'))
    server.stop(signal.SIGTERM)
    return found


def main() -> int:
    """All ways."""
    ways: dict[str, Any] = {}
    for way in ("c", "python") if VERBS else ("soft", "tcp"):
        with tempfile.TemporaryDirectory(prefix="sdhosts-") as name:
            guest = Guests(Path(name))("rounds")
            world = World(Path(name), soft=way == "soft")
            try:
                world.start(**({"device": {"loop": way}} if VERBS else {}))
                if "tcp" not in ways:
                    ways["tcp"] = measure(world, guest, Mode.NATIVE, False)
                    ways["tcp under sdrun"] = measure(world, guest, Mode.NO_ACCEL, False)
                ways[f"rdma, loop in {way}" if VERBS else f"test device, {way}"] = measure(world, guest, Mode.SHM, True)
            finally:
                world.close()
    json.dump({"processors": os.cpu_count(), "ways": ways}, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
