# SPDX-License-Identifier: Apache-2.0
"""What a peer has left in the ring comes before what it has sent by TCP since, and its end behind both: also an end
that arrives while the kernel's queue is being read, and nobody else will ever hear of.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from monitor import segment
from sdlib import abi
from sdtrace import leftover
from sdtrace.ends import End
from sdtrace.refill import Impossible, check

RING = 4096
SIDE = 0
C = abi.const


@dataclass
class Place:
    """An end of ours, whose peer went back to TCP with `ring` unread, and has sent "behind" since."""

    end: End
    near: socket.socket
    block: Any

    def rest(self) -> tuple[bytes, str]:
        """What the program reads, as the library tells it."""
        data, sock = b"", self.end.sock
        sock.settimeout(5)
        try:
            while part := sock.recv(1 << 16):
                data += part
        except OSError as error:
            return data, errno.errorcode[error.errno or 0]
        return data, errno.errorcode[self.block.rx_err] if self.block.rx_err else "end"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    memfd = segment.make(RING)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        sock = listener.accept()[0]
    try:
        check(sock)
    except Impossible:
        pytest.skip("no CAP_NET_ADMIN")
    block = SimpleNamespace(rx_mode=C.SD_MODE_RING, tx_mode=C.SD_MODE_BACK, latched=0, rx_err=0, tx_shut=0, role=2)
    origin = SimpleNamespace(local=sock.getsockname(), peer=sock.getpeername())
    key = SimpleNamespace(area=SimpleNamespace(view=SimpleNamespace(block=[block])), block=0)
    memory = mmap.mmap(memfd, os.fstat(memfd).st_size)
    held: Any = SimpleNamespace(side=SIDE, origin=origin)
    own: Any = key
    end = End(own, held, sock, memory, abi.ffi.from_buffer(memory))
    start = C.SD_SEG_HDR_BYTES + (1 - SIDE) * RING
    memory[start : start + 4] = b"ring"
    end.rx.tail, end.rx.sw_ring, end.rx.sw_back, end.rx.sw_back_at = 4, 1, 1, 4
    near.send(b"behind")
    monkeypatch.setattr("sdtrace.kin.holders", lambda _: [os.getpid()])  # the peer stands still: it is us
    yield Place(end, near, block)
    near.close()
    end.close()
    os.close(memfd)


def during_the_drain(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Once, when what was there until then has been read."""
    was, left = leftover._drain, [what]

    def drain(sock: socket.socket) -> bytes:
        data = was(sock)
        while left:
            left.pop()()
        return data

    monkeypatch.setattr(leftover, "_drain", drain)


@pytest.mark.parametrize("end", ["shut", "close", "reset"])
def test_its_end_arrives_while_the_queue_is_read(end: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    near, ours = place.near, [os.getpid()]
    if end == "reset":
        place.end.sock.send(b"unread")
    during_the_drain(monkeypatch, {"shut": lambda: near.shutdown(socket.SHUT_WR)}.get(end, near.close))
    assert leftover.put_back(place.end, ours)
    data, said = place.rest()
    assert data == b"ringbehind"
    assert said == ("ECONNRESET" if end == "reset" else "end")
    if end == "shut":
        place.end.sock.send(b"still open")
        assert near.recv(100) == b"still open"


def test_more_arrives_while_the_queue_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    during_the_drain(monkeypatch, lambda: place.near.send(b", and on"))
    assert leftover.put_back(place.end, [os.getpid()])
    place.near.send(b", later")
    place.near.shutdown(socket.SHUT_WR)
    assert place.rest() == (b"ringbehind, and on, later", "end")


def test_it_cannot_be_taken_up_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hear of a reset, and nothing of the stream is told twice."""

    def fails(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "for once")

    monkeypatch.setattr("sdtrace.refill._resume", fails)
    assert leftover.put_back(place.end, [os.getpid()])
    assert place.block.rx_err == errno.ECONNRESET
    assert place.end.rx.head == place.end.rx.tail
    place.near.settimeout(5)
    with pytest.raises(ConnectionResetError):
        place.near.recv(10)
