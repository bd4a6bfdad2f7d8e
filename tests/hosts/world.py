# SPDX-License-Identifier: Apache-2.0
"""Hosts for tests: each has an address, a monitor of its own and programs under sdrun that use it.

On a development machine a host is a network namespace. Its monitors have a device that is made of sockets, or carry the
rings by their own TCP connection (tcp-for-tests).  In the guest of tests/vm a host is an rxe device with its address,
and the transport is verbs.  The tests are the same.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdlib.wire import Answered, MonitorClient, Part, messages, papers, trees
from tests.guestbuild import C_FLAGS
from tests.harness import PATIENCE, ROOT, Mode, Program, Report, Runner
from tests.hosts.facts import Syslog, gather

MONITOR = ROOT / "monitor" / "__main__.py"
LIMIT_S = 60.0 * PATIENCE
VERBS = "SDRUN_HOSTS_VERBS" in os.environ
"""Set in the guest, by tests/vm/run.sh: there are RDMA devices."""
PATIENT: dict[str, Any] = {"dead_s": 60, "back_s": 60, "lost_s": 600, "hold_s": 0}
"""Of hosts.yaml: a busy machine says nothing for seconds, and that is no failure; a link that a test breaks is used
again at once. Tests of failures, and of links that break often, say otherwise."""


def wait_for(condition: Callable[[], Any], what: str | Callable[[], str], limit_s: float = LIMIT_S) -> Any:
    """Until `condition` is true; its value."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what() if callable(what) else what}"
        time.sleep(0.02)
    return found


