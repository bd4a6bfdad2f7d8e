# SPDX-License-Identifier: Apache-2.0
"""One of two hosts that are machines of their own (two.py): its monitor, its programs, and what they must say.

    across.sh a|b [STEP...]

Each step has a part on either host.  They tell each other what the other one has to know by files in a folder that both
see (Meeting), which has nothing to do with the wire.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.hosts.facts import Syslog, gather
from tests.hosts.talk import echo, ping, sums
from tests.hosts.world import PATIENT, Host, Mode, Program, assert_rdma, wait_for

MEET: Final = Path("/run/meet")
INTEGRITY: Final = MEET / "integrity-glibc"
LONG_S: Final = 900.0
SIZE: Final = 4 << 20
MTU: Final = 1024  # of RDMA, on a wire of 1500


class Meeting:
    """What the two hosts tell each other."""

    def __init__(self, name: str) -> None:
        self._name, self._other = name, "ba"["ab".index(name)]

    def tell(self, what: str, value: Any = None) -> None:
        """Once."""
        fresh = MEET / f"new.{self._name}"
        fresh.write_text(json.dumps(value))
        fresh.rename(MEET / f"{what}.{self._name}")

    def hear(self, what: str, limit_s: float = LONG_S) -> Any:
        """What the other one tells; until it does."""
        path, failed = MEET / f"{what}.{self._other}", MEET / f"failed.{self._other}"
        wait_for(lambda: path.exists() or failed.exists(), f"the other host tells {what}", limit_s)
        assert path.exists(), f"the other host has failed: {failed.read_text()}"
        return json.loads(path.read_text())

    def both(self, what: str, value: Any = None) -> Any:
        """Both have come so far; what the other one tells."""
        self.tell(what, value)
        return self.hear(what)


@dataclass
class End:
    """One host, and what it knows of the other: no more than its address."""

    host: Host
    other: Host
    meet: Meeting
    syslog: Syslog

    def packets(self) -> int:
        """That our device has sent, by its own count."""
        counter = Path(f"/sys/class/infiniband/rx{self.host.name}/ports/1/hw_counters/sent_pkts")
        return int(counter.read_text())

    def link(self) -> None:
        """Both monitors, with a key."""
        if self.host.name == "a":
            self.meet.tell("key", secrets.token_hex(16))
        key = json.loads((MEET / "key.a").read_text()) if self.host.name == "a" else self.meet.hear("key")
        self.host.know([self.other], {frozenset("ab"): key}, **PATIENT)
        self.host.start_monitor()
        self.linked()

    def linked(self) -> None:
        """Wait until connections may be carried by RDMA."""
        wait_for(lambda: self.host.peer(self.other.name).get("rdma"), lambda: f"a link\n{self.host.log}")

    def start(self, *words: str | Path, **env: str) -> Program:
        """Under sdrun."""
        return self.host.runner().start(*words, env=env)

    def known(self) -> str:
        """What there is to know when something does not come about."""
        found = [gather(), "--- syslog", self.syslog.last(), "--- monitor", self.host.log]
        found.append(json.dumps(self.host.status().get("hosts")))
        for program in [one for runner in self.host.runners for one in runner.programs]:
            state = json.dumps(self.host.tells(program))
            found += [f"--- program: {program.process.poll()}", program.describe(), state]
        return "\n".join(found)


# ------------------------------------------------------------------ bytes, whole


def integrity(end: End) -> None:
    """As many bytes each way between two programs, which hash them; by how many of RDMA's packets."""
    server, port, go = end.host.name == "b", 7002, end.host.folder / "go-integrity"
    if not server:
        end.meet.hear("integrity-listens")
    role, seed = ("server", "5") if server else ("client", "6")
    address = end.host.address if server else end.other.address
    program = end.start(INTEGRITY, role, str(port), str(SIZE), seed, ADDRESS=address, GO=str(go))
    if server:
        end.host.listens(port)
        end.meet.tell("integrity-listens")
    end.host.carried(1)
    packets, since = end.packets(), time.monotonic()
    end.meet.both("integrity-carried")
    go.touch()
    program.ok(LONG_S)
    packets, spent_s = end.packets() - packets, time.monotonic() - since
    mine = sums(program)
    theirs = end.meet.both("integrity-sums", mine)
    assert list(mine["sent"]) == theirs["received"] and list(mine["received"]) == theirs["sent"], (mine, theirs)
    assert mine["sent"][0] == SIZE and packets >= SIZE // MTU, f"{packets} packets for {SIZE} bytes"
    assert_rdma(program.report(), 1, SIZE)
    strays = end.host.peer(end.other.name)["port"]["strays"]
    print(f"{SIZE >> 20} MiB sent and as many received in {spent_s:.0f} s, with the same sha256 over there; "
          f"{packets} packets by RDMA, {strays} arrivals that nobody had posted", flush=True)


# ------------------------------------------------------------------ fork and exec


