# SPDX-License-Identifier: Apache-2.0
"""A monitor that lies: its client believes nothing, keeps no descriptor, and says that the monitor is gone."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sdlib import abi
from sdlib.wire import Lost, MonitorClient, MonitorUnavailable, Pending, fds, messages, segment
from tests.monitor.support import RING, Link, events_of

WELCOME = messages.encode(messages.Welcome(messages.PROTOCOL_VERSION, abi.const.SD_ABI_VERSION, 10, RING))
PAIRED = messages.encode(messages.Paired(1, 0, RING))
Script = list[tuple[bytes, int]]
OpenClient = Callable[[Script], MonitorClient]


def memfd(size: int = segment.segment_bytes(RING), seals: int = segment.SEALS, head: bytes | None = None) -> int:
    """A segment, or nearly."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, segment.initial_header(RING) if head is None else head, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[OpenClient]:
    """Opens a client at a monitor that greets properly, and answers the first offer with the script."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "liar.sock"))
    listener.listen()
    threads: list[threading.Thread] = []

    def serve(script: Script) -> None:
        sock, _ = listener.accept()
        with sock, suppress(OSError):
            fds.receive(sock)
            sock.send(WELCOME)
            fds.close_all(fds.receive(sock).fds)
            for data, fd in script:
                fds.send(sock, data, fd)
            while sock.recv(200):
                pass

    def make(script: Script) -> MonitorClient:
        threads.append(threading.Thread(target=serve, args=(script,)))
        threads[-1].start()
        return MonitorClient.open(str(tmp_path / "liar.sock"), spawn=False)

    yield make
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    listener.close()


def header(magic: int, version: int, ring_bytes: int) -> bytes:
    view = bytearray(segment.initial_header(RING))
    seg = abi.view("struct sd_seg", view)
    seg.magic, seg.version, seg.ring_bytes = magic, version, ring_bytes
    return bytes(view)


MAGIC, VERSION = abi.const.SD_SEG_MAGIC, abi.const.SD_ABI_VERSION
LIES: dict[str, Callable[[], Script]] = {
    "no descriptor": lambda: [(PAIRED, -1)],
    "not a memfd": lambda: [(PAIRED, os.open("/dev/null", os.O_RDWR))],
    "no seals": lambda: [(PAIRED, memfd(seals=0))],
    "shrinkable": lambda: [(PAIRED, memfd(seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL))],
    "seals can be added": lambda: [(PAIRED, memfd(seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK))],
    "too small": lambda: [(PAIRED, memfd(segment.segment_bytes(RING) - 1))],
    "too big": lambda: [(PAIRED, memfd(segment.segment_bytes(RING) + 1))],
    "wrong magic": lambda: [(PAIRED, memfd(head=header(1, VERSION, RING)))],
    "wrong version": lambda: [(PAIRED, memfd(head=header(MAGIC, VERSION + 1, RING)))],
    "wrong ring in the header": lambda: [(PAIRED, memfd(head=header(MAGIC, VERSION, 2 * RING)))],
    "side 2": lambda: [(messages.encode(messages.Paired(1, 2, RING)), memfd())],
    "ring larger than asked": lambda: [(messages.encode(messages.Paired(1, 0, 2 * RING)), memfd())],
    "ring 0": lambda: [(messages.encode(messages.Paired(1, 0, 0)), memfd(4096))],
    "ring of no power of two": lambda: [(messages.encode(messages.Paired(1, 0, 12288)), memfd())],
    "somebody else's offer": lambda: [(messages.encode(messages.Paired(99, 0, RING)), memfd())],
    "pending twice": lambda: [(messages.encode(messages.Pending(1)), -1)] * 2,
    "descriptor with a refusal": lambda: [(messages.encode(messages.Refused(1, 1, "")), memfd())],
    "withdrawn by nobody": lambda: [(messages.encode(messages.Withdrawn(1)), -1)],
    "welcome again": lambda: [(WELCOME, -1)],
    "an offer": lambda: [(messages.encode(messages.Offer(1, RING)), memfd())],
    "garbage": lambda: [(b"garbage", -1)],
    "garbage with a descriptor": lambda: [(b"\xff" * 100, memfd())],
    "too long": lambda: [(b"\1" * 5000, memfd())],
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_lies_end_the_conversation(liar: OpenClient, lie: Callable[[], Script], link: Link) -> None:
    before = len(os.listdir("/proc/self/fd"))
    script = lie()
    client = liar(script)
    try:
        answer = client.offer(link.near.fileno(), 1, RING, 5)
    except MonitorUnavailable as error:
        assert str(error).isprintable()
        assert events_of(client) == [Lost((), str(error).removeprefix("the monitor is gone: "))]
    else:
        assert answer == Pending(1)  # the first of two answers was right
        (lost,) = events_of(client)
        assert isinstance(lost, Lost) and lost.offer_ids == (1,)
    assert not client.alive
    client.close()
    for fd in {fd for _, fd in script if fd >= 0}:
        os.close(fd)
    link.far.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_truth_is_believed(liar: OpenClient, link: Link) -> None:
    """The same script with nothing wrong in it: the lies above are refused for what they are."""
    given = memfd()
    client = liar([(PAIRED, given)])
    answer = client.offer(link.near.fileno(), 1, RING, 5)
    assert answer[:2] == (1, 0)
    os.close(answer[2])  # type: ignore[misc]
    os.close(given)
    client.close()


def test_mistakes_of_the_caller(liar: OpenClient, link: Link) -> None:
    client = liar([(messages.encode(messages.Pending(1)), -1)])
    with pytest.raises(ValueError, match="no open descriptor"):
        client.offer(999999, 1, RING, 5)
    with pytest.raises(ValueError, match="u64"):
        client.offer(link.near.fileno(), -1, RING, 5)
    assert client.offer(link.near.fileno(), 1, RING, 5) == Pending(1)
    with pytest.raises(ValueError, match="still open"):
        client.offer(link.near.fileno(), 1, RING, 5)
    assert client.alive
    client.close()
    client.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_monitor_of_another_user_is_not_believed(monitor_of_nobody: str) -> None:
    with pytest.raises(MonitorUnavailable, match="served by uid 65534"):
        MonitorClient.open(monitor_of_nobody, spawn=False)


@pytest.fixture
def monitor_of_nobody(tmp_path: Path) -> Iterator[str]:
    name = str(tmp_path / "nobody.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(name)
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        os.setuid(65534)
        listener.listen()  # SO_PEERCRED of a listener is taken at listen(2)
        os.write(told, b"x")
        listener.accept()[0].recv(10)
        listener.accept()
        os._exit(0)
    os.read(ready, 1)
    yield name
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    for fd in (ready, told):
        os.close(fd)
    listener.close()
