# SPDX-License-Identifier: Apache-2.0
"""Calls that may sleep, performed for a program beside the supervisor's loop.

Each has a thread of its own, and is noted in the keepsake while it lasts: should we die, the keeper answers it. A
program that is interrupted by a signal leaves its notification (the kernel gives it EINTR or restarts the call); the
thread is then woken by a signal, and ends. Where denials began after the start, the filter is one under which signals
wait for our answer (launch/filter.c): who has one is stopped for a moment, and so taken out of the wait. The signal
that wakes us is only let in where a thread sleeps for its program: a
signal that interrupts ADDFD with SEND makes the kernel answer 0 without a descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sdtrace import procfs
from sdtrace.halted import Halted
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Listener, Notification
from sdtrace.ptrace import RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

POLL_S: Final = 0.05
"""How soon a thread ends after its program has lost interest."""
_STACK_BYTES: Final = 256 * 1024
_WAKE: Final = signal.SIGUSR1
_CLONE_FS: Final = 0x200
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Workers:
    """All sleeping calls of one supervisor."""

    def __init__(self, keepsake: Keepsake) -> None:
        """Only from the main thread: the signal that wakes sleepers is set up here."""
        self._keepsake = keepsake
        self._lock = threading.Lock()
        self._running: dict[int, tuple[threading.Thread, Listener, Notification]] = {}
        signal.signal(_WAKE, lambda *_: None)
        signal.siginterrupt(_WAKE, True)
        threading.stack_size(_STACK_BYTES)

    def __bool__(self) -> bool:
        """Does any call sleep?"""
        return bool(self._running)

    def run(self, listener: Listener, notif: Notification, work: Callable[[], int | None],
            too_many: Callable[[Listener, Notification], object] | None = None) -> None:
        """Have `work` return the call's value (None: it has answered), in a thread; `work` ends soon after a signal.

        `too_many` answers where no thread can be had, else it is -EAGAIN.
        """
        refuse = too_many or (lambda listener, notif: listener.reply(notif, -errno.EAGAIN))
        if not self._keepsake.add_outstanding(notif.id):
            refuse(listener, notif)
            return
        thread = threading.Thread(target=self._one, args=(listener, notif, work), daemon=True)
        with self._lock:
            self._running[notif.id] = thread, listener, notif
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._done(notif)
            refuse(listener, notif)

    def _one(self, listener: Listener, notif: Notification, work: Callable[[], int | None]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {_WAKE})
        try:
            try:
                value = work()
            except OSError as error:
                value = -(error.errno or errno.EIO)
            if value is not None and value != -errno.EINTR:
                with suppress(OSError):
                    listener.reply(notif, value)
        finally:
            self._done(notif)

    def _done(self, notif: Notification) -> None:
        with self._lock:
            self._running.pop(notif.id, None)
        self._keepsake.drop_outstanding(notif.id)

    def sweep(self) -> None:
        """Wake the threads whose program was interrupted; called every POLL_S while there are any."""
        with self._lock:
            running = list(self._running.values())
        for thread, listener, notif in running:
            if not listener.valid(notif) and thread.ident is not None:
                with suppress(OSError):
                    signal.pthread_kill(thread.ident, _WAKE)
            elif notif.routed:
                _let_signals_in(notif.tid)


def _let_signals_in(tid: int) -> None:
    with suppress(OSError, RemoteError):
        if procfs.signalled(tid):
            with Halted(procfs.thread_group(tid)):
                pass  # on its way out it is where signals are looked at


@contextmanager
def wakeable() -> Iterator[None]:
    """Around a call that may sleep. A signal that came just before is not lost: `sweep` sends another."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {_WAKE})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {_WAKE})


def with_filesystem_of(tid: int, umask: int, action: Callable[[], int]) -> int:
    """Run `action` in this thread with the program's directory, root and umask: for names of unix sockets.

    Only for a thread that ends afterwards. OSError when its root is another one and we may not enter it.
    """
    if _libc.unshare(_CLONE_FS) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    root, here = os.stat(f"/proc/{tid}/root/"), os.stat("/")
    cwd = os.open(f"/proc/{tid}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if (root.st_dev, root.st_ino) != (here.st_dev, here.st_ino):
            os.chroot(f"/proc/{tid}/root")
        os.fchdir(cwd)
    finally:
        os.close(cwd)
    os.umask(umask)
    return action()
