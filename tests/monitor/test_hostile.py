# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm lose their own offers and nothing else: the monitor serves on and keeps no descriptor."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdlib import abi
from sdlib.wire import MonitorUnavailable, Pending, Refused, messages
from sdlib.wire.messages import Code
from tests.monitor.support import RING, Link, MonitorProcess, Raw, events_of, still_serves

MakeRaw = Callable[..., Raw]
PROTOCOL, ABI = messages.PROTOCOL_VERSION, abi.const.SD_ABI_VERSION
HELLO = messages.encode(messages.Hello(messages.PROTOCOL_VERSION, abi.const.SD_ABI_VERSION))
OFFER = messages.encode(messages.Offer(7, RING))

GARBAGE = {
    "one byte": b"\x01",
    "header only": HELLO[:8],
    "short": HELLO[:-1],
    "long": HELLO + b"\0",
    "very long": b"A" * 60000,
    "wrong type": b"\xff\xff" + HELLO[2:],
    "wrong length": HELLO[:2] + b"\xff\xff" + HELLO[4:],
    "reserved word": HELLO[:4] + b"\1\0\0\0" + HELLO[8:],
    "wrong magic": HELLO[:-1] + b"\xee",
    "second hello": HELLO,
    "the monitor's words": messages.encode(messages.Welcome(1, 1, 1, 1)),
    "the monitor's pairing": messages.encode(messages.Paired(1, 0, RING)),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("with_fd", [False, True], ids=["bare", "with-descriptor"])
def test_garbage_ends_the_client(monitor: MonitorProcess, raw: MakeRaw, data: bytes, with_fd: bool, link: Link) -> None:
    with still_serves(monitor):
        hostile = raw()
        hostile.say_bytes(data, *([link.near.fileno()] if with_fd else []))
        assert hostile.hears_reject().code == Code.PROTOCOL


def test_nothing_works_before_hello(monitor: MonitorProcess, raw: MakeRaw, link: Link) -> None:
    with still_serves(monitor):
        hostile = raw(greet=False)
        hostile.say_bytes(OFFER, link.near.fileno())
        assert hostile.hears_reject().code == Code.PROTOCOL


@pytest.mark.parametrize(("protocol", "abi_version"), [
    (PROTOCOL + 1, ABI), (PROTOCOL - 1, ABI), (PROTOCOL, ABI + 1), (PROTOCOL, ABI - 1)])
def test_other_versions_are_told_so(raw: MakeRaw, protocol: int, abi_version: int) -> None:
    stranger = raw(greet=False)
    stranger.say(messages.Hello(protocol, abi_version))
    reject = stranger.hears_reject()
    assert reject.code == Code.VERSION
    ours, theirs = (PROTOCOL, protocol) if protocol != PROTOCOL else (ABI, abi_version)
    assert f"version {ours}, the client {theirs}" in reject.text


@contextlib.contextmanager
def descriptor(kind: str, folder: Path) -> Iterator[int]:
    """A descriptor that is no established TCP connection."""
    with contextlib.ExitStack() as stack:
        if kind in ("file", "pipe", "directory", "epoll"):
            fd = {
                "file": lambda: os.open(folder / "file", os.O_RDWR | os.O_CREAT),
                "directory": lambda: os.open(folder, os.O_RDONLY),
                "pipe": lambda: os.pipe()[0],
                "epoll": lambda: os.eventfd(0),
            }[kind]()
            stack.callback(os.close, fd)
            yield fd
            return
        family = {"unix": socket.AF_UNIX, "netlink": socket.AF_NETLINK}.get(kind, socket.AF_INET)
        styles = {"udp": socket.SOCK_DGRAM, "raw": socket.SOCK_RAW, "netlink": socket.SOCK_RAW}
        style = styles.get(kind, socket.SOCK_STREAM)
        sock = stack.enter_context(socket.socket(family, style, socket.IPPROTO_ICMP if kind == "raw" else 0))
        if kind == "listening":
            sock.listen()
        yield sock.fileno()


@pytest.mark.parametrize(
    "kind", ["file", "directory", "pipe", "epoll", "unix", "udp", "raw", "netlink", "listening", "unconnected"]
)
def test_wrong_descriptors_are_refused(monitor: MonitorProcess, raw: MakeRaw, tmp_path: Path, kind: str) -> None:
    if kind == "raw" and os.geteuid() != 0:
        pytest.skip("raw sockets need root")
    with still_serves(monitor):
        hostile = raw()
        with descriptor(kind, tmp_path) as fd:
            hostile.say_bytes(OFFER, fd)
        answer = hostile.hear()
        assert isinstance(answer, messages.Refused) and answer.offer_id == 7
        expected = Code.NOT_ESTABLISHED if kind in ("listening", "unconnected") else Code.DESCRIPTOR
        assert answer.code == expected
        hostile.close()


@pytest.mark.parametrize("count", [0, 2, 4, 5, 200])
def test_wrong_number_of_descriptors_is_refused(monitor: MonitorProcess, raw: MakeRaw, link: Link, count: int) -> None:
    with still_serves(monitor):
        hostile = raw()
        hostile.say_bytes(OFFER, *[link.near.fileno()] * count)
        answer = hostile.hear()
        assert isinstance(answer, messages.Refused) and answer.code == Code.DESCRIPTOR
        hostile.close()


def test_offer_with_an_open_id_ends_the_client(monitor: MonitorProcess, raw: MakeRaw, link: Link) -> None:
    with still_serves(monitor):
        hostile = raw()
        hostile.say_bytes(OFFER, link.near.fileno())
        assert hostile.hear() == messages.Pending(7)
        hostile.say_bytes(OFFER, link.far.fileno())
        assert hostile.hears_reject().code == Code.PROTOCOL


def test_closed_connection_is_refused(raw: MakeRaw, link: Link) -> None:
    link.far.close()
    link.near.recv(1)
    hostile = raw()
    hostile.say_bytes(OFFER, link.near.fileno())
    answer = hostile.hear()
    assert isinstance(answer, messages.Refused) and answer.code == Code.NOT_ESTABLISHED


def test_close_that_lingers_does_not_stop_the_monitor(monitor: MonitorProcess, raw: MakeRaw, link: Link) -> None:
    """The last reference to a socket with SO_LINGER and unread data: close(2) would wait for two minutes."""
    link.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\x78\0\0\0")
    link.near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            link.near.send(b"x" * 65536)
    hostile = raw()
    monitor.process.send_signal(19)  # SIGSTOP: so that our own reference is gone before it looks
    hostile.say_bytes(OFFER, link.near.fileno())
    link.near.close()
    monitor.process.send_signal(18)
    hostile.hear()  # within ten seconds, as all that it is asked
    with still_serves(monitor):
        pass


def test_client_that_does_not_read_is_dropped(monitor: MonitorProcess, raw: MakeRaw) -> None:
    """Late pairings for a deaf client are bounded, and its partners get theirs."""
    with still_serves(monitor):
        deaf, good = raw(), monitor.client()
        links = [Link() for _ in range(700)]
        for number, link in enumerate(links):
            deaf.say_bytes(messages.encode(messages.Offer(number, 4096)), link.near.fileno())
            assert deaf.hear() == messages.Pending(number)
        paired = 0
        for number, link in enumerate(links):
            answer = good.offer(link.far.fileno(), number, 4096, 5)
            if not isinstance(answer, Pending):
                paired += 1
                os.close(answer[2])  # type: ignore[misc]
        assert 256 <= paired < 700, "some were paired until it was dropped, and none after that"
        good.close()
        deaf.close()
        for link in links:
            link.close()


def test_slow_reader_loses_nothing(monitor: MonitorProcess, raw: MakeRaw) -> None:
    """Who asks much before reading is made to wait, not dropped: the monitor stops reading from it meanwhile."""
    slow = raw()
    count = 3000

    def ask() -> None:
        for number in range(count):
            slow.say(messages.Withdraw(number))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    with still_serves(monitor):
        assert asking.is_alive(), "it must be blocked by now"
    assert [slow.hear() for _ in range(count)] == [messages.Withdrawn(number) for number in range(count)]
    asking.join(10)


def test_flood_does_not_starve_others(monitor: MonitorProcess, raw: MakeRaw, link: Link) -> None:
    code = (
        "import socket,sys;s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET);s.connect(sys.argv[1]);"
        "s.send(bytes.fromhex(sys.argv[2]));s.recv(200)\n"
        "print(flush=True)\n"
        "while True:\n s.send(bytes.fromhex(sys.argv[3]));s.recv(200)"
    )
    withdraw = messages.encode(messages.Withdraw(1)).hex()
    command = [sys.executable, "-c", code, monitor.path, HELLO.hex(), withdraw]
    flood = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert flood.stdout is not None and flood.stdout.readline()
        with still_serves(monitor):
            client = monitor.client()
            slowest = 0.0
            for number in range(100):
                started = time.monotonic()
                assert client.offer(link.near.fileno(), number, RING, 5) == Pending(number)
                slowest = max(slowest, time.monotonic() - started)
                client.withdraw(number)
            assert slowest < 1
            client.close()
        assert flood.poll() is None
    finally:
        flood.kill()
        flood.wait()


def test_quota_of_offers_per_client(tmp_path: Path) -> None:
    monitor = MonitorProcess(tmp_path, "--max-offers-per-client", "2", "--max-offers-per-user", "3")
    one, two = monitor.client(), monitor.client()
    links = [Link() for _ in range(4)]
    assert one.max_offers == 2
    assert one.offer(links[0].near.fileno(), 0, RING, 5) == Pending(0)
    assert one.offer(links[1].near.fileno(), 1, RING, 5) == Pending(1)
    refused = one.offer(links[2].near.fileno(), 2, RING, 5)
    assert isinstance(refused, Refused) and refused.code == Code.QUOTA
    assert two.offer(links[2].near.fileno(), 2, RING, 5) == Pending(2)
    refused = two.offer(links[3].near.fileno(), 3, RING, 5)
    assert isinstance(refused, Refused) and refused.code == Code.QUOTA, "the user's limit"
    paired = two.offer(links[0].far.fileno(), 4, RING, 5)
    assert paired[0] == 4, "pairing takes nothing from the quota"
    one.withdraw(1)
    assert two.offer(links[3].near.fileno(), 3, RING, 5) == Pending(3)
    for closing in (one.close, two.close, *(link.close for link in links), monitor.close):
        closing()


def test_quota_of_clients(tmp_path: Path) -> None:
    monitor = MonitorProcess(tmp_path, "--max-clients-per-user", "3")
    clients = [monitor.client() for _ in range(3)]
    with pytest.raises(MonitorUnavailable, match="too many clients"):
        monitor.client()
    clients.pop().close()
    time.sleep(0.1)
    clients.append(monitor.client())
    for closing in (*(client.close for client in clients), monitor.close):
        closing()


def test_silent_client_is_dropped(tmp_path: Path) -> None:
    """Whoever connects and says nothing is gone after a few seconds, and does not keep the monitor alive."""
    monitor = MonitorProcess(tmp_path, "--idle-exit", "0.2")
    silent = Raw(monitor.path, greet=False)
    assert silent.hears_reject().code == Code.PROTOCOL
    assert monitor.process.wait(10) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_other_users_are_not_paired(tmp_path: Path, link: Link) -> None:
    """One end offered by root, the other by nobody: both hear why. Identity comes from the kernel (SO_PEERCRED)."""
    folder = Path(f"/tmp/sdmon-{os.getpid()}")
    folder.mkdir(mode=0o755)
    monitor = MonitorProcess(folder)
    try:
        os.chmod(monitor.path, 0o666)
        ours = monitor.client()
        assert ours.offer(link.near.fileno(), 1, RING, 5) == Pending(1)
        pid = os.fork()
        if not pid:
            os.setgid(65534)
            os.setuid(65534)
            theirs = Raw(monitor.path)
            theirs.say_bytes(OFFER, link.far.fileno())
            answer = theirs.hear()
            os._exit(answer.code if isinstance(answer, messages.Refused) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == Code.OTHER_USER
        (lost,) = events_of(ours)
        assert lost.offer_ids == (1,) and "another user" in lost.reason  # type: ignore[union-attr]
        ours.close()
    finally:
        monitor.close()
        for name in folder.iterdir():
            name.unlink()
        folder.rmdir()


def test_random_bytes(monitor: MonitorProcess, link: Link) -> None:
    """Mutations of good messages, with and without descriptors; the monitor outlives them all."""
    chance = random.Random(5344)
    with still_serves(monitor):
        for _ in range(4000):
            hostile = Raw(monitor.path, greet=chance.random() < 0.8)
            for _ in range(chance.randrange(1, 4)):
                data = bytearray(chance.choice([HELLO, OFFER, *GARBAGE.values()])[:200])
                for _ in range(chance.randrange(3)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                data = data[: chance.choice([len(data), chance.randrange(len(data) + 1)])]
                with contextlib.suppress(OSError):
                    hostile.say_bytes(bytes(data), *[link.near.fileno()] * chance.choice([0, 0, 1, 1, 2, 7]))
            hostile.close()
        assert monitor.process.poll() is None
