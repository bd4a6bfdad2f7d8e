# SPDX-License-Identifier: Apache-2.0
"""All connections of stopped programs go back to TCP, and what is unread in their rings with them.

In each direction the producer does what [S2] and [S5] of sdlib/src/ring/switch.h say: ours, which stand still, by us;
the other end's by itself, when the doorbell wakes it, or by its supervisor, which the monitor asks.  So for every end:

1. the direction that it reads: "send again what I have not read" (RESEND);
2. the direction that it writes: back, sending again what its own peer has asked for, with a doorbell in front;
3. wait until the direction that it reads is back; then the bytes in the kernel's socket are all there are, but for
   doorbells, which are eaten by position.

A peer that has gone, or went back before with bytes unread in the ring, sends nothing again: leftover.py then.

Whatever cannot be done now is found before 1 as far as possible (`NotNow`), and may be tried again: a direction that is
back stays so, and the library can live with that.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import time
from collections.abc import Collection, Mapping

from sdlib import abi
from sdtrace import procfs
from sdtrace.ends import End, NotNow, is_over, read_so_far, room
from sdtrace.held import Held, Key
from sdtrace.leftover import put_back
from sdtrace.offers import Broker
from sdtrace.ptrace import RemoteError
from sdtrace.recall import CORK, NODELAY, send_all, stream_position
from sdtrace.segments import taken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

WARNED_S: Final = 0.1
"""Sends that are about to go to a ring for the first time are over then."""
_PEER_S: Final = 1.5
_NUDGE_S: Final = 0.005
_LOOK_S: Final = 0.001
_BELLS_MAX: Final = 64
_C: Final = abi.const


def warn(broker: Broker, only: Key | None = None) -> bool:
    """Some time before (`WARNED_S`): what is not on the ring yet shall not go there any more. False: nothing might."""
    any_left = False
    for key, held in broker.held():
        if not held.attached or held.segment < 0 or only not in (None, key):
            continue
        block = key.area.view.block[key.block]
        with mmap.mmap(held.segment, abi.sizeof("struct sd_seg")) as memory, abi.ffi.from_buffer(memory) as words:
            segment: Any = abi.ffi.cast("struct sd_seg *", words)
            for side, mode in ((held.side, int(block.tx_mode)), (1 - held.side, int(block.rx_mode))):
                if mode & 0xFF in (_C.SD_MODE_TCP, _C.SD_MODE_SWITCH):
                    segment.dir[side].go_back = _C.SD_GO_BACK_POLICY
                    any_left = True
    return any_left


def give_back(broker: Broker, pids: Collection[int], only: Collection[Key] | None = None,
              reason: int = _C.SD_REASON_detached) -> None:
    """All that these processes have, or `only` some; RemoteError, NotNow. All threads stand still, outside of any call.

    `reason` is what the report counts (`enum sd_reason`).
    """
    ends: list[End] = []
    holders = {name: (pid, fd) for pid in pids for fd, name in procfs.files(pid).items() if name.startswith("socket:")}
    try:
        for key, held in broker.held():
            if only is not None and key not in only:
                continue
            if held.attached and held.segment >= 0 and key.area.view.block[key.block].state == _C.SD_BLOCK_ATTACHED:
                ends.append(_open(key, held, holders))
            else:
                broker.withdraw(key)
        for end in ends:
            _check(end)
        for end in ends:
            _ask(end)
        abi.lib.sd_py_membarrier()
        for end in ends:
            _producer_back(end, reason)
        _await(ends, broker)
        for end in ends:
            _consumer_back(end, pids, reason)
    finally:
        for end in ends:
            end.close()


def _open(key: Key, held: Held, holders: Mapping[str, tuple[int, int]]) -> End:
    if held.far:
        raise RemoteError("a connection to another host cannot be given back")
    _, inode = key.area.sockets.get(key.block, (0, -1))
    holder = holders.get(f"socket:[{inode}]", (held.origin.tid, held.origin.fd))
    try:
        fd = taken(*holder, held.origin.cookie)
    except OSError:
        raise NotNow(key, "nobody has its socket") from None
    memory = mmap.mmap(held.segment, os.fstat(held.segment).st_size)
    return End(key, held, socket.socket(fileno=fd), memory, abi.ffi.from_buffer(memory))


def _check(end: End) -> None:
    """Is it in a state from which there is a way back?"""
    block = end.block
    modes = {int(block.rx_mode), int(block.tx_mode)}
    if modes - {_C.SD_MODE_TCP, _C.SD_MODE_RING, _C.SD_MODE_BACK}:
        raise NotNow(end.key, "it is about to change its way")
    if int(block.tx_mode) == _C.SD_MODE_RING:
        unread = (int(end.tx.tail) - int(end.tx.head)) % (1 << 64)
        if unread > min(end.ring_bytes, room(end.sock)):
            raise NotNow(end.key, "its peer has too much to read")


def _ask(end: End) -> None:
    """[S5], or [S6] where the program has not come to the ring."""
    if end.rx.sw_back or is_over(end.sock):
        return
    if int(end.block.rx_mode) == _C.SD_MODE_RING:
        end.rx.go_back = _C.SD_GO_BACK_RESEND
    elif int(end.block.rx_mode) == _C.SD_MODE_TCP and end.rx.sw_ring:
        end.rx.go_back = _C.SD_GO_BACK_UNREAD


def _producer_back(end: End, reason: int) -> None:
    block, sock = end.block, end.sock
    if int(block.tx_mode) != _C.SD_MODE_RING:
        block.tx_mode = _C.SD_MODE_BACK
        return
    position = stream_position(sock, connected=end.connected)
    if position >= 0:
        recalled: Any = abi.ffi.new("struct sd_recalled *")
        recalled.ring_bytes, recalled.tcp_pos = end.ring_bytes, position
        abi.lib.sd_back_begin(end.words, end.held.side, recalled)
        if recalled.ring:
            _ring(end)
        _send_again(end, recalled)
    sock.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, int(block.opt_saved) & NODELAY)
    sock.setsockopt(socket.SOL_TCP, socket.TCP_CORK, int(bool(int(block.opt_saved) & CORK)))
    block.tx_mode = _C.SD_MODE_BACK
    _count(end, reason)


def _ring(end: End) -> None:
    """Unless it has shut its side: it may be gone, and would answer with a reset."""
    try:
        if not is_over(end.sock):
            end.sock.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return
    except OSError:
        pass  # unread bytes are in front: it is awake by them
    end.tx.bell = 0


def _send_again(end: End, recalled: Any) -> None:
    sock, side, ring = end.sock, end.held.side, end.ring_bytes
    position = stream_position(sock, connected=end.connected)
    if position < 0:
        return  # reset meanwhile: the kernel will say so
    if recalled.broken:
        sock.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError(errno.ECONNABORTED, "a doorbell stands where the program's bytes should")
    if not recalled.bytes:
        if end.tx.go_back == _C.SD_GO_BACK_TAKEN:
            abi.lib.sd_recall_end(end.words, side, position)
        else:
            abi.lib.sd_back_end(end.words, side, position)
        return
    start = _C.SD_SEG_HDR_BYTES + side * ring
    first = min(recalled.bytes, ring - recalled.at)
    try:
        send_all(sock, end.memory[start + recalled.at : start + recalled.at + first])
        send_all(sock, end.memory[start : start + recalled.bytes - first])
    except OSError:
        sock.shutdown(socket.SHUT_RDWR)  # nobody can tell what has arrived
        raise
    abi.lib.sd_recall_end(end.words, side, position)


def _count(end: End, reason: int) -> None:
    for process in end.key.area.slots():
        if process.pid == int(end.block.owner_pid):
            process.moved_back[reason] += 1


def _await(ends: list[End], broker: Broker) -> None:
    """Until every direction that ours read is back."""
    asked = (_C.SD_GO_BACK_RESEND, _C.SD_GO_BACK_UNREAD, _C.SD_GO_BACK_TAKEN)
    waiting = [end for end in ends if int(end.rx.go_back) in asked]
    begin = time.monotonic()
    nudged = False
    while waiting := [end for end in waiting if not end.rx.sw_back and not is_over(end.sock)]:
        now = time.monotonic() - begin
        if now > _NUDGE_S and not nudged:
            nudged = True
            for end in waiting:
                broker.nudge(end.key)
        if now > _PEER_S and all(abi.lib.sd_recall_drop(end.words, end.held.side) for end in waiting):
            raise NotNow(waiting[0].key, "its other end does not answer")
        broker.events()
        time.sleep(_LOOK_S)


def _consumer_back(end: End, pids: Collection[int], reason: int) -> None:
    block = end.block
    unread = int(block.rx_mode) == _C.SD_MODE_TCP and end.rx.go_back == _C.SD_GO_BACK_TAKEN and end.rx.sw_back  # [S6]
    if not unread and put_back(end, pids):
        block.given |= _C.SD_GIVEN_AWAY  # never to move up again: refill.py
    elif int(block.rx_mode) == _C.SD_MODE_RING:
        _eat(end)
    if block.rcvlowat:
        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, int(block.rcvlowat))
    block.rx_mode = _C.SD_MODE_BACK
    block.reason = reason


def _eat(end: End) -> None:
    """Doorbells in front of the program's next byte; none comes where the stream is over, and the ring read."""
    deadline = time.monotonic() + _PEER_S
    while end.rx.sw_back:
        left = int(end.rx.sw_back) - 1 - read_so_far(end.sock)
        if left <= 0:
            return
        try:
            end.sock.recv(min(left, _BELLS_MAX), socket.MSG_DONTWAIT)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise NotNow(end.key, "a doorbell is missing") from None
            time.sleep(_LOOK_S)
