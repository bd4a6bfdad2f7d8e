# SPDX-License-Identifier: Apache-2.0
"""What a supervisor sends again in place of its program: all that is unread, once, behind the position that it says."""

from __future__ import annotations

import mmap
import os
import socket

import pytest

from monitor import segment
from sdlib import abi
from sdtrace.recall import resend

RING = 4096


@pytest.mark.parametrize(("base", "unread"), [(0, 0), (0, 10), (4000, 200), (1 << 33, 4096)])
def test_unread_bytes_go_by_tcp(base: int, unread: int) -> None:
    memfd = segment.make(RING)
    near, far = connected()
    with mmap.mmap(memfd, os.fstat(memfd).st_size) as memory, near, far:
        view = abi.view("struct sd_seg", memory)
        tx, start = view.dir[1], abi.const.SD_SEG_HDR_BYTES + RING
        data = os.urandom(unread)
        at = 4000 if base == 4000 else 0
        tx.base, tx.head, tx.tail = base - at, base, base + unread
        for place, byte in enumerate(data):
            memory[start + (at + place) % RING] = byte
        near.send(b"before")
        assert not resend(memfd, 1, near, connected=True), "nobody has asked"
        tx.go_back = abi.const.SD_GO_BACK_RESEND
        assert resend(memfd, 1, near, connected=True)
        assert tx.go_back == abi.const.SD_GO_BACK_TAKEN
        assert tx.tail == tx.head == tx.sw_back_at == base
        assert tx.sw_back == 1 + len(b"before"), "no doorbell: nobody waits for room"
        assert tx.prod_hint & abi.const.SD_HINT_LEAVING
        assert not resend(memfd, 1, near, connected=True), "once"
        near.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: far.recv(65536), b"")) == b"before" + data
        del view, tx
    os.close(memfd)


def test_who_waits_for_room_gets_the_last_doorbell() -> None:
    memfd = segment.make(RING)
    near, far = connected()
    with mmap.mmap(memfd, os.fstat(memfd).st_size) as memory, near, far:
        view = abi.view("struct sd_seg", memory)
        view.dir[0].tx_armed = 1
        view.dir[1].go_back = abi.const.SD_GO_BACK_RESEND
        assert resend(memfd, 1, near, connected=True)
        assert (view.dir[1].bell, view.dir[1].sw_back) == (1, 2)
        assert far.recv(10) == b"\0"
        del view
    os.close(memfd)


@pytest.mark.parametrize(("rung", "first", "wanted"), [
    (0, 0, b"abcdef"), (1, 1, b"abcdef"), (1, 0, None), (2, 1, None),
])  # fmt: skip
def test_in_front_of_the_ring_a_doorbell_is_its_first_byte(rung: int, first: int, wanted: bytes | None) -> None:
    """[S6]; a doorbell that is none of the program's bytes ends the connection."""
    memfd = segment.make(RING)
    near, far = connected()
    with mmap.mmap(memfd, os.fstat(memfd).st_size) as memory, near, far:
        view = abi.view("struct sd_seg", memory)
        tx, start = view.dir[1], abi.const.SD_SEG_HDR_BYTES + RING
        memory[start : start + 6] = b"abcdef"
        near.send(b"before")
        tx.tail, tx.sw_ring, tx.bell_first, tx.go_back = 6, 1 + len(b"before"), first, abi.const.SD_GO_BACK_UNREAD
        near.send(b"aa"[:rung])
        if wanted is None:
            with pytest.raises(OSError, match="doorbell"):
                resend(memfd, 1, near, connected=True)
        else:
            assert resend(memfd, 1, near, connected=True)
            assert tx.tail == tx.head == tx.sw_back_at == 0 and tx.sw_back == 1 + len(b"before") + rung
            near.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: far.recv(65536), b"")) == b"before" + wanted
        del view, tx
    os.close(memfd)


def connected() -> tuple[socket.socket, socket.socket]:
    """The end that has connected, and the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]
