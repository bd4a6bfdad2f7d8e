# SPDX-License-Identifier: Apache-2.0
"""All connections of stopped programs go back to TCP, and what is unread in their rings with them.

In each direction the producer does what [S2] and [S5] of sdlib/src/ring/switch.h say: ours, which stand still, by us;
the other end's by itself, when the doorbell wakes it, or by its supervisor, which the monitor asks.  So for every end:

1. the direction that it reads: "send again what I have not read" (RESEND);
2. the direction that it writes: back, sending again what its own peer has asked for, with a doorbell in front;
3. wait until the direction that it reads is back; then the bytes in the kernel's socket are all there are, but for
   doorbells, which are eaten by position.

Whatever cannot be done now is found before 1 as far as possible (`NotNow`), and may be tried again: a direction that is
back stays so, and the library can live with that.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import struct
import termios
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sdlib import abi
from sdtrace import procfs
from sdtrace.held import Held, Key
from sdtrace.offers import Broker
from sdtrace.ptrace import RemoteError
from sdtrace.recall import CORK, NODELAY, send_all, stream_position
from sdtrace.segments import taken

WARNED_S: Final = 0.1
"""Sends that are about to go to a ring for the first time are over then."""
_PEER_S: Final = 1.5
_NUDGE_S: Final = 0.005
_LOOK_S: Final = 0.001
_TCP_INFO, _RECEIVED_AT, _ESTABLISHED, _CLOSE_WAIT = 11, 128, 1, 8
_BELLS_MAX: Final = 64
_C: Final = abi.const


class NotNow(RemoteError):
    """This connection cannot be moved at this moment."""

    def __init__(self, key: Key, why: str) -> None:
        super().__init__(f"connection {key.block}: {why}", transient=True)


@dataclass
class _End:
    """One of ours."""

    key: Key
    held: Held
    sock: socket.socket
    memory: mmap.mmap
    words: Any

    @property
    def block(self) -> Any:
        return self.key.area.view.block[self.key.block]

    @property
    def segment(self) -> Any:
        return abi.ffi.cast("struct sd_seg *", self.words)

    @property
    def tx(self) -> Any:
        return self.segment.dir[self.held.side]

    @property
    def rx(self) -> Any:
        return self.segment.dir[1 - self.held.side]

    @property
    def ring_bytes(self) -> int:
        return (len(self.memory) - _C.SD_SEG_HDR_BYTES) // 2

    @property
    def connected(self) -> bool:
        return bool(self.block.role == 1)

    def close(self) -> None:
        abi.ffi.release(self.words)
        self.memory.close()
        self.sock.close()


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


def give_back(broker: Broker, pids: Iterable[int], only: Key | None = None,
              reason: int = _C.SD_REASON_detached) -> None:
    """All that these processes have, or `only` one; RemoteError, NotNow. All threads stand still, outside of any call.

    `reason` is what the report counts (`enum sd_reason`).
    """
    ends: list[_End] = []
    holders = {name: (pid, fd) for pid in pids for fd, name in procfs.files(pid).items() if name.startswith("socket:")}
    try:
        for key, held in broker.held():
            if only is not None and key != only:
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
            _consumer_back(end, reason)
    finally:
        for end in ends:
            end.close()


def _open(key: Key, held: Held, holders: Mapping[str, tuple[int, int]]) -> _End:
    if held.far:
        raise RemoteError("a connection to another host cannot be given back")
    _, inode = key.area.sockets.get(key.block, (0, -1))
    holder = holders.get(f"socket:[{inode}]", (held.origin.tid, held.origin.fd))
    try:
        fd = taken(*holder, held.origin.cookie)
    except OSError:
        raise NotNow(key, "nobody has its socket") from None
    memory = mmap.mmap(held.segment, os.fstat(held.segment).st_size)
    return _End(key, held, socket.socket(fileno=fd), memory, abi.ffi.from_buffer(memory))


def _check(end: _End) -> None:
    """Is it in a state from which there is a way back?"""
    block, rx = end.block, end.rx
    modes = {int(block.rx_mode), int(block.tx_mode)}
    if modes - {_C.SD_MODE_TCP, _C.SD_MODE_RING, _C.SD_MODE_BACK}:
        raise NotNow(end.key, "it is about to change its way")
    if int(block.rcvlowat) > 1:
        raise NotNow(end.key, "SO_RCVLOWAT is set")
    if int(block.rx_mode) == _C.SD_MODE_TCP and rx.sw_ring:
        raise NotNow(end.key, "the program has not read what came before the ring")
    drained = int(rx.head) == int(rx.tail) == int(rx.sw_back_at)
    if int(block.rx_mode) == _C.SD_MODE_RING and rx.sw_back and not drained:
        raise NotNow(end.key, "the program has not read what is in the ring")
    if int(block.tx_mode) == _C.SD_MODE_RING:
        unread = (int(end.tx.tail) - int(end.tx.head)) % (1 << 64)
        room = end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2 - _queued(end.sock, termios.TIOCOUTQ)
        if unread > min(end.ring_bytes, room):
            raise NotNow(end.key, "its peer has too much to read")


def _ask(end: _End) -> None:
    if int(end.block.rx_mode) == _C.SD_MODE_RING and not end.rx.sw_back:
        end.rx.go_back = _C.SD_GO_BACK_RESEND


def _producer_back(end: _End, reason: int) -> None:
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


def _ring(end: _End) -> None:
    """Unless it has shut its side: it may be gone, and would answer with a reset."""
    try:
        if not _over(end.sock):
            end.sock.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return
    except OSError:
        pass  # unread bytes are in front: it is awake by them
    end.tx.bell = 0


def _send_again(end: _End, recalled: Any) -> None:
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


def _count(end: _End, reason: int) -> None:
    for process in end.key.area.slots():
        if process.pid == int(end.block.owner_pid):
            process.moved_back[reason] += 1


def _await(ends: list[_End], broker: Broker) -> None:
    """Until every direction that ours read is back."""
    waiting = [end for end in ends if int(end.block.rx_mode) == _C.SD_MODE_RING]
    begin = time.monotonic()
    nudged = False
    while waiting := [end for end in waiting if not end.rx.sw_back and not _over(end.sock)]:
        now = time.monotonic() - begin
        if now > _NUDGE_S and not nudged:
            nudged = True
            for end in waiting:
                broker.nudge(end.key)
        if now > _PEER_S and all(abi.lib.sd_recall_drop(end.words, end.held.side) for end in waiting):
            raise NotNow(waiting[0].key, "its other end does not answer")
        broker.events()
        time.sleep(_LOOK_S)


def _over(sock: socket.socket) -> bool:
    """The peer sends nothing any more."""
    return sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 256)[0] != _ESTABLISHED


def _consumer_back(end: _End, reason: int) -> None:
    block = end.block
    if int(block.rx_mode) == _C.SD_MODE_RING:
        deadline = time.monotonic() + _PEER_S
        while (left := _bells(end)) > 0:
            try:
                end.sock.recv(min(left, _BELLS_MAX), socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NotNow(end.key, "a doorbell is missing") from None
                time.sleep(_LOOK_S)
    block.rx_mode = _C.SD_MODE_BACK
    block.reason = reason


def _bells(end: _End) -> int:
    """Bytes in front of the program's next one."""
    if not end.rx.sw_back:
        if int(end.rx.head) != int(end.rx.tail) and abi.lib.sd_recall_drop(end.words, end.held.side):
            raise NotNow(end.key, "its other end has gone, and the program has not read what is in the ring")
        return 0  # over: nothing of the program's comes any more
    info = end.sock.getsockopt(socket.SOL_TCP, _TCP_INFO, 256)
    received = struct.unpack_from("=Q", info, _RECEIVED_AT)[0] - (info[0] not in (_ESTABLISHED, 4, 5))
    read: int = received - _queued(end.sock, termios.FIONREAD)
    return int(end.rx.sw_back) - 1 - read


def _queued(sock: socket.socket, what: int) -> int:
    value: int = struct.unpack("=i", fcntl.ioctl(sock.fileno(), what, bytes(4)))[0]
    return value
