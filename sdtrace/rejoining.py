# SPDX-License-Identifier: Apache-2.0
"""A part of a tree that was given back is taken into it again: `sdrun --attach PID`, where others have gone on.

The kernel gives a program no second listener, so it cannot be another supervisor's.  The new sdrun asks the one that
has it (`ask_back`), and leaves; options of its own would be of no effect, and are refused.

The one that is asked does to each process what an attach does, but for filter and listener, which are there: the image
is renewed, and the library takes over what the program has by now.  What has gone back to TCP stays there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import syslog
import traceback
from collections.abc import Callable, Iterator
from typing import Final

from sdtrace import cli, procfs
from sdtrace.attach import why_not
from sdtrace.attempts import PATIENCE_S, Attempts
from sdtrace.detach import below
from sdtrace.detaching import supervisor_of
from sdtrace.image import Image
from sdtrace.inject import is_given_back, library_present
from sdtrace.opening import AttachError, TakenBack
from sdtrace.processes import Process, Processes
from sdtrace.ptrace import RemoteError
from sdtrace.requests import ATTACH, ATTACH_ALONE, DONE

_TIMEOUT_S: Final = 30.0


class Rejoining(Attempts):
    """One request."""

    def __init__(self, image: Image, processes: Processes, filters: int, pid: int, *, children: bool,
                 again: Callable[[Process, procfs.Status], None], answer: Callable[[str], None]) -> None:
        """`again` gives one of them the library; RemoteError, AttachError. `answer` is told why it failed, or DONE and
        what of it stays as it is."""
        super().__init__(answer)
        self._image, self._processes, self._filters = image, processes, filters
        self._pid, self._children, self._again = pid, children, again
        self._told: dict[int, str] = {}

    def attempt(self) -> str | None:
        """See Attempts."""
        while new := [pid for pid in self._members() if pid not in self._told]:
            for pid in new:
                why = self._one(pid)
                if why is None:
                    return None  # whoever it has started comes after it
                self._told[pid] = why
        if self._told[self._pid]:
            self.give_up(self._told[self._pid])
            return None
        left = (f"not its child {pid}: {why}" for pid, why in self._told.items() if why and procfs.running(pid))
        return DONE + "; ".join(left)

    def _members(self) -> Iterator[int]:
        yield self._pid
        if self._children and not self._told.get(self._pid):
            yield from below(self._pid, self._filters)

    def _one(self, pid: int) -> str | None:
        """Why it stays as it is, "" if it does not; None: later."""
        try:
            status = procfs.status(pid)
            process = self._processes.find(status)
            if status.filters < self._filters or not self._is_out(process):
                if pid == self._pid:
                    raise AttachError(f"it is under sdrun already (supervisor {os.getpid()})")
                return ""
            self._again(process, status)
        except RemoteError as error:
            late = self.tried_s > PATIENCE_S
            return why_not(error) if late or not error.transient else None
        except AttachError as error:
            return str(error)
        except OSError as error:
            return os.strerror(error.errno or 0)
        except Exception as error:
            syslog.syslog(syslog.LOG_ERR, traceback.format_exc())
            return f"internal error: {error!r}"
        return ""

    def _is_out(self, process: Process) -> bool:
        """Was it given back? A supervisor before us may have done that, or a process that was have forked it."""
        with contextlib.suppress(OSError):
            if library_present(process.pid, self._image):
                return is_given_back(process.pid, self._image)
        return process.given_back


def ask_back(options: cli.Options, filters: int) -> None:
    """If a supervisor lives that has it: TakenBack, when that has taken it back, or AttachError."""
    pid = options.root_pid
    try:
        if procfs.status(pid).filters < filters:
            return
    except OSError:
        return
    path = supervisor_of(pid)
    if path is None:
        return
    if options.told_at_the_end or options.policy or options.sets or options.rules or options.no_accel:
        raise AttachError("it is under sdrun already; if it was given back, that sdrun takes it again with its own "
                          "options: attach it without any")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(path)
            sock.send((ATTACH if options.attach == "family" else ATTACH_ALONE) + b" %d" % pid)
            text = sock.recv(4096).decode(errors="replace")
        except OSError as error:
            raise AttachError(f"its supervisor does not answer: {error}") from None
    if not text.startswith(DONE):
        raise AttachError(text.strip() or "its supervisor has ended meanwhile")
    raise TakenBack(text.removeprefix(DONE).strip())
