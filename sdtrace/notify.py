# SPDX-License-Identifier: Apache-2.0
"""Seccomp notifications by the kernel's own requests (linux/seccomp.h).

pyseccomp's notification calls know no ADDFD and lose errno, hence the ioctls.  In all of them ENOENT means that the
task is gone or its call was interrupted: the notification no longer exists, and there is nobody to tell.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
import syslog
import time
from collections import deque

from sdlib import abi
from sdlib.records import dataclass, replace
from sdtrace import procfs
from sdtrace.keepsake import NOTIF_BYTES, TAKEN_MAX, Keepsake
from sdtrace.ptrace import ERESTARTNOINTR, ERESTARTSYS
from sdtrace.syscalls import ACCEPT, ACCEPT4, CONNECT, SENDMMSG, SENDMSG, SENDTO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sdtrace.control import Control

RECV: Final = 0xC0502100
SEND: Final = 0xC0182101
ID_VALID: Final = 0x40082102
ADDFD: Final = 0x40182103
SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_FLAG_CONTINUE: Final = 1
_ADDFD_SEND: Final = 2

X86_64: Final = 0xC000003E
"""AUDIT_ARCH_X86_64, linux/audit.h."""

_NOTIF: Final = struct.Struct("=QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_ADD: Final = struct.Struct("=QIIII")
_LOOK_S: Final = 1.0
"""So often at most is looked if the keeper receives what comes."""
_SOON_S: Final = 0.05
_ENDED_BY_HANDLERS: Final = frozenset({CONNECT, ACCEPT, ACCEPT4, SENDTO, SENDMSG, SENDMMSG})
"""Natively, too."""


@dataclass(frozen=True, slots=True)
class Notification:
    """struct seccomp_notif: a task waits for our answer."""

    id: int
    tid: int
    nr: int
    ip: int
    args: tuple[int, ...]
    arch: int = X86_64
    routed: bool = False
    """A call that the library has sent to us instead of making it (SD_HC_PERFORM): it cannot be let through."""

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Notification:
        """From the kernel's bytes."""
        notif_id, tid, _, nr, arch, ip, *args = _NOTIF.unpack_from(data)
        return cls(notif_id, tid, nr, ip, tuple(args), arch)

    def as_routed(self) -> Notification:
        """The call that a request of the library (SD_HC_PERFORM) is about."""
        return replace(self, nr=self.args[0] >> 32, args=(*self.args[1:5], 0, 0), routed=True)

    @property
    def performed(self) -> bool:
        """Is it, or does it ask for, a call that handlers without SA_RESTART end natively, too?"""
        routed = self.nr == abi.const.SD_HC_NR and self.args[0] & 0xFFFFFFFF == abi.const.SD_HC_PERFORM
        return routed or self.nr in _ENDED_BY_HANDLERS

    def int_arg(self, index: int) -> int:
        """Argument `index` as the C int that the kernel makes of it."""
        value = self.args[index] & 0xFFFFFFFF
        return value - (1 << 32) if value & 0x80000000 else value


_unanswered: Final[dict[int, tuple[Listener, Notification, int]]] = {}
"""By thread, with the answer for let_stop(). What we have taken keeps its thread waiting whatever signals
come (WAIT_KILLABLE_RECV, launch/filter.c), and no tracer can stop it, we neither."""


def waits(tid: int) -> bool:
    """Does this thread wait for our answer, in what looks like an uninterruptible sleep?"""
    take_all()
    return tid in _unanswered


def let_stop(tid: int) -> bool:
    """Only for a thread whose stop has been asked for (PTRACE_INTERRUPT): it comes to that, and makes its call anew.

    False: it does not wait; it may a moment later, if its call was received just then. The answer is one that only the
    code of signals understands, through which it goes then.
    """
    take_all()
    found = _unanswered.get(tid)
    if found is None:
        return False
    listener, notif, answer = found
    return listener.reply(notif, answer)


def has_limit(tid: int) -> None:
    """The call of this thread waits for so long at most: every handler ends such a one, with SA_RESTART, too."""
    found = _unanswered.get(tid)
    if found is not None:
        _unanswered[tid] = *found[:2], -errno.EINTR