@dataclass
class Host:
    """One host. `enter`: command words that put a process there."""

    name: str
    address: str
    folder: Path
    enter: list[str] = field(default_factory=list)
    monitor: subprocess.Popen[bytes] | None = None
    runners: list[Runner] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)

    @property
    def socket(self) -> str:
        return str(self.folder / "socksdirect" / "m.sock")

    @property
    def rdma(self) -> bool:
        """Its monitors have a device."""
        return VERBS or bool(self.device)

    @property
    def config(self) -> Path:
        return self.folder / "hosts.yaml"

    def know(self, others: list[Host], keys: dict[frozenset[str], str], **more: Any) -> None:
        """Write hosts.yaml."""
        peers = {}
        for other in others:
            key = self.folder / f"{other.name}.key"
            key.write_text(keys[frozenset((self.name, other.name))])
            key.chmod(0o600)
            peers[other.name] = {"monitor": f"{other.address}:7471", "addresses": [f"{other.address}/32"],
                                 "key_file": key.name}
        tree = {"name": self.name, "listen": f"{self.address}:7471", "peers": peers,
                "transport": "verbs" if self.rdma else "tcp-for-tests", **more}
        tree["device"] = self.device | tree.get("device", {})
        self.config.write_text(json.dumps(tree))

    def start_monitor(self) -> None:
        """In the foreground of its own session; its log is monitor.log."""
        with (self.folder / "monitor.log").open("ab") as log:
            command = [*self.enter, sys.executable, "-I", str(MONITOR), "--socket", self.socket, "--verbose",
                       "--hosts", str(self.config)]
            self.monitor = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=os.environ | self.env, start_new_session=True)
        wait_for(self._answers, lambda: f"the monitor of {self.name} answers\n{self.log}")

    def _answers(self) -> bool:
        assert self.monitor is not None and self.monitor.poll() is None, self.log
        return bool(self.status())

    @property
    def log(self) -> str:
        """What its monitors have said, but for our own visits."""
        lines = (self.folder / "monitor.log").read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if "client-gone" not in line][-200:])

    def status(self) -> dict[str, Any]:
        """What `sdctl status` would show; {} without a monitor."""
        try:
            client = MonitorClient.open(self.socket, spawn=False, timeout_s=2)
        except Exception:
            return {}
        try:
            client.query(messages.Query.STATUS)
            deadline = time.monotonic() + 5
            while client.alive and time.monotonic() < deadline:
                for event in client.events():
                    if isinstance(event, Answered):
                        return papers.read(event.memfd)
                    if isinstance(event, Part):
                        os.close(event.memfd)
                time.sleep(0.01)
            return {}
        finally:
            client.close()

    def far(self) -> dict[str, Any]:
        """What its monitor says about other hosts, as soon as it answers: a busy one may take its time."""
        status = wait_for(self.status, lambda: f"a monitor of {self.name} answers\n{self.log}")
        return status.get("hosts") or {"peers": [], "connections": []}

    def peer(self, name: str) -> dict[str, Any]:
        """The same, about one of them; {} if it knows no such host."""
        return next((peer for peer in self.far()["peers"] if peer["name"] == name), {})

    def moved(self, of_bytes: int = 1) -> set[tuple[int, int]]:
        """Connections that have gone over to mirrored rings for good, in both directions, and so many bytes went by
        each; as supervisors call them.

        The bytes do not say so: they are carried before the other monitor has said that it has heard of our switch, and
        a link that is lost before that leaves a connection that can but wait for it (docs/hosts.md, limits).
        """
        return {(one["client"], one["name"]) for one in self.far()["connections"]
                if one["out"] and one["in"] and one["heard"] and one["out"] + one["in"] >= of_bytes}

    def carried(self, connections: int, of_bytes: int = 1) -> None:
        """Wait until so many have."""
        wait_for(lambda: len(self.moved(of_bytes)) >= connections,
                 lambda: f"{connections} connections are mirrored\n{self.log}\n{self.status()}")

    def listens(self, port: int) -> None:
        """Wait until somebody listens on that port here."""
        command = [*self.enter, "ss", "-Htln", f"sport = :{port}"]
        wait_for(lambda: subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout, f"port {port} listens")

    def monitor_pid(self) -> int:
        """Of whoever serves the socket now: the monitor that we have started, or one that a supervisor has."""
        pid: int = wait_for(lambda: self.status().get("pid"), lambda: f"a monitor of {self.name}\n{self.log}")
        return pid

    def tells(self, program: Program) -> dict[str, Any]:
        """What the supervisor of a program of ours says now; {} without one."""
        documents = trees.ask_all({"XDG_RUNTIME_DIR": str(self.folder)})
        return next((one for one in documents if one["supervisor"]["root_pid"] == program.pid), {})

    def kill_monitor(self, number: int = signal.SIGKILL) -> None:
        """End it; no one starts another but `start_monitor`, or a supervisor."""
        if self.monitor is not None:
            self.monitor.send_signal(number)
            self.monitor.wait(LIMIT_S)
            self.monitor = None

    def runner(self, mode: Mode = Mode.SHM, *options: str) -> Runner:
        """Starts programs here."""
        folder = self.folder / f"run{len(self.runners)}"
        folder.mkdir()
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SD_", "XDG_"))}
        env |= {"SOCKSDIRECT_MONITOR": self.socket, "SOCKSDIRECT_HOSTS": str(self.config), "LC_ALL": "C.UTF-8",
                "XDG_RUNTIME_DIR": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config"), **self.env}
        made = Inside(mode, folder, env, list(options), enter=self.enter)
        self.runners.append(made)
        return made

    def close(self) -> None:
        for runner in self.runners:
            runner.close()
        self.kill_monitor()
        # A supervisor may have begun to start one just now, which would find its folder gone, or keep it from going.
        wait_for(self._all_gone, lambda: f"supervisors and monitors of {self.name} leave: {self._left()}")

    def _left(self) -> dict[int, bytes]:
        """Command lines of our supervisors and their monitors."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if os.fsencode(self.folder) in words and (b"sdtrace.supervisor" in words or b"/monitor/" in words):
                    found[int(entry.name)] = words
        return found

    def _all_gone(self) -> bool:
        left = self._left()
        for pid in [pid for pid, words in left.items() if b"/monitor/" in words]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left


@dataclass
class Inside(Runner):
    """A Runner of one host."""

    enter: list[str] = field(default_factory=list)

    def _command(self, argv: Any, report: Path) -> list[str | Path]:
        return [*self.enter, *super()._command(argv, report)]


class World:
    """Two hosts that know each other, and a third one that does not know sdrun."""

    def __init__(self, folder: Path, *, soft: bool = not VERBS) -> None:
        """`soft`: in namespaces, monitors have the device of softverbs.c; else their TCP connection carries rings."""
        self._folder, self._soft = folder, soft
        self._tag = f"sd{os.getpid() % 10000:04d}"
        self._spaces: list[str] = []
        self.hosts: dict[str, Host] = {}
        self._syslog = Syslog() if VERBS else None
        try:
            self._make_verbs() if VERBS else self._make_spaces()
        except BaseException:
            self.close()
            raise
        self.a, self.b = self.hosts["a"], self.hosts["b"]

    def _host(self, name: str, address: str, enter: list[str]) -> None:
        folder = self._folder / name
        folder.mkdir()
        (folder / "socksdirect").mkdir(mode=0o700)
        self.hosts[name] = host = Host(name, address, folder, enter)
        if self._soft:
            give_device(self._folder, host)

    def _make_verbs(self) -> None:
        for name, address in (("a", "10.1.0.1"), ("b", "10.1.0.2")):
            self._host(name, address, [])
        space = self._space("c")  # without RDMA
        _ip(f"link add vc type veth peer name eth0 netns {space}")
        _ip("addr add 10.1.1.1/24 dev vc")
        _ip("link set vc up")
        _ip(f"-n {space} addr add 10.1.1.3/24 dev eth0")
        _ip(f"-n {space} link set eth0 up")
        _ip(f"-n {space} route add default via 10.1.1.1")
        self._host("c", "10.1.1.3", ["ip", "netns", "exec", space])

    def _make_spaces(self) -> None:
        """Three namespaces on a bridge in a fourth."""
        hub = self._space("hub")
        _ip(f"-n {hub} link add br0 type bridge")
        _ip(f"-n {hub} link set br0 up")
        for number, name in enumerate("abc", 1):
            space = self._space(name)
            _ip(f"-n {hub} link add v{name} type veth peer name eth0 netns {space}")
            _ip(f"-n {hub} link set v{name} master br0 up")
            _ip(f"-n {space} link set lo up")
            _ip(f"-n {space} addr add 10.1.0.{number}/24 dev eth0")
            _ip(f"-n {space} link set eth0 up")
            self._host(name, f"10.1.0.{number}", ["ip", "netns", "exec", space])

    def _space(self, name: str) -> str:
        space = f"{self._tag}{name}"
        _ip(f"netns add {space}")
        self._spaces.append(space)
        return space

    def cut(self, host: Host, down: bool) -> None:
        """Take its link down, or up again."""
        if VERBS:
            _ip(f"link set {'va' if host is self.a else 'vb'} {'down' if down else 'up'}")
            if not down:  # the kernel has forgotten them
                subprocess.run(["bash", ROOT / "tests/vm/rxe.sh", "routes"], check=True)
        else:
            _ip(f"-n {self._tag}hub link set v{host.name} {'down' if down else 'up'}")

    def start(self, **more: Any) -> World:
        """Both monitors, with a key; until they have a link."""
        keys = {frozenset("ab"): secrets.token_hex(16)}
        self.a.know([self.b], keys, **PATIENT | more)
        self.b.know([self.a], keys, **PATIENT | more)
        self.a.start_monitor()
        self.b.start_monitor()
        self.linked()
        return self

    def carried(self, connections: int, of_bytes: int = 1) -> None:
        """As both hosts know: from here on the link may be lost."""
        self.a.carried(connections, of_bytes)
        self.b.carried(connections, of_bytes)

    def forgotten(self) -> None:
        """Wait until a knows of no connection any more."""
        wait_for(lambda: not self.a.far()["connections"], lambda: f"the old rings are forgotten\n{self.known()}")

    def linked(self) -> None:
        """Wait until both may pair connections."""
        key = "rdma" if self.a.rdma else "up"
        wait_for(lambda: self.a.peer("b").get(key) and self.b.peer("a").get(key),
                 lambda: f"they have a link\n{self.a.log}\n{self.b.log}")

    def exchange(self, guest: Path, port: int, size: int, *more: str, seeds: tuple[str, str] = ("5", "6"),
                 **env: str) -> tuple[Program, Program]:
        """Server on b and client on a of the guest `integrity`, which begin once their connection is carried."""
        go = self.a.folder / "go"
        env |= {"ADDRESS": self.b.address, "GO": str(go)}
        server = self.b.runner().start(guest, "server", str(port), str(size), seeds[0], env=env)
        self.b.listens(port)
        client = self.a.runner().start(guest, "client", str(port), str(size), seeds[1], *more, env=env)
        self.carried(1)
        go.touch()
        return server, client

    def finish(self, *programs: Program) -> None:
        """Wait until they have ended well; else say what the monitors know."""
        for program in programs:
            try:
                program.ok()
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.known()}") from None

    def known(self) -> str:
        """What there is to know when something does not come about: programs, supervisors, monitors, the kernel."""
        found = [gather(), "--- syslog", "" if self._syslog is None else self._syslog.last()]
        for host in (self.a, self.b):
            found += [f"--- monitor of {host.name}", host.log, json.dumps(host.status().get("hosts"))]
            for program in [one for runner in host.runners for one in runner.programs]:
                found += [f"--- program on {host.name}: {program.process.poll()}", program.describe(),
                          json.dumps(host.tells(program))]
        return "\n".join(found)

    def close(self) -> None:
        if self._syslog is not None:
            self._syslog.close()
        for host in self.hosts.values():
            host.close()
        for space in self._spaces:
            with suppress(subprocess.CalledProcessError):
                _ip(f"netns del {space}")


def give_device(shared: Path, host: Host) -> None:
    """Its monitors find the device of softverbs.c, with the host's address."""
    library, wire = shared / "libsoftverbs.so", shared / "wire"
    if not library.exists():
        wire.mkdir()
        source = ROOT / "tests" / "hosted" / "softverbs.c"
        subprocess.run(["gcc", *C_FLAGS, "-shared", "-fPIC", "-o", library, source], check=True)
    port = host.folder / "infiniband" / "soft" / "ports" / "1"
    for name, text in (("gids/0", f"::ffff:{host.address}"), ("gid_attrs/types/0", "RoCE v2")):
        (port / name).parent.mkdir(parents=True)
        (port / name).write_text(text)
    host.device["library"] = str(library)
    host.env |= {"SOFTVERBS": str(wire), "SDRUN_INFINIBAND": str(host.folder / "infiniband")}


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, stdout=subprocess.DEVNULL)


def assert_rdma(report: Report, at_least: int = 1, of_bytes: int = 1) -> None:
    """So many ends of connections, and bytes, went to another host by mirrored rings."""
    connections, carried = report.raw["connections"], report.raw["bytes"]
    assert connections["rdma"] >= at_least, f"{connections['rdma']} ends by rdma, wanted {at_least}\n{report}"
    assert carried["rdma"] >= of_bytes, f"{carried['rdma']} bytes by rdma, wanted {of_bytes}\n{report}"


__all__ = ["VERBS", "Host", "Mode", "Program", "World", "assert_rdma", "shutil", "wait_for"]
