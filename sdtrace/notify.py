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
import struct

from sdlib.records import dataclass, replace
from sdtrace.keepsake import Keepsake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

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

    def int_arg(self, index: int) -> int:
        """Argument `index` as the C int that the kernel makes of it."""
        value = self.args[index] & 0xFFFFFFFF
        return value - (1 << 32) if value & 0x80000000 else value


class Listener:
    """The descriptor on which notifications arrive."""

    def __init__(self, fd: int, keepsake: Keepsake) -> None:
        """Use descriptor `fd`; received notifications are noted in `keepsake`."""
        self.fd = fd
        self._keepsake = keepsake
        with contextlib.suppress(OSError):  # Linux 6.6: asker and answerer take turns on one CPU, no idle one is woken
            fcntl.ioctl(fd, SET_FLAGS, struct.pack("=Q", _SYNC_WAKE_UP))

    def receive(self) -> Notification | None:
        """The next notification; None when its task went away meanwhile."""
        self._keepsake.forget_notification()
        try:
            fcntl.ioctl(self.fd, RECV, self._keepsake.page, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return Notification.parse(memoryview(self._keepsake.page))

    def _respond(self, notif_id: int, value: int, error: int, flags: int) -> bool:
        try:
            fcntl.ioctl(self.fd, SEND, _RESPONSE.pack(notif_id, value, error, flags))
        except OSError as failure:
            if failure.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True

    def let_through(self, notif: Notification) -> bool:
        """Have the kernel run the call as if there were no filter. False: there was nobody left to answer."""
        return self._respond(notif.id, 0, 0, _FLAG_CONTINUE)

    def reply(self, notif: Notification, value: int) -> bool:
        """Return `value` from the call; -errno for an error."""
        return self._respond(notif.id, max(value, 0), min(value, 0), 0)

    def add_fd(self, notif: Notification, fd: int, *, reply: bool = False, cloexec: bool = True) -> int:
        """Give the task a duplicate of `fd`, close-on-exec unless told; with `reply` its number is the call's result.

        Returns the number in the task. OSError: ENOENT (task gone), EMFILE (its limit), ...
        """
        flags = _ADDFD_SEND if reply else 0
        request = bytearray(_ADD.pack(notif.id, flags, fd, 0, os.O_CLOEXEC if cloexec else 0))
        added: int = fcntl.ioctl(self.fd, ADDFD, request, True)  # a mutable buffer: else Python hides the result
        return added

    def valid(self, notif: Notification) -> bool:
        """Does the task still wait? What was read about it before this call is then about it and no other."""
        try:
            fcntl.ioctl(self.fd, ID_VALID, struct.pack("=Q", notif.id))
        except OSError:
            return False
        return True
