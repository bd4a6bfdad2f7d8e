# SPDX-License-Identifier: Apache-2.0
"""Bytes in front of a socket's queue: read once, in order, with the end that natively stands behind them."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from typing import Any

import pytest

import sdtrace.refill as refilling
from sdtrace import calls
from sdtrace.opposite import opposite
from sdtrace.refill import End, Impossible, check
from sdtrace.refill import refill as really_refill
from sdtrace.segments import cookie_of

TIMEOUT_S = 5
TCP_REPAIR = 19


def connected(host: str) -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        one = socket.create_connection(listener.getsockname()[:2])
        two, _ = listener.accept()
    for each in (one, two):
        each.settimeout(TIMEOUT_S)
    return one, two


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request: pytest.FixtureRequest) -> tuple[socket.socket, socket.socket]:
    one, two = connected(request.param)
    try:
        check(one)
    except Impossible:
        pytest.skip("no CAP_NET_ADMIN")
    return one, two


def refill(sock: socket.socket, data: bytes, end: End, *, shut: bool, lives: bool, local: tuple[str, int],
           peer: tuple[str, int]) -> None:
    """By a duplicate, as a supervisor has it: Python would wait for it to be readable."""
    with socket.socket(fileno=os.dup(sock.fileno())) as ours:
        really_refill(ours, data, local, peer, end, shut=shut, lives=lives)


def rest(sock: socket.socket) -> tuple[bytes, str]:
    data = b""
    try:
        while part := sock.recv(1 << 20):
            data += part
    except OSError as error:
        return data, errno.errorcode[error.errno or 0]
    return data, "end"


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def names(sock: socket.socket) -> tuple[tuple[str, int], tuple[str, int]]:
    return sock.getsockname()[:2], sock.getpeername()[:2]


@pytest.mark.parametrize(("reset", "end", "said"), [(False, End.OVER, "end"), (True, End.OVER, "end"),
                                                    (False, End.RESET, "ECONNRESET"), (True, End.RESET, "ECONNRESET")])
@pytest.mark.parametrize("shut", [False, True])
@pytest.mark.parametrize("accepted", [False, True])
def test_behind_the_end(reset: bool, end: End, said: str, shut: bool, accepted: bool,
                        ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends[::-1] if accepted else ends
    local, peer = names(ours)
    inode, cookie = os.fstat(ours.fileno()).st_ino, cookie_of(ours)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    room = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    if reset:
        ours.send(b"unread")
    if shut:
        ours.shutdown(socket.SHUT_WR)
    theirs.close()
    time.sleep(0.01)
    with suppress(ConnectionResetError):
        assert ours.recv(10) == b""
    there = opposite(ours, local, peer, os.getpid())
    assert there is not None
    assert there.inode == 0
    data = os.urandom(2_000_000)
    refill(ours, data, end, shut=shut, lives=False, local=local, peer=peer)
    assert (os.fstat(ours.fileno()).st_ino, cookie_of(ours)) == (inode, cookie)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == room
    assert rest(ours) == (data, said)
    ours.close()


@pytest.mark.parametrize("stuck", [0, 3_000_000])
def test_the_peer_lives(stuck: int, ends: tuple[socket.socket, socket.socket]) -> None:
    """Both directions go on where they were, also with bytes in our queue that it has no room for."""
    ours, theirs = ends
    local, peer = names(ours)
    theirs.send(b"read already")
    assert ours.recv(100) == b"read already"
    ours.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while sent < stuck:
            sent += ours.send(bytes(min(stuck - sent, 100_000)))
    ours.settimeout(TIMEOUT_S)
    time.sleep(0.05)
    refill(ours, b"put in front", End.OPEN, shut=False, lives=True, local=local, peer=peer)
    there = opposite(ours, local, peer, os.getpid())
    assert there is not None
    assert there.inode == os.fstat(theirs.fileno()).st_ino
    theirs.send(b", and behind")
    time.sleep(0.01)
    assert ours.recv(100) == b"put in front, and behind"
    assert exactly(theirs, sent) == bytes(sent)
    for number in range(100):
        ours.sendall(b"%06d" % number * 1000)
        assert exactly(theirs, 6000) == b"%06d" % number * 1000
        theirs.sendall(b"%06d" % number * 1000)
        assert exactly(ours, 6000) == b"%06d" % number * 1000
    theirs.close()
    assert rest(ours) == (b"", "end")
    ours.close()


def test_the_peer_has_shut_its_side_and_lives(ends: tuple[socket.socket, socket.socket]) -> None:
    """Its FIN has come, perhaps while the queue was read; what we send still arrives, and then our end."""
    ours, theirs = ends
    local, peer = names(ours)
    theirs.send(b"read")
    theirs.shutdown(socket.SHUT_WR)
    time.sleep(0.01)
    assert (ours.recv(100), ours.recv(100)) == (b"read", b"")
    refill(ours, b"read again", End.OVER, shut=False, lives=True, local=local, peer=peer)
    assert rest(ours) == (b"read again", "end")
    for number in range(20):
        ours.sendall(b"%06d" % number * 1000)
        assert exactly(theirs, 6000) == b"%06d" % number * 1000
    ours.close()
    assert rest(theirs) == (b"", "end")


@pytest.mark.parametrize("step", ["bind", "connect", "fill", "options"])
def test_it_fails_half_way(step: str, ends: tuple[socket.socket, socket.socket],
                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the connection is reset, and both ends hear of it without asking; the socket is as it was otherwise."""
    ours, theirs = ends
    local, peer = names(ours)
    reuse = ours.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    fail_once(step, monkeypatch)
    with pytest.raises(OSError, match="for once"):
        refill(ours, b"lost", End.OPEN, shut=False, lives=True, local=local, peer=peer)
    assert rest(theirs) == (b"", "ECONNRESET")
    with pytest.raises(OSError, match=r"reset|connected"):
        ours.recv(10)
    with pytest.raises(OSError, match=r"pipe|connected"):
        ours.send(b"x")
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == reuse
    assert ours.getsockopt(socket.SOL_TCP, TCP_REPAIR) == 0


def fail_once(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one of these fails; of connect that which takes up the connection again."""
    left = [True]

    def failing(*arguments: Any) -> Any:
        if step == "connect" and not any(arguments[1][:2]):
            return was(*arguments)
        if left:
            left.clear()
            raise OSError(errno.ENOBUFS, "for once")
        return was(*arguments)

    module, name = {"bind": (calls, "bind"), "connect": (calls, "connect"), "fill": (refilling, "_fill"),
                    "options": (refilling, "_resume")}[step]
    was: Any = getattr(module, name)
    monkeypatch.setattr(module, name, failing)
