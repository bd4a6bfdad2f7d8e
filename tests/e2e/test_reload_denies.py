# SPDX-License-Identifier: Apache-2.0
"""A reload may begin to deny, also in trees where nothing could be denied when they started."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guestbuild import Guests
from tests.harness import GUESTS, Program, Runner, free_port
from tests.monitor.support import MonitorProcess
from tests.sdtrace.support import supervisor_of
from tests.sdtrace.test_enforce import TCP_WAYS

ASKED = GUESTS / "asked.py"
NOT_HELD = {"share", "int80", "gate"}
"""Ways of tests/guests/policy.c around a denial that has begun with a reload (docs/policy.md)."""


class Tree:
    """A program that does what it is told, a monitor, and a policy that may change."""

    def __init__(self, runner: Runner, folder: Path, *options: str) -> None:
        self.folder = folder / "asked"
        self.folder.mkdir()
        self.monitor = MonitorProcess(folder)
        self.policy = folder / "policy.yaml"
        self.policy.write_text("version: 1\n")
        runner.env = {**runner.env, "SOCKSDIRECT_MONITOR": self.monitor.path}
        runner.options = ["--policy", str(self.policy), *options]
        self.program: Program = runner.start(sys.executable, ASKED, self.folder)
        self.asked = 0

    def ask(self, line: str) -> str:
        number, self.asked = self.asked, self.asked + 1
        (self.folder / f"ask-{number}.new").write_text(line)
        (self.folder / f"ask-{number}.new").rename(self.folder / f"ask-{number}")
        answer = self.folder / f"answer-{number}"
        self.program.until(answer.exists, f"answers {line}", timeout=60)
        return answer.read_text()

    def deny(self, port: int, *rules: str) -> None:
        """Reload, and wait until it is in force: a connection to `port` is refused by the policy."""
        rules = (f"{{dir: out, tcp: '*:{port}', action: deny, errno: EPERM}}", *rules)
        text = "".join(f"      - {rule}\n" for rule in rules)
        self.policy.write_text(f"version: 1\napps:\n  - match: {{program: '*'}}\n    rules:\n{text}")
        self.monitor.process.send_signal(signal.SIGHUP)
        self.program.until(lambda: self.ask(f"connect({port})") == "EPERM", "the policy is in force", timeout=60)


@pytest.fixture
def tree(shm: Runner, tmp_path: Path) -> Iterator[Tree]:
    made = Tree(shm, tmp_path)
    yield made
    made.monitor.close()


@pytest.fixture
def there() -> Iterator[socket.socket]:
    """Who comes here was not denied."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as sock:
        yield sock


def came(there: socket.socket) -> int:
    count = 0
    while select.select([there], [], [], 0.02)[0]:
        there.accept()[0].close()
        count += 1
    return count


