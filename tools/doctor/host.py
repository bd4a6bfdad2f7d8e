# SPDX-License-Identifier: Apache-2.0
"""What is around us: containers, limits, devices."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

from sdlib.wire import trees
from sdtrace import procfs
from tools.doctor.findings import Finding, ok, stops, without

_FILES_ENOUGH: Final = 4096
_FILES_LEAST: Final = 256


def container() -> Finding:
    """In one? Then the two ends of a connection must be able to see each other."""
    marks = [mark for mark in ("/.dockerenv", "/run/.containerenv") if os.path.exists(mark)]
    with suppress(OSError):
        words = Path("/proc/1/environ").read_bytes().split(b"\0")
        marks += [word.decode(errors="replace") for word in words if word.startswith(b"container=")]
    if not marks:
        return ok("container", "none")
    return without("container", f"in one ({', '.join(marks)}): connections to programs outside of it are only "
                   "accelerated through a monitor that both reach, within one network namespace",
                   "mount the host's /run/socksdirect into the container and run sdmonitor --system on the host")


def outer_filter() -> Finding:
    """A seccomp filter that holds for us already; that of another sdrun among them."""
    filters = procfs.status(os.getpid()).filters
    if not filters:
        return ok("seccomp filter", "none is inherited")
    return without("seccomp filter", f"{filters} inherited: under another sdrun this one steps aside; a container's "
                   "filter may forbid what is tried above")


def files() -> Finding:
    """Descriptors of the supervisor and the monitor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _FILES_ENOUGH:
        return ok("open files", f"at most {'any number' if hard == resource.RLIM_INFINITY else hard}")
    text = f"at most {hard}: about {max(hard - 64, 0) // 2} connections can be accelerated at a time"
    mend = "ulimit -Hn 65536   (as root, or LimitNOFILE= of the unit)"
    return without("open files", text, mend) if hard >= _FILES_LEAST else stops("open files", text, mend)


def cpus() -> Finding:
    """One CPU: a receiver cannot spin while the sender runs."""
    count = len(os.sched_getaffinity(0))
    if count == 1:
        return without("CPUs", "one: every message costs a switch between processes, so less is won")
    return ok("CPUs", f"{count}")


def rdma() -> Finding:
    """Devices for connections between hosts."""
    with suppress(OSError):
        devices = sorted(os.listdir("/sys/class/infiniband"))
        if devices:
            return ok("RDMA", f"devices: {', '.join(devices)}")
    return without("RDMA", "no device: connections to other hosts stay on TCP",
                   "modprobe rdma_rxe && rdma link add rxe0 type rxe netdev IFACE   (software RDMA, to try)")


def programs() -> Finding:
    """What runs under sdrun already, and whether its supervisors have had trouble."""
    name, documents = "programs", trees.ask_all()
    errors = sum(document["supervisor"]["errors"] for document in documents)
    text = f"{sum(len(document['processes']) for document in documents)} processes under {len(documents)} sdrun"
    if errors:
        return without(name, f"{text}, whose supervisors had {errors} errors", "look at them: journalctl -t sdrun")
    return ok(name, text)


CHECKS: Final = (container, outer_filter, files, cpus, rdma, programs)