def fork_and_exec(end: End) -> None:
    """Another process or program than the one that connected or accepted goes on, on both ends."""
    for port, here, there in ((7000, "exec", "fork"), (7001, "fork", "exec")):
        go = end.host.folder / f"go-{port}"
        step = f"talk-{port}"
        if end.host.name == "b":
            program = echo(end.host, port, go, how=there)
            end.meet.tell(f"{step}-listens")
        else:
            end.meet.hear(f"{step}-listens")
            program = ping(end.host, end.other, port, go, here)
        end.host.carried(1)
        if end.host.name == "b":  # which hears of it while the other one still talks
            go.touch()
        end.meet.both(f"{step}-carried")
        go.touch()
        program.ok(LONG_S)
        total = program.stdout.split()[-1].decode()
        assert end.meet.both(f"{step}-total", total) == total
        assert_rdma(program.report(), 1, 60_000)
        print(f"{here} on a, {there} on b: {total} bytes there and back", flush=True)


# ------------------------------------------------------------------------- redis


def redis(end: End) -> None:
    """redis on b, redis-benchmark and redis-cli on a."""
    (redis_server if end.host.name == "b" else redis_clients)(end)


def redis_server(end: End) -> None:
    server = end.start("redis-server", "--port", "7003", "--bind", end.host.address, "--save", "", "--dir",
                       end.host.folder, "--protected-mode", "no")
    server.until(lambda: b"Ready to accept" in server.stdout, "listens")
    end.meet.tell("redis-listens")
    end.meet.hear("redis-over", 2 * LONG_S)
    server.stop(signal.SIGTERM)
    assert_rdma(server.report(), 4, 60_000)
    told = server.report().raw
    print(f"redis-server: {told['connections']['rdma']} of {told['connections']['total']} connections, "
          f"{told['bytes']['rdma']} bytes by RDMA", flush=True)


def redis_clients(end: End) -> None:
    end.meet.hear("redis-listens")
    client, value = end.host.runner(), "x" * 100_000
    where = ["-h", end.other.address, "-p", "7003"]
    words = ["redis-benchmark", *where, "-t", "set,get", "-c", "4", "-d", "300", "--csv"]
    # How many requests it takes until the monitors have paired its connections is the machine's affair.
    endless = client.start(*words, "-n", "100000000")
    end.host.carried(4, 15_000)
    assert endless.stop() == -signal.SIGTERM
    assert_rdma(endless.report(), 4, 60_000)
    done = client.run(*words, "-n", "100", timeout=LONG_S).stdout.decode()
    assert done.count("\n") >= 2, done
    commands = f"set key {value}\nget key\n".encode() * 5
    script = client.run("redis-cli", *where, stdin=commands, timeout=LONG_S)
    assert script.stdout.decode().split() == ["OK", value] * 5
    end.meet.tell("redis-over")
    told = endless.report().raw
    print(f"redis-benchmark: {told['connections']['rdma']} connections, {told['bytes']['rdma']} bytes by RDMA",
          flush=True)


# ---------------------------------------------------------------- others stay on TCP


def strangers(end: End) -> None:
    """Of three clients of one server, one is under sdrun, on a host with RDMA; the two others stay on TCP."""
    step, port = "strangers", 7004
    if end.host.name == "b":
        server = echo(end.host, port, end.host.folder / "never", 3)
        end.meet.tell(f"{step}-listens")
        server.ok(LONG_S)
        told = server.report().raw["connections"]
        assert sorted(server.stdout.decode().split()[1:]) == sorted(end.meet.hear(f"{step}-totals"))
        assert (told["rdma"], told["shm"], told["total"] - told["rdma"]) == (1, 0, 2), told
        print(f"its report: {told['rdma']} by RDMA, others {told['tcp_reasons']}", flush=True)
        return
    end.meet.hear(f"{step}-listens")
    go = end.host.folder / "go-strangers"
    third = Host("c", "10.1.1.3", Path(tempfile.mkdtemp()), ["ip", "netns", "exec", "c"])
    ours = ping(end.host, end.other, port, go)
    end.host.carried(1)
    go.touch()
    programs = [ours.ok(LONG_S)]
    programs += [ping(host, end.other, port, go, mode=Mode.NATIVE).ok(LONG_S) for host in (end.host, third)]
    end.meet.tell(f"{step}-totals", [program.stdout.decode().strip() for program in programs])
    assert_rdma(ours.report(), 1, 60_000)


STEPS: Final[dict[str, Callable[[End], None]]] = {
    "integrity": integrity, "redis": redis, "fork-and-exec": fork_and_exec, "strangers": strangers,
}


def run(end: End, steps: list[str]) -> None:
    """Until one fails."""
    end.link()
    for name in steps or STEPS:
        since = time.monotonic()
        STEPS[name](end)
        wait_for(lambda: not end.host.far()["connections"], lambda: f"forgotten\n{end.host.log}")
        end.meet.both(f"done-{name}")
        print(f"{name}: passed in {time.monotonic() - since:.0f} s", flush=True)


def main() -> int:
    """Exit status."""
    name, *steps = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="sdhosts-") as folder:
        hosts = {}
        for number, one in enumerate("ab", 1):
            own = Path(folder) / one
            (own / "socksdirect").mkdir(parents=True, mode=0o700)
            hosts[one] = Host(one, f"10.1.0.{number}", own)
        end = End(hosts[name], hosts["ba"["ab".index(name)]], Meeting(name), Syslog())
        try:
            run(end, steps)
        except BaseException as error:
            end.meet.tell("failed", f"{type(error).__name__}: {str(error)[:300]}")
            print(end.known(), file=sys.stderr)
            traceback.print_exc()
            return 1
        finally:
            end.host.close()
            end.syslog.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
