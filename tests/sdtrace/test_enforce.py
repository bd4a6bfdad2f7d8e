# SPDX-License-Identifier: Apache-2.0
"""Programs that do all they can to reach what a policy denies (tests/guests/policy.c), as root and as nobody.

Whether they got there is told by the socket at the other end. Each way is also tried natively, where it has to get
there.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guestbuild import Guests
from tests.harness import SDRUN

AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
TCP_WAYS = [
    "connect",
    "rewrite",
    "exchange",
    "share",
    "fastopen",
    "mapped",
    "any",
    "unspec",
    "mptcp",
    "passed",
    "inherited",
    "io_uring",
    "int80",
    "x32",
    "gate",
    "rename",
]
NOT_THERE_NATIVELY = {"x32"}  # this kernel is built without it
MAY_MISS = {"exchange", "share", "rewrite"}  # races that are not won every time


class Ports:
    """Two listeners and a datagram socket, all ours, and who came there."""

    def __init__(self) -> None:
        self.denied, self.allowed = (socket.create_server(("127.0.0.1", 0), backlog=2048) for _ in range(2))
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", self.port))

    @property
    def port(self) -> int:
        return int(self.denied.getsockname()[1])

    def arguments(self) -> list[str]:
        return [str(self.port), str(self.allowed.getsockname()[1])]

    def came(self) -> int:
        """Connections and datagrams that have reached the denied port."""
        count = 0
        while select.select([self.denied, self.datagrams], [], [], 0.02)[0]:
            for sock in select.select([self.denied, self.datagrams], [], [], 0)[0]:
                count += 1
                if sock is self.denied:
                    sock.accept()[0].close()
                else:
                    sock.recv(10)
        return count

    def close(self) -> None:
        for sock in (self.denied, self.allowed, self.datagrams):
            sock.close()


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    yield made
    made.close()


@pytest.fixture(params=["root", "nobody"])
def user(request: pytest.FixtureRequest, sd_env: dict[str, str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Words in front of a command, and its environment."""
    if request.param == "root":
        yield [], sd_env
        return
    if os.geteuid():
        pytest.skip("needs root to become somebody else")
    with tempfile.TemporaryDirectory(prefix="sdnobody-") as name:
        os.chown(name, 65534, 65534)
        yield AS_NOBODY, {**sd_env, "XDG_RUNTIME_DIR": name, "XDG_CONFIG_HOME": name, "HOME": name}


Done = subprocess.CompletedProcess[str]