def _is_stopped(pid: int) -> bool:
    """By a signal, or by a debugger."""
    with contextlib.suppress(OSError):
        return procfs.thread_states(pid).get(pid) in ("T", "t")
    return False


class Intake:
    """All notifications come in here, and wait for their turn without any signal ending the wait of their calls.

    The keeper receives them, into the page that it shares with us, and says so: socket() natively never says EINTR, and
    whatever we are doing, a process that does nothing else is there at once. If it dies, we receive them by ourselves.
    So we do while it is stopped, but one at a time, in the place of the one in work: the others are the keeper's to
    count, and it may go on at any moment.
    """

    def __init__(self, keepsake: Keepsake, other: int, control: Control, *, served: bool) -> None:
        """`other` is a descriptor that is waited for, too. `served`: by the keeper."""
        self._keepsake = keepsake
        self._control = control
        self._served = served
        self._poll = select.poll()
        self._poll.register(other, select.POLLIN)
        if served:
            self._poll.register(control.fileno(), select.POLLIN)
        self._listeners: dict[int, Listener] = {}
        self._waiting: deque[tuple[Listener, Notification]] = deque()
        self._seen = self._begun = 0
        self._arrivals = select.poll()
        self._looked = time.monotonic()
        self._stopped = False
        """The keeper was, when we looked last."""

    def add(self, listener: Listener) -> None:
        """Also from there."""
        self._listeners[listener.fd] = listener
        self._poll.register(listener.fd, 0 if self._served and not self._stopped else select.POLLIN)
        self._arrivals.register(listener.fd, select.POLLIN)

    def remove(self, listener: Listener) -> None:
        """Nobody is left there."""
        del self._listeners[listener.fd]
        self._poll.unregister(listener.fd)
        self._arrivals.unregister(listener.fd)

    def wait(self, seconds: float) -> list[int]:
        """For whatever happens; what has come is then had from next().

        Returns what else has happened to which descriptors: `other`, and listeners under which nobody is left.
        """
        self._note()
        rest = []
        for fd, events in self._poll.poll(0 if self._waiting else seconds * 1000):
            if fd == self._control.fileno():
                self._hear()
            elif fd not in self._listeners or events & ~select.POLLIN:
                rest.append(fd)
        self.take()
        if self._served and not self._stopped and time.monotonic() - self._looked > _LOOK_S:
            self._look()
        return rest

    def _arrived(self) -> list[int]:
        """Listeners with a notification that nobody has received."""
        return [fd for fd, events in self._arrivals.poll(0) if events & select.POLLIN]

    def _look(self) -> None:
        self._looked = time.monotonic()
        if self._has_room() and self._arrived():
            self._keeper_is(stopped=_is_stopped(os.getppid()))

    def _keeper_is(self, *, stopped: bool) -> None:
        if stopped is not self._stopped:
            what = "is stopped: its work is done here" if stopped else "is back"
            syslog.syslog(syslog.LOG_WARNING, f"the keeper {what}")
        self._stopped = stopped
        self._listen(stopped)

    def _listen(self, wanted: bool) -> None:
        for fd in self._listeners:
            self._poll.modify(fd, select.POLLIN if wanted else 0)

    def instead(self) -> tuple[Listener, Notification] | None:
        """The next of those that a keeper does not receive which is stopped. It is the one in work now."""
        if not self._stopped or self._waiting:
            return None
        if not _is_stopped(os.getppid()):
            self._keeper_is(stopped=False)
            return None
        for fd in self._arrived():
            buffer = self._keepsake.in_work()
            if self._listeners[fd].receive_soon(buffer):
                notif = Notification.parse(buffer)
                self._listeners[fd].owes(notif)
                return self._listeners[fd], notif
        return None

    def _hear(self) -> None:
        """From the keeper: that there is something, or nothing any more."""
        self._served = self._control.hear()
        if self._served:
            return
        self._poll.unregister(self._control.fileno())
        if self._has_room() and any(self._keepsake.notification(self._keepsake.received)[:NOTIF_BYTES]):
            self._keepsake.one_more()  # it had not come to counting that
        self._stopped = False
        self._listen(True)

    def take(self) -> None:
        """All that there are, as far as there is room."""
        while not self._served and self._has_room() and self._receive():
            pass
        self._note()

    def _has_room(self) -> bool:
        return self._keepsake.received - self._begun < TAKEN_MAX

    def _receive(self) -> bool:
        ready = [fd for fd, events in self._poll.poll(0) if events & select.POLLIN and fd in self._listeners]
        if not ready or not self._listeners[ready[0]].receive(self._keepsake.notification(self._keepsake.received)):
            return False
        self._keepsake.one_more()
        return True

    def _note(self) -> None:
        """What has been received."""
        while self._listeners and self._seen < self._keepsake.received:
            notif = Notification.parse(self._keepsake.notification(self._seen))
            listeners = list(self._listeners.values())  # the numbers are random, so only one knows it
            listener = next((each for each in listeners[1:] if each.valid(notif)), listeners[0])
            listener.owes(notif)
            self._waiting.append((listener, notif))
            self._seen += 1

    def __len__(self) -> int:
        """How many have come and were not begun with."""
        return len(self._waiting)

    def next(self) -> tuple[Listener, Notification]:
        """Whose turn it is."""
        taken = self._waiting.popleft()
        self._keepsake.begin_with(self._begun)
        self._begun += 1
        return taken


