# SPDX-License-Identifier: Apache-2.0
"""Connections whose link to the other host is lost: their rings' bytes go by their own TCP ([H4] of sock/far.h).

The supervisor is the consumer of its program's ring then.  A mark goes first, which tells the other program from which
byte on the stream follows; what that has of them already, it drops.  The program goes on writing into the ring, and
nudges; once it finds the ring empty it sends by TCP itself.

What the kernel takes at once is sent where it was asked for.  The rest is a thread's, which holds a duplicate of the
socket as long as the ring has bytes: a program may close, or be killed, and its bytes arrive all the same.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket
import threading
import time
from contextlib import suppress

from sdlib import abi
from sdtrace.held import Held, Key, Origin
from sdtrace.segments import find_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_SWITCHING_S: Final = 2.0
"""A program that was about to move to the ring when it was told to leave has done so by then."""
_END_S: Final = 60.0


class Pump:
    """One connection."""

    def __init__(self, key: Key, held: Held, why: int) -> None:
        """OSError: no memory for it. `why`: enum sd_reason."""
        size = os.fstat(held.segment).st_size
        self.key, self._origin, self._side = key, held.origin, held.side
        self._ring_bytes = (size - abi.const.SD_SEG_HDR_BYTES) // 2
        self._memory = mmap.mmap(held.segment, size)
        self._copy: abi.CData = abi.ffi.from_buffer(self._memory)
        self._mark = bytearray()
        self._begun = self._ended = self.over = False
        self.sock: socket.socket | None = None
        self.since = time.monotonic()
        abi.lib.sd_pump_leave(self._copy, self._side, why)

    def run(self) -> bool:
        """Send what the kernel takes. True: more later, when `sock` can be written."""
        if self.over or not self._ready():
            return False
        full = self._send()
        if not full:
            self._let_go()
        return full

    def _ready(self) -> bool:
        if not self._begun:
            mark: Any = abi.ffi.new("struct sd_mark *")
            how = abi.lib.sd_pump_begin(self._copy, self._side, mark)
            if how == abi.lib.SD_PUMP_LATER:
                return False
            self._begun = True
            self.over = how in (abi.lib.SD_PUMP_DONE, abi.lib.SD_PUMP_UNKNOWN)
            if how == abi.lib.SD_PUMP_MARK:
                self._mark += bytes(abi.ffi.buffer(mark))
            if how == abi.lib.SD_PUMP_UNKNOWN:
                self._break()
        if self.sock is None and not self.over:
            self.sock = _socket(self.key, self._origin)
        return not self.over

    @property
    def waits(self) -> bool:
        """For the program, which may be about to switch."""
        return not self._begun and time.monotonic() < self.since + _SWITCHING_S

    def _send(self) -> bool:
        """True: the kernel is full."""
        fd = -1 if self.sock is None else self.sock.fileno()
        while True:
            try:
                while self._mark and self.sock is not None:
                    del self._mark[: self.sock.send(self._mark, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)]
            except BlockingIOError:
                return True
            except OSError:
                self._mark.clear()
            abi.lib.sd_pump_go(self._copy)
            step = abi.lib.sd_pump_step(self._copy, self._ring_bytes, self._side, fd)
            if step == abi.lib.SD_PUMP_LATER:
                return True
            if step == abi.lib.SD_PUMP_BROKEN:
                self.over = True
                self._break()
                return False
            self._end()
            if not abi.lib.sd_pump_arm(self._copy, self._side) or self._ended:
                return False

    def _end(self) -> None:
        """The program has shut its direction behind the bytes of the ring."""
        if not self._ended and abi.lib.sd_pump_ended(self._copy, self._side):
            self._ended = True
            if self.sock is not None:
                with suppress(OSError):
                    self.sock.shutdown(socket.SHUT_WR)

    def _break(self) -> None:
        sock = self.sock or _socket(self.key, self._origin)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            self.sock = None

    def _let_go(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def close(self) -> None:
        """Forget it, as it is."""
        self.over = True
        self._let_go()
        abi.ffi.release(self._copy)
        self._memory.close()


def _socket(key: Key, origin: Origin) -> socket.socket | None:
    try:
        return socket.socket(fileno=find_socket(key, origin))
    except OSError:
        return None


class Pumps:
    """Of one supervisor. `_changed` is held around each use of a pump; who fills the kernel first starts the thread."""

    def __init__(self) -> None:
        self._pumps: dict[Key, Pump] = {}
        self._full: set[Pump] = set()
        self._over: set[Pump] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wake = -1

    def begin(self, key: Key, held: Held, why: int) -> int:
        """Its monitor has given it up (`enum sd_reason`); 0 or an errno."""
        try:
            self._pumps[key] = Pump(key, held, why)
        except OSError as error:
            return error.errno or errno.ENOMEM
        self.run(key)
        return 0

    def run(self, key: Key) -> None:
        """There may be bytes."""
        pump = self._pumps.get(key)
        if pump is not None:
            with self._changed:
                self._run(pump)

    def _run(self, pump: Pump) -> None:
        if not pump.run():
            self._full.discard(pump)
            if pump in self._over:
                self._over.discard(pump)
                pump.close()
            self._changed.notify_all()
        elif pump not in self._full:
            self._full.add(pump)
            self._start()
            os.eventfd_write(self._wake, 1)

    def tick(self) -> bool:
        """True: call again soon."""
        waiting = [key for key, pump in self._pumps.items() if pump.waits]
        for key in waiting:
            self.run(key)
        return bool(waiting)

    def forget(self, key: Key) -> None:
        """The program has closed it."""
        pump = self._pumps.pop(key, None)
        if pump is not None:
            with self._changed:
                self._over.add(pump)
                self._run(pump)

    def close(self) -> None:
        """Nobody is there any more but what the kernel has not taken yet."""
        for key in list(self._pumps):
            self.forget(key)
        with self._changed:
            self._changed.wait_for(lambda: not self._full, _END_S)

    # ---------------------------------------------------------------------- the thread

    def _start(self) -> None:
        if self._thread is None:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._thread = threading.Thread(target=self._serve, name="pump", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            with self._changed:
                full = {pump.sock.fileno(): pump for pump in self._full if pump.sock is not None}
            for fd in full:
                poll.register(fd, select.POLLOUT)
            ready = poll.poll()
            with self._changed:
                for fd, _ in ready:
                    if fd == self._wake:
                        with suppress(BlockingIOError):
                            os.eventfd_read(fd)
                    elif full[fd] in self._full:
                        self._run(full[fd])
