# SPDX-License-Identifier: Apache-2.0
"""Two processes, one segment, one real TCP connection: chunks both ways, sleeps, the switch up and back in mid-stream.

The library's ring, arming and switch on the real memory model and kernel, without interception. What is asserted is
that every byte arrives once, and that a sleeper is woken by the peer's doorbell and by nothing else.
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import random
import socket
from multiprocessing.connection import Connection
from typing import Any

import pytest

from sdlib import abi
from tests.sdlib.ends import End, Mode, SocketWire, new_segment

RING = abi.const.SD_RING_MIN
TOTAL = 5_000_000


class Pump:
    """One process's half: sends TOTAL bytes made from its seed, receives as many, sleeps when neither is possible."""

    def __init__(self, end: End, wire: SocketWire, seed: int, total: int, back: bool) -> None:
        self.end, self.wire, self.total = end, wire, total
        self.random = random.Random(seed)
        self.switch_at = self.random.randrange(total // 10)
        self.back_at = self.random.randrange(total // 2, total) if back else total + 1
        self.sent = self.received = 0
        self.outgoing = b""
        self.sha_sent, self.sha_received = hashlib.sha256(), hashlib.sha256()

    def send_some(self) -> bool:
        if self.sent >= self.switch_at:
            self.end.switch()
        if self.sent >= self.back_at:
            self.end.back()
        if not self.outgoing:
            self.outgoing = self.random.randbytes(min(self.random.choice([1, 100, 3000, 9000]), self.total - self.sent))
        taken = self.end.send(self.outgoing)
        self.sha_sent.update(self.outgoing[:taken])
        self.outgoing = self.outgoing[taken:]
        self.sent += taken
        return taken > 0

    def receive_some(self) -> bool:
        got = self.end.recv(self.random.choice([1, 64, 2000, 20000]))
        self.sha_received.update(got)
        self.received += len(got)
        return bool(got)

    def run(self) -> dict[str, Any]:
        while self.sent < self.total or self.received < self.total:
            moved = False
            if self.sent < self.total:
                moved = self.send_some()
            if self.received < self.total and self.random.random() < 0.7:
                moved |= self.receive_some()
            if not moved and not self.receive_some():
                self.sleep()
        return {"sent": self.sha_sent.hexdigest(), "received": self.sha_received.hexdigest(), **self.end.count,
                "tx": self.end.tx_mode.name, "rx": self.end.rx_mode.name}

    def sleep(self) -> None:
        wants_room = self.sent < self.total
        if self.end.fall_asleep(wants_room):
            short = wants_room and self.end.must_look()
            rung = self.wire.wait(wants_room and self.end.tx_mode is not Mode.RING, 1 if short else 60_000)
            assert rung or short, "sleeps, and nobody rings"
            self.end.wake_up()


def other_process(segment: mmap.mmap, sock: socket.socket, seed: int, back: bool, told: Connection) -> None:
    wire = SocketWire(sock)
    told.send(Pump(End(segment, 1, wire), wire, seed, TOTAL, back).run())
    told.recv()  # the connection stays open until the other has read all of it


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        return here, server.accept()[0]


@pytest.mark.parametrize("start, back", [(0, False), (2**64 - TOTAL // 2, False), (2**64 - 777, True)])
def test_every_byte_once_and_every_sleeper_woken(start: int, back: bool) -> None:
    segment = new_segment(RING, start)
    here, there = tcp_pair()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=other_process, args=(segment, there, 2, back, theirs))
    with here, there:
        child.start()
        wire = SocketWire(here)
        mine = Pump(End(segment, 0, wire), wire, 1, TOTAL, back).run()
        other = ours.recv()
        ours.send("bye")
        child.join(60)
    assert mine["sent"] == other["received"] and other["sent"] == mine["received"]
    assert {mine["tx"], other["tx"]} == {"BACK" if back else "RING"}
    assert min(mine["ring"], other["ring"]) > TOTAL // 20, "carried by TCP"
    assert mine["parks"] and mine["bells"] and other["parks"] and other["bells"]
