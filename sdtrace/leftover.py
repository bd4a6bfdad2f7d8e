# SPDX-License-Identifier: Apache-2.0
"""What a peer has left in the ring, and cannot send again by TCP, goes into the kernel's queue (refill.py).

The peer has gone, or has shut its sending side, or has gone back to TCP itself with bytes in the ring unread; what it
has sent by TCP since then stands behind them. So all that the kernel has is read, and comes again in its order:

    TCP in front of the ring [S1] | the ring | TCP behind the way back [S2]

without the doorbells in between. A peer that lives is stopped meanwhile, with all its threads, whatever tree it is of,
and until all it had sent has arrived.
"""

from __future__ import annotations

import contextlib
import os
import socket
import syslog
import termios
import time
from collections.abc import Collection, Iterator

from sdlib import abi
from sdtrace import kin, procfs
from sdtrace.ends import CLOSE, FIN_WAIT1, FIN_WAIT2, End, NotNow, is_over, queued, read_so_far, state
from sdtrace.halted import Halted
from sdtrace.opposite import Opposite, opposite
from sdtrace.refill import End as Behind
from sdtrace.refill import Impossible, check, refill
from sdtrace.strangers import have_stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_ARRIVE_S: Final = 1.0
_PIECE: Final = 1 << 20
_ECONNRESET: Final = 104
_LATCH_FIN: Final = 1 << 31  # sock/sock.h
_QUIET_S: Final = 0.2
"""A delayed ACK has come by then."""
_C: Final = abi.const


def put_back(end: End, ours: Collection[int]) -> bool:
    """Have all of it in the kernel's queue; False: there was nothing to be done. NotNow.

    `ours`: the processes that stand still already.
    """
    if not _is_left(end):
        return False
    if end.rx.go_back == _C.SD_GO_BACK_TAKEN and not end.rx.sw_back:
        raise NotNow(end.key, "its other end has gone while it sent what was in the ring")
    if int(end.rx.prod_hint) & _C.SD_HINT_URGENT:
        raise NotNow(end.key, "there may be urgent data")
    abi.lib.sd_recall_drop(end.words, end.held.side)
    try:
        check(end.sock)
    except Impossible as error:
        if not _bytes_left(end):
            return False  # whoever reads on is told of an end instead of an error
        raise NotNow(end.key, str(error.strerror)) from None
    _put_back(end, ours)
    return True


def _is_left(end: End) -> bool:
    """Whoever reads TCP alone would miss something of what the peer has sent, which it will not send again."""
    return (bool(end.rx.sw_back) or is_over(end.sock)) and (_bytes_left(end) or _error(end) > 0)


def _bytes_left(end: End) -> bool:
    """Also doorbells behind bytes in front of the ring, which cannot be taken out from there."""
    mode, rx = int(end.block.rx_mode), end.rx
    if mode == _C.SD_MODE_TCP:
        return bool(rx.sw_ring)
    return mode == _C.SD_MODE_RING and _ring_left(end)


def _put_back(end: End, ours: Collection[int]) -> None:
    with _silent(end, ours) as lives:
        ring = _ring(end)
        before, behind = _kernel(end, ours if lives else ())  # from here on nobody but we has these; nor its FIN
        shut = bool(end.block.tx_shut) or state(end.sock) in (FIN_WAIT1, FIN_WAIT2)
        error, over = _error(end), is_over(end.sock)
        told = Behind.OPEN if not over else Behind.RESET if error else Behind.OVER
        try:
            refill(end.sock, before + ring + behind, end.held.origin.local, end.held.origin.peer, told, shut=shut,
                   lives=lives)
        except OSError as failed:
            syslog.syslog(syslog.LOG_ERR, f"a connection had to be reset: {failed}")
            error = 0
            end.block.rx_err = _ECONNRESET
        abi.lib.sd_left_end(end.words, end.held.side)
        if error:
            end.block.rx_err = 0  # by the kernel