def run(words: list[str | Path], env: dict[str, str], stdin: int = subprocess.DEVNULL) -> Done:
    return subprocess.run(words, env=env, stdin=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that nobody may read; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="sdopen-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def guest(guests: Guests, open_folder: Path) -> Path:
    return Path(shutil.copy(guests("policy"), open_folder / "policy-guest"))


@pytest.mark.parametrize("way", TCP_WAYS)
def test_no_way_around_a_denied_port(
    way: str, ports: Ports, guest: Path, user: tuple[list[str], dict[str, str]], open_folder: Path
) -> None:
    prefix, env = user
    command: list[str | Path] = [guest, way, *ports.arguments()]
    rule = {"dir": "out", "tcp": f"*:{ports.port}", "action": "deny", "errno": "EPERM"}
    policy = open_folder / "policy.yaml"
    policy.write_text(f"version: 1\napps:\n  - match: {{program: 'policy-*'}}\n    rules: [{rule}]\n")
    with socket.socket() as inherited:
        native = run([*prefix, *command], env, inherited.fileno())
        if native.returncode == 3:
            pytest.skip("not on this machine")
        assert native.returncode == 0, native.stderr
    if way not in MAY_MISS | NOT_THERE_NATIVELY:
        assert ports.came() > 0, "the test itself must be able to fail"
    ports.came()
    with socket.socket() as inherited:
        done = run([*prefix, SDRUN, "--policy", policy, "--", *command], env, inherited.fileno())
    assert ports.came() == 0
    assert done.returncode == 0, done.stderr


def test_no_datagram_to_a_denied_port(ports: Ports, guest: Path, user: tuple[list[str], dict[str, str]]) -> None:
    prefix, env = user
    command: list[str | Path] = [guest, "udp", *ports.arguments()]
    assert run([*prefix, *command], env).returncode == 0
    assert ports.came() == 5
    assert run([*prefix, SDRUN, "-r", f"out udp *:{ports.port} deny", "--", *command], env).returncode == 0
    assert ports.came() == 0


def test_static_programs_are_held_too(ports: Ports, guests: Guests, sd_env: dict[str, str]) -> None:
    for flavour in ("glibc-static", "musl-static"):
        for way in ("connect", "rewrite", "fastopen"):
            command = [guests("policy", flavour), way, *ports.arguments()]
            done = run([SDRUN, "-r", f"out tcp 127.0.0.0/8:{ports.port} deny", "--", *command], sd_env)
            assert done.returncode == 0, done.stderr
            assert ports.came() == 0, (flavour, way)


SERVER = """
import socket, sys, os, errno, signal, threading, time
def tried(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
"""


def python(body: str, rules: list[str], env: dict[str, str], *arguments: str) -> str:
    words = [word for rule in rules for word in ("-r", rule)]
    done = run([SDRUN, *words, "--", sys.executable, "-c", SERVER + body, *arguments], env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bind_and_listen(sd_env: dict[str, str]) -> None:
    body = """
s = socket.socket(); print(tried(lambda: s.bind(("127.0.0.1", 2525))))
s = socket.socket(); print(tried(lambda: s.bind(("127.0.0.1", 0))), tried(lambda: s.listen()))
s = socket.socket(socket.AF_INET6); print(tried(lambda: s.bind(("::1", 2525))))
s = socket.socket(); print(tried(lambda: s.listen()))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); print(tried(lambda: u.bind(("127.0.0.1", 2525))))
"""
    one = python(body, ["in tcp *:2525 deny errno=EPERM"], sd_env)
    assert one.split() == ["EPERM", "ok", "ok", "EPERM", "ok", "ok"]
    assert python(body, ["in tcp *:* deny"], sd_env).split() == ["EACCES", "ok", "EACCES", "EACCES", "EACCES", "ok"]
    rules = ["in tcp 10.0.0.0/8:2525 kernel", "in tcp *:* deny"]  # somebody may come in: it is let listen
    assert python(body, rules, sd_env).split() == ["ok", "ok", "EACCES", "ok", "EACCES", "ok"]
    assert python(body, ["in udp *:2525 deny"], sd_env).split() == ["ok", "ok", "ok", "ok", "ok", "EACCES"]


ACCEPTS = """
l = socket.create_server(("127.0.0.1", 0)); l.settimeout(timeout := {timeout})
def come(host):
    c = socket.socket(); c.bind((host, 0)); c.connect(l.getsockname()); c.settimeout(10)
    c.sendall(host.encode())
    return tried(lambda: c.recv(1) and None)
answers = []
clients = [threading.Thread(target=lambda host=host: answers.append((host, come(host))))
           for host in ("127.0.0.1", "127.0.0.9", "127.0.0.2")]
for client in clients: client.start(); time.sleep(0.1)
a, peer = l.accept()
print(peer[0], a.getpeername()[0], a.recv(20).decode(), os.get_inheritable(a.fileno()))
a.sendall(b"y")
for client in clients: client.join()
print(sorted(answers))
"""


@pytest.mark.parametrize("timeout", ["None", "5"])
def test_accept_only_from_some(sd_env: dict[str, str], timeout: str) -> None:
    """Blocking and not: who may not come in is reset, who may is delivered, with its address."""
    rules = ["in tcp 127.0.0.2:* accelerate", "in tcp *:* deny"]
    out = python(ACCEPTS.format(timeout=timeout), rules, sd_env).splitlines()
    assert out[0] == "127.0.0.2 127.0.0.2 127.0.0.2 False"
    assert out[1] == "[('127.0.0.1', 'ECONNRESET'), ('127.0.0.2', 'ok'), ('127.0.0.9', 'ECONNRESET')]"


def test_a_signal_interrupts_a_performed_accept(sd_env: dict[str, str]) -> None:
    """EINTR at once, nothing lost afterwards, and other calls are answered while one sleeps."""
    body = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, True)
l = socket.create_server(("127.0.0.1", 0))
signal.setitimer(signal.ITIMER_REAL, 0.2)
print(libc.accept(l.fileno(), None, None), errno.errorcode[ctypes.get_errno()])
def come():
    for _ in range(20): socket.create_connection(l.getsockname()).close()
threading.Thread(target=come).start()
for _ in range(20): l.accept()[0].close()
print("all")
"""
    assert python(body, ["in tcp 192.0.2.0/24:* deny"], sd_env) == "-1 EINTR\nall\n"


def test_unix_sockets_of_programs_with_threads(sd_env: dict[str, str], tmp_path: Path) -> None:
    """They are performed, too: relative names, umask, data, descriptors."""
    body = """
os.chdir(sys.argv[1]); os.umask(0o027)
threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
l = socket.socket(socket.AF_UNIX); l.bind("name"); l.listen()
print(oct(os.stat("name").st_mode & 0o777))
c = socket.socket(socket.AF_UNIX); c.connect("name"); a, _ = l.accept()
r, w = os.pipe(); socket.send_fds(c, [b"x"], [w])
os.write(socket.recv_fds(a, 1, 1)[1][0], b"through"); print(os.read(r, 20).decode())
print(tried(lambda: socket.socket(socket.AF_UNIX).connect("missing")))
u = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); u.bind("u"); v = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
v.sendto(b"dgram", "u"); print(u.recv(10).decode())
"""
    rules = ["out tcp *:25 deny", "in tcp *:25 deny", "out udp *:25 deny"]
    assert python(body, rules, sd_env, str(tmp_path)).split() == ["0o750", "through", "ENOENT", "dgram"]


RECEIVES = """
import struct, ctypes
def heard(sock, *hosts):
    port, family, got = sock.getsockname()[1], sock.family, []
    for host in hosts:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((host, 0))
            sender.sendto(host.encode(), ("::1" if ":" in host else "127.0.0.1", port))
    sock.settimeout(0.05)
    try:
        while True: got.append(sock.recv(50).decode())
    except TimeoutError: return "+".join(got) or "-"
