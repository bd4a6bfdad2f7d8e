# SPDX-License-Identifier: Apache-2.0
"""A supervisor that comes after one that was killed: it goes on with what the keeper has kept (vault.py).

It knows the areas, the connections on shared memory and the programs that are just being started; processes it finds
again when they call, and offers that were open are made anew by the library.  What it does not know: the counters of
areas that nobody has any more, and who has started whom.  So its report says that it is incomplete, and
where something may be denied, everything is that could be.
"""

from __future__ import annotations

import contextlib
import errno
import syslog

from sdtrace import procfs
from sdtrace.control import Record
from sdtrace.enforce import PERFORMED
from sdtrace.hypercalls import Hypercalls
from sdtrace.injector import Injector
from sdtrace.notify import X86_64, Listener, Notification
from sdtrace.offers import Broker
from sdtrace.processes import Process, Processes
from sdtrace.syscalls import ARCH_PRCTL
from sdtrace.vault import Vault


def inherit(records: list[Record], vault: Vault, hypercalls: Hypercalls, broker: Broker, processes: Processes) -> None:
    """Take over what the keeper has kept."""
    left = vault.inherit(records)
    for area in left.areas:
        hypercalls.inherit(area)
    for key, held in left.segments:
        broker.inherit(key, held)
    for pid, carry, areas in left.carries:
        with contextlib.suppress(OSError):  # gone
            process = processes.find(procfs.status(pid))
            process.carry, process.areas = carry, {area.index: area for area in areas}
    syslog.syslog(syslog.LOG_WARNING, f"the supervisor before us was killed; taken over: {len(left.areas)} areas, "
                  f"{len(left.segments)} connections, {len(left.carries)} programs that start")


def answer_forgetful(injector: Injector, listener: Listener, notif: Notification, status: procfs.Status,
                     process: Process) -> None:
    """In a strict tree, as the keeper does it alone, but for programs that get connections from the one before them."""
    if notif.nr == ARCH_PRCTL and injector.inject_for(listener, notif, status, process):
        return
    if notif.nr in PERFORMED or notif.arch != X86_64:
        listener.reply(notif, -errno.EACCES)
    else:
        listener.let_through(notif)