def _recalled(end: End) -> Any:
    recalled: Any = abi.ffi.new("struct sd_recalled *")
    recalled.ring_bytes = end.ring_bytes
    return recalled


def _ring_left(end: End) -> bool:
    rx = end.rx
    return int(rx.head) != int(rx.tail) or 0 < (int(rx.held) - int(rx.tail)) % (1 << 64) <= end.ring_bytes


def _ring(end: End) -> bytes:
    recalled = _recalled(end)
    if not abi.lib.sd_left_begin(end.words, end.held.side, recalled):
        raise NotNow(end.key, "its ring is broken")
    start = _C.SD_SEG_HDR_BYTES + (1 - end.held.side) * end.ring_bytes
    first = min(recalled.bytes, end.ring_bytes - recalled.at)
    memory = end.memory
    return memory[start + recalled.at : start + recalled.at + first] + memory[start : start + recalled.bytes - first]


def _error(end: End) -> int:
    """What the program has not been told yet of how the stream has ended; 0: in an orderly way."""
    if int(end.block.latched) & _LATCH_FIN:
        return int(end.block.rx_err)
    reset = _ECONNRESET if state(end.sock) == CLOSE else 0
    return int(abi.lib.sd_left_error(end.words, end.held.side, reset)) if is_over(end.sock) else 0


def _kernel(end: End, ours: Collection[int]) -> tuple[bytes, bytes]:
    """All that the kernel has: the program's bytes in front of the ring, and those behind it."""
    rx, closed = end.rx, state(end.sock) == CLOSE
    at = -1 if closed else read_so_far(end.sock)
    data = _drain(end.sock)
    if ours:
        data += _arriving(end, ours)
    front = int(rx.sw_ring) - 1
    back = int(rx.sw_back) - 1 if rx.sw_back else 1 << 64
    if closed and int(end.block.rx_mode) != _C.SD_MODE_RING:
        data, at = data[: len(data) - bool(rx.bell)], front - len(data) + bool(rx.bell)
    elif closed:
        bells = 2 if rx.bell % _C.SD_BELL_MORE == _C.SD_BELL_AGAIN else int(bool(rx.bell))
        at = back - min(len(data), bells) if rx.sw_back else front
    return data[: max(front - at, 0)], data[max(back - at, 0) :]


def _drain(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(BlockingIOError, ConnectionError):
        while piece := sock.recv(_PIECE, socket.MSG_DONTWAIT):
            data += piece
    return data


@contextlib.contextmanager
def _silent(end: End, ours: Collection[int]) -> Iterator[bool]:
    """The peer sends nothing new. True: it lives."""
    there = _other(end, ours)
    with contextlib.ExitStack() as stack:
        if there.inode:
            pids = set(kin.holders(there.inode))
            if not pids:
                raise NotNow(end.key, "nobody seems to have its other end")
            for pid in pids - set(ours):
                stack.enter_context(_Peer(pid))
        yield bool(there.inode)


class _Peer(Halted):
    """Of any tree: a thread of it may wait for its own supervisor, which in turn waits for us."""

    def _call(self, tid: int) -> None:
        super()._call(tid)
        if procfs.thread_states(self.pid).get(tid) == "D":
            have_stopped(tid)


def _other(end: End, ours: Collection[int]) -> Opposite:
    origin = end.held.origin
    there = opposite(end.sock, origin.local, origin.peer, next(iter(ours), os.getpid()))
    if there is None:
        raise NotNow(end.key, "the kernel does not tell whether its other end is there")
    return there


def _arriving(end: End, ours: Collection[int]) -> bytes:
    """What it has sent, and what of ours it has room for, is on its way: then its kernel has nothing more to say."""
    begin, data = time.monotonic(), b""
    while (there := _other(end, ours)).unsent and time.monotonic() < begin + _ARRIVE_S:
        time.sleep(0.001)
        data += _drain(end.sock)
    while there.inode and queued(end.sock, termios.TIOCOUTQ) and time.monotonic() < begin + _QUIET_S:
        time.sleep(0.001)
    return data + _drain(end.sock)