FOUR = ("127.0.0.1", "127.0.0.2", "127.0.0.130")
accept_all = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0xffffffff))
accept_none = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
def attach(sock, memory): sock.setsockopt(1, 26, struct.pack("@HP", 1, ctypes.addressof(memory)))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0)); print(heard(u, *FOUR))
print(tried(lambda: attach(u, accept_all)), tried(lambda: u.setsockopt(1, 27, 0)), heard(u, *FOUR))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"", ("127.0.0.1", 9)); print(heard(s, *FOUR))
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.connect(("127.0.0.2", 9)); print(heard(c, *FOUR))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); six.bind(("::", 0)); print(heard(six, "::1", *FOUR))
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); attach(own, accept_none)
own.bind(("127.0.0.1", 0)); print(heard(own, *FOUR))
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); attach(own, accept_all); own.setsockopt(1, 44, 1)
print(tried(lambda: own.bind(("127.0.0.1", 0))))
"""


def test_datagrams_only_from_some(sd_env: dict[str, str]) -> None:
    """Dropped by the kernel, however the socket got its port; a filter of the program's own stays behind ours."""
    rules = ["in udp 127.0.0.2:* deny", "in udp 127.0.0.128/25:1-65535 deny", "in udp 127.0.0.9:* kernel"]
    assert python(RECEIVES, rules, sd_env).split() == [
        "127.0.0.1", "EPERM", "EPERM", "127.0.0.1", "127.0.0.1", "-", "::1+127.0.0.1", "-", "EACCES"]  # fmt: skip
    rules = ["in udp 127.0.0.2:* kernel", "in udp [::1]:* deny", "in udp 127.0.0.0/8:1-65535 deny"]
    assert python(RECEIVES, rules, sd_env).split() == [
        "127.0.0.2", "EPERM", "EPERM", "127.0.0.2", "127.0.0.2", "-", "127.0.0.2", "-", "EACCES"]  # fmt: skip


def test_no_right_that_the_program_has_given_up(sd_env: dict[str, str]) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    body = """
s = socket.socket(); print(tried(lambda: s.bind(("127.0.0.1", 81))))
os.setresuid(65534, 65534, 65534)
s = socket.socket(); print(tried(lambda: s.bind(("127.0.0.1", 82))))
"""
    assert python(body, ["in tcp *:25 deny"], sd_env).split() == ["ok", "EACCES"]


def test_other_protocols_where_everything_is_denied(sd_env: dict[str, str]) -> None:
    body = """
for domain, kind, proto in ((2, 3, 6), (2, 1, 132), (2, 1, 6), (2, 2, 17), (17, 3, 0), (1, 1, 0)):
    print(tried(lambda: socket.socket(domain, kind, proto).close()))
"""
    assert python(body, ["out tcp 127.0.0.1:1 accelerate", ], {**sd_env, "SDRUN_SET": "default=deny"}).split() == [
        "EACCES", "EACCES", "ok", "ok", "EACCES", "ok"]  # fmt: skip


def test_the_supervisors_death_opens_nothing(ports: Ports, sd_env: dict[str, str]) -> None:
    """The keeper goes on to deny, also to calls that were being performed."""
    body = """
l = socket.create_server(("127.0.0.1", 0))
def wait(): print(tried(l.accept))
t = threading.Thread(target=wait); t.start(); time.sleep(0.3)
for pid in filter(str.isdigit, os.listdir("/proc")):
    try: words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
    except OSError: continue
    if b"sdtrace.supervisor" in words and b"--root-pid=%d" % os.getpid() in words: os.kill(int(pid), signal.SIGKILL)
time.sleep(0.5)
print(tried(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])))))
t.join()
print("on")
"""
    rules = [f"out tcp *:{ports.port} deny", "in tcp 192.0.2.1:* deny"]
    assert python(body, rules, sd_env, str(ports.port)).split() == ["EACCES", "EACCES", "on"]
    assert ports.came() == 0