def datagrams_at(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def arrived(udp: socket.socket) -> int:
    """Datagrams, by now: on this host they are there when the call returns."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            udp.recv(100)
            count += 1
    return count


def another(port: int) -> str:
    """Another program that connects; what it complains about."""
    line = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
    return f"subprocess.run([sys.executable, '-c', {line!r}], capture_output=True).stderr"


def test_denials_begin_with_a_reload(tree: Tree, there: socket.socket) -> None:
    """For the program that runs, for what it starts then, for who sleeps in accept; what exists lives on."""
    port, other = there.getsockname()[1], free_port()
    assert tree.ask(f"connect({port})") == "ok" and came(there) == 1
    tree.ask(f"globals().update(l=socket.create_server(('127.0.0.1', {other}))) or globals().update(w=Later(l.accept))")
    tree.ask(f"globals().update(kept=socket.create_connection(('127.0.0.1', {port})))")
    kept, _ = there.accept()
    tree.deny(port, "{dir: in, tcp: '127.0.0.9:*', action: deny}", "{dir: in, tcp: '*:2525', action: deny}")
    came(there)
    assert tree.ask(f"connect({port})") == "EPERM"
    assert "PermissionError" in tree.ask(another(port))
    assert tree.ask("tried(lambda: socket.create_server(('127.0.0.1', 2525)))") == "EACCES"
    assert tree.ask("tried(lambda: socket.create_server(('127.0.0.1', 0)).close())") == "ok"
    with socket.socket() as refused, socket.socket() as welcome:  # the first wakes who slept in accept
        refused.bind(("127.0.0.9", 0))
        refused.connect(("127.0.0.1", other))
        refused.settimeout(30)
        with pytest.raises(ConnectionResetError):
            refused.recv(1)
        welcome.connect(("127.0.0.1", other))
        assert str(welcome.getsockname()[1]) in tree.ask("w.result()")
    assert tree.ask("kept.send(b'on')") == "2" and kept.recv(5) == b"on"
    assert came(there) == 0
    kept.close()


def test_a_dead_supervisor_opens_nothing_after_a_reload(tree: Tree, there: socket.socket) -> None:
    port = there.getsockname()[1]
    tree.ask(f"connect({port})")
    tree.deny(port)
    came(there)
    supervisor = supervisor_of(tree.program)
    tree.ask(f"os.kill({supervisor}, 9)")
    tree.program.until(lambda: tree.ask(f"connect({port})") == "EACCES", "the keeper denies", timeout=60)
    assert "PermissionError" in tree.ask(another(port))
    assert came(there) == 0


def test_signals_end_what_is_performed_as_they_do_natively(
    tree: Tree, native: Runner, there: socket.socket, guests: Guests
) -> None:
    port, guest = there.getsockname()[1], str(guests("performed"))
    tree.ask(f"connect({port})")
    tree.deny(port, "{dir: in, tcp: '*:2525', action: deny}")
    line = f"subprocess.run({[guest]!r}, stdout=-1, stderr=-2, timeout=50).stdout.decode()"
    assert tree.ask(line) == native.run(guest).stdout.decode()


def test_what_holds_against_who_tries(tree: Tree, there: socket.socket, guests: Guests) -> None:
    """The ways of tests/sdtrace/test_enforce.py that end at the library or the filter; of musl, too."""
    port = there.getsockname()[1]
    tree.ask(f"connect({port})")
    tree.deny(port)
    came(there)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as allowed:
        for flavour, ways in (("glibc", set(TCP_WAYS) - NOT_HELD), ("musl-static", {"connect"})):
            for way in sorted(ways):
                words = [str(guests("policy", flavour)), way, str(port), str(allowed.getsockname()[1])]
                line = f"subprocess.run({words!r}, stdin=socket.socket(), capture_output=True, timeout=60).returncode"
                assert tree.ask(line) in ("0", "3"), (flavour, way)
                assert came(there) == 0, (flavour, way)


def test_all_holds_in_a_strict_tree(shm: Runner, tmp_path: Path, there: socket.socket, guests: Guests) -> None:
    """The filter was there before there was anything to deny: no way around it, for UDP neither."""
    tree = Tree(shm, tmp_path, "--set", "strict=on")
    port = there.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as allowed, datagrams_at(port) as udp:
        ports = [str(port), str(allowed.getsockname()[1])]
        ways = {way: [str(guests("policy")), way, *ports] for way in (*TCP_WAYS, "udp")}

        def tries(way: str) -> str:
            return tree.ask(f"subprocess.run({ways[way]!r}, stdin=socket.socket(), timeout=60).returncode")

        assert tries("connect") == tries("udp") == "0"
        assert came(there) > 0 and arrived(udp) > 0, "nothing is denied yet"
        tree.deny(port, f"{{dir: out, udp: '*:{port}', action: deny}}")
        came(there)
        for way in ways:
            assert tries(way) in ("0", "3"), way
            assert (came(there), arrived(udp)) == (0, 0), way
    tree.monitor.close()