intakes: Final[list[Intake]] = []
"""The supervisor's, once it serves."""


def take_all() -> None:
    """See Intake.take."""
    for intake in intakes:
        intake.take()


class Listener:
    """The descriptor on which notifications arrive."""

    def __init__(self, fd: int, keepsake: Keepsake) -> None:
        """Use descriptor `fd`; received notifications are noted in `keepsake`."""
        self.fd = fd
        self._keepsake = keepsake
        with contextlib.suppress(OSError):  # Linux 6.6: asker and answerer take turns on one CPU, no idle one is woken
            fcntl.ioctl(fd, SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self, buffer: memoryview) -> bool:
        """The next notification; False when its task went away meanwhile.

        The buffer is all zeroes, and so long that no copy of it is passed (keepsake.py).
        """
        try:
            fcntl.ioctl(self.fd, RECV, buffer, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return False
            raise
        return True

    def receive_soon(self, buffer: memoryview) -> bool:
        """The same where somebody else may have it already: False after a moment."""
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, _SOON_S)
        try:
            return self.receive(buffer)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def owes(self, notif: Notification) -> None:
        """It has been taken, by us or for us."""
        _unanswered[notif.tid] = self, notif, ERESTARTSYS if notif.performed else ERESTARTNOINTR

    @staticmethod
    def _answered(notif: Notification) -> None:
        owed = _unanswered.get(notif.tid)
        if owed is not None and owed[1].id == notif.id:
            _unanswered.pop(notif.tid, None)

    def _respond(self, notif: Notification, value: int, error: int, flags: int) -> bool:
        self._answered(notif)
        try:
            fcntl.ioctl(self.fd, SEND, _RESPONSE.pack(notif.id, value, error, flags))
        except OSError as failure:
            if failure.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True

    def let_through(self, notif: Notification) -> bool:
        """Have the kernel run the call as if there were no filter. False: there was nobody left to answer."""
        return self._respond(notif, 0, 0, _FLAG_CONTINUE)

    def reply(self, notif: Notification, value: int) -> bool:
        """Return `value` from the call; -errno for an error."""
        return self._respond(notif, max(value, 0), min(value, 0), 0)

    def add_fd(self, notif: Notification, fd: int, *, reply: bool = False, cloexec: bool = True) -> int:
        """Give the task a duplicate of `fd`, close-on-exec unless told; with `reply` its number is the call's result.

        Returns the number in the task. OSError: ENOENT (task gone), EMFILE (its limit), ...
        """
        flags = _ADDFD_SEND if reply else 0
        request = bytearray(_ADD.pack(notif.id, flags, fd, 0, os.O_CLOEXEC if cloexec else 0))
        added: int = fcntl.ioctl(self.fd, ADDFD, request, True)  # a mutable buffer: else Python hides the result
        if reply:
            self._answered(notif)
        return added

    def valid(self, notif: Notification) -> bool:
        """Does the task still wait? What was read about it before this call is then about it and no other."""
        try:
            fcntl.ioctl(self.fd, ID_VALID, struct.pack("=Q", notif.id))
        except OSError:
            return False
        return True
