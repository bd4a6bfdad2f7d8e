# SPDX-License-Identifier: Apache-2.0
"""When a process gets the library: at its first use of TCP, or at a new program's birth if connections survived exec,
or if all of its children have to name their tracer (launch/yama.c).

Whatever goes wrong leaves the program as it is, with the reason noted; most reasons last, so it is not tried again.

A signal with a handler ends the wait for us, and the call is made and notified anew. Where the next signal comes sooner
than we do (a profiler's timer; Go's preemption, every 10 ms, on a busy machine), no call would ever be the place.
Such a program gets the library whatever it does, as at_once() does it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from policies import Settings
from sdtrace import cli, inject, procfs
from sdtrace.image import Image
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Listener, Notification
from sdtrace.offers import Broker
from sdtrace.opening import AttachError
from sdtrace.processes import Process, Processes, Program
from sdtrace.ptrace import RemoteError
from sdtrace.syscalls import ARCH_PRCTL, SOCKET_NUMBERS
from sdtrace.vault import Vault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sdtrace.trace.drain import Drain

_STOPS_MAX: Final = 5
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


class Injector:
    """Decides where to inject, and does it."""

    def __init__(self, options: cli.Options, image: Image | str, keepsake: Keepsake, processes: Processes,
                 broker: Broker, settings: Callable[[str, int], Settings], filters: int,
                 drain: Drain | None, vault: Vault) -> None:
        """`image` is text when there is none: why every process stays on the kernel."""
        self._options = options
        self._image = image
        self._keepsake = keepsake
        self._processes = processes
        self._broker = broker
        self._settings = settings
        self._filters = filters
        self._drain = drain
        self._vault = vault
        self._tracer = os.getppid() if options.named else 0
        self._gate = range(0)
        if not isinstance(image, str):
            self._gate = range(image.symbols["sd_gate_start"], image.symbols["sd_gate_end"] + 1)

    def inject_for(self, listener: Listener, notif: Notification, status: procfs.Status, process: Process) -> bool:
        """Inject if this call is the place for it; True: the call comes again."""
        injected = False
        if notif.nr == ARCH_PRCTL:
            injected = self._birth(listener, notif, status, process)
        elif notif.nr in SOCKET_NUMBERS and notif.ip not in self._gate:
            injected = self._first_use(listener, notif, status, process)
        return injected

    def missed(self, notif: Notification, status: procfs.Status) -> None:
        """A call whose wait a signal had ended before we looked. (Or the task has ended.)"""
        first = status.tgid == self._options.root_pid and status.filters == self._filters
        if SOCKET_NUMBERS.get(notif.nr) != "socket" or notif.ip in self._gate or not (first or self._is_ours(status)):
            return
        process = self._processes.find(status)
        if not process.program.refused and not process.program.injected:
            self._try(None, notif, status, process, [])

    def at_once(self, pid: int) -> str:
        """A process that is about to be sent a connection, whatever it does; "" or why not. Others: nothing is done."""
        from sdtrace.attach import equip

        try:
            status = procfs.status(pid)
            if isinstance(self._image, str) or self._options.no_accel or not self._is_ours(status):
                return ""
            process = self._processes.find(status)
            settings = self._settings(process.program.exe, status.uid)
            if process.given_back or process.program.refused or not settings.accelerate:
                return process.program.reason or "policy"
            inject.check(status, process.pidfd, self._image, self._filters)
            process.program.stops += 1
            equip(pid, self._image, self._keepsake, patch=settings.patch,
                  trace=self._drain.what if self._drain is not None else 0)
        except (RemoteError, AttachError) as error:
            return str(error)
        except OSError as error:
            return os.strerror(error.errno or 0)
        self.has_library(process.program)
        self._broker.prepare()
        return ""

    def again(self, process: Process, status: procfs.Status) -> None:
        """A process that was given back (rejoining.py), whatever it does. RemoteError, AttachError."""
        from sdtrace.attach import equip

        settings = self._settings(procfs.exe(process.pid), status.uid)
        if isinstance(self._image, str) or not settings.accelerate:
            raise RemoteError(self._image if isinstance(self._image, str) else "policy")
        inject.check(status, process.pidfd, self._image, self._filters, birth=True)
        equip(process.pid, self._image, self._keepsake, patch=settings.patch,
              trace=self._drain.what if self._drain is not None else 0)
        if self._drain is not None:
            self._drain.new_image(process.ns_pid)
        self._processes.take_back(process)
        self.has_library(process.program)
        self._broker.prepare()

    def _is_ours(self, status: procfs.Status) -> bool:
        """One whose start we have seen, or a child of such."""
        if status.filters != self._filters:
            return False
        pid = status.tgid
        while pid > 1 and self._processes.known(pid) is None:
            pid = procfs.status(pid).ppid
        return pid > 1

    @staticmethod
    def has_library(program: Program) -> None:
        """Only the library knows the number; a forked child shows up like this."""
        program.injected, program.reason = True, ""

    def _birth(self, listener: Listener, notif: Notification, status: procfs.Status, process: Process) -> bool:
        self._processes.new_image(process)
        if self._drain is not None:
            self._drain.new_image(process.ns_pid)
        carry, process.carry = process.carry, None
        if not carry:
            process.areas = {}
            return bool(self._tracer) and self._try(listener, notif, status, process, [])
        done = self._try(listener, notif, status, process, carry)
        self._vault.carry(process)  # now, not before: a successor would do it again
        return done

    def _first_use(self, listener: Listener, notif: Notification, status: procfs.Status, process: Process) -> bool:
        if process.program.refused or (SOCKET_NUMBERS[notif.nr] != "socket" and not _is_tcp(notif)):
            return False
        return self._try(listener, notif, status, process, [])

    def _put_in(self, listener: Listener | None, notif: Notification, process: Process, carry: list[tuple[int, int]],
                settings: Settings) -> None:
        """In the notified call, or, if that is over, anywhere."""
        assert not isinstance(self._image, str)
        trace = self._drain.what if self._drain is not None else 0
        try:
            if listener is None:
                raise inject.Interrupted
            inject.inject(process.pid, notif, listener, self._image, self._keepsake, carry, patch=settings.patch,
                          trace=trace, tracer=self._tracer)
        except inject.Interrupted:
            if carry:
                raise
            from sdtrace.attach import equip

            try:
                equip(process.pid, self._image, self._keepsake, patch=settings.patch, trace=trace, tracer=self._tracer)
            except AttachError as error:
                raise RemoteError(str(error), transient=True) from error

    def _try(self, listener: Listener | None, notif: Notification, status: procfs.Status, process: Process,
             carry: list[tuple[int, int]]) -> bool:
        """Inject. True: the call will come again, inside the library. False, with the reason noted: let it through.

        Without `listener` the call's wait is over already.
        """
        program = process.program
        settings = self._settings(program.exe, status.uid)
        try:
            if isinstance(self._image, str):
                raise RemoteError(self._image)
            if process.given_back:
                raise RemoteError("detached")
            if not settings.accelerate and not any(process.on_ring(block) for _, block in carry):
                raise RemoteError("policy")
            inject.check(status, process.pidfd, self._image, self._filters, birth=bool(carry))
            program.stops += 1
            self._put_in(listener, notif, process, carry, settings)
        except RemoteError as error:
            program.refused = not error.transient or program.stops >= _STOPS_MAX
            if not program.injected:
                program.reason = error.reason
            return False
        except OSError as error:  # the process ends under our hands
            program.reason = f"process is going: {os.strerror(error.errno or 0)}"
            return False
        except Exception:
            program.refused, program.reason = True, "internal-error"  # counted by the caller; once is enough
            raise
        self.has_library(program)
        if not self._options.no_accel:
            self._broker.prepare()
        program.areas.extend(area for area in process.areas.values() if area not in program.areas)
        return True


def _is_tcp(notif: Notification) -> bool:
    """Is the first argument a TCP socket? Others (activation by unix sockets, datagrams) need no library."""
    try:
        pidfd = procfs.pidfd_open_thread(notif.tid)
        try:
            fd = procfs.get_fd(pidfd, notif.int_arg(0))
        finally:
            os.close(pidfd)
        with socket.socket(fileno=fd) as sock:
            return sock.family in _INTERNET and sock.proto == socket.IPPROTO_TCP
    except OSError:
        return False
