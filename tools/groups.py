# SPDX-License-Identifier: Apache-2.0
"""Process groups of our own making, and their end.

Whoever ends a group after its leader was reaped must not do so by number: that may be somebody else's by then.  A pidfd
stays the leader's.  Where the kernel cannot signal a group by one (before Linux 6.9), a group whose leader was reaped
is left alone.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import weakref
from contextlib import suppress
from typing import Any, Final

_PIDFD_SIGNAL_PROCESS_GROUP: Final = 4
"""linux/pidfd.h, Linux 6.9."""


class Leader(subprocess.Popen[bytes]):
    """A command in a session, and so in a group, of its own."""

    def __init__(self, argv: Any, **options: Any) -> None:
        super().__init__(argv, start_new_session=True, **options)
        self._pidfd = os.pidfd_open(self.pid)
        self._close = weakref.finalize(self, os.close, self._pidfd)

    def kill_group(self) -> None:
        """Kill what is left of the group. To be called once it is not needed any more; again does nothing."""
        if self._close.alive:
            with suppress(ProcessLookupError, PermissionError):
                self._kill()
            self._close()

    def _kill(self) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL, None, _PIDFD_SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if self.returncode is None:  # nobody else reaps it
                os.killpg(self.pid, signal.SIGKILL)
