# SPDX-License-Identifier: Apache-2.0
"""What the library asks of us (sd_abi.h, enum sd_hypercall).

The kernel vouches for who asks; everything else in a request is the word of a process that may be hostile.  A wrong
value is answered with -EINVAL, a failure of ours with the errno, and in both cases the library stays on TCP.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Callable

from policies import Settings, judge
from sdlib import abi
from sdtrace import kin, procfs
from sdtrace.areas import Area
from sdtrace.memory import read_memory
from sdtrace.notify import Listener, Notification
from sdtrace.offers import Broker, Key, Origin
from sdtrace.processes import Process
from sdtrace.segments import cookie_of
from sdtrace.vault import Vault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sdtrace.trace.drain import Drain

_CARRY: Final = struct.Struct("=iI")
_INVALID: Final = -errno.EINVAL
_INTERNET: Final = (int(socket.AF_INET), int(socket.AF_INET6))
_CONNECTED: Final = 1  # sd_block.role


class Hypercalls:
    """Answers for all processes of one supervisor."""

    def __init__(self, broker: Broker, settings: Callable[[str, int], Settings], *, accelerate: bool,
                 reporting_pid: int, leaving: Callable[[int, Process], None], drain: Drain | None = None,
                 vault: Vault | None = None) -> None:
        """`settings` gives the policy's values for a program by its path and user.

        `leaving` is told when the process `reporting_pid` (0: none) is about to end, with its exit status.
        """
        self._broker = broker
        self.reporting_pid = reporting_pid
        self._leaving = leaving
        self._settings = settings
        self._accelerate = accelerate
        self.drain = drain
        self._vault = vault or Vault(None)
        self.areas: list[Area] = []
        self.taken: Callable[[int], bool] = lambda _inode: False
        """Has somebody else this socket, who could not see its ring? See strangers.py."""
        self.has_library: Callable[[int], bool] = lambda _pid: False
        """Of any process."""
        self.equip: Callable[[Listener, Notification, list[int], Callable[[], int]], object] = \
            lambda listener, notif, _pids, who: listener.reply(notif, who())
        """Give these processes the library if they are under sdrun, and answer then."""
        self.scattered: Callable[[Listener, Notification, int], object] = \
            lambda listener, notif, _inode: listener.reply(notif, -errno.ENOSYS)
        """Answers when nobody offers this socket any more."""
        self.share: Callable[[Listener, Notification, int, int], object] = \
            lambda listener, notif, _pid, _fd: listener.reply(notif, -errno.ENOSYS)
        """Answers when all others who have this set have given it to the kernel."""
        self._perform = False
        self._handlers: dict[int, Callable[[Listener, Notification, Process], int | None]] = {
            abi.const.SD_HC_AREA: self._area,
            abi.const.SD_HC_OFFER: self._offer,
            abi.const.SD_HC_ATTACH: self._attach,
            abi.const.SD_HC_EXEC: self._exec,
            abi.const.SD_HC_WITHDRAW: self._withdraw,
            abi.const.SD_HC_LEAVE: self._leave,
            abi.const.SD_HC_NUDGE: self._nudge,
            abi.const.SD_HC_TRACE: self._trace,
            abi.const.SD_HC_KIN: self._kin,
            abi.const.SD_HC_SCATTER: self._scatter,
            abi.const.SD_HC_SHARED: self._shared,
        }

    def handle(self, listener: Listener, notif: Notification, process: Process) -> None:
        """Answer one request."""
        handler = self._handlers.get(notif.args[0])
        self.no_exec(process)
        try:
            result = _INVALID if handler is None else handler(listener, notif, process)
        except OSError as error:
            result = -(error.errno or errno.EIO)
        if result is not None:
            listener.reply(notif, result)

    # ------------------------------------------------------------------ areas

    def _known_area(self, process: Process, index: int) -> Area | None:
        """Area `index` of the process, if it has one. A forked child has those of its parent: its memory map tells."""
        if index not in process.areas:
            mapped = procfs.memfds_mapped(process.pid)
            for area in self.areas:
                if area.inode in mapped:
                    process.areas.setdefault(area.index, area)
        return process.areas.get(index)

    def _area(self, listener: Listener, notif: Notification, process: Process) -> int | None:
        index = notif.args[1]
        if index >= abi.const.SD_MAX_AREAS:
            return -errno.ENOSPC
        area = self._known_area(process, index)
        if area is None:
            exe, uid = process.program.exe, _uid(process)
            area = Area.make(index, exe, uid, self._settings(exe, uid), accelerate=self._accelerate)
            if self._perform:
                area.perform()
            area.host_pids = process.pid == process.ns_pid
            if process.pid == self.reporting_pid:
                area.view.cfg.root_pid = process.ns_pid
            process.areas[index] = area
            self.areas.append(area)
            self._vault.area(area)
        if area not in process.program.areas:
            process.program.areas.append(area)
        return _give(listener, notif, area.fd)

    def inherit(self, area: Area) -> None:
        """An area of the supervisor before us."""
        area.configure(self._settings(area.exe, area.uid), accelerate=self._accelerate)
        area.offer_again()
        self.areas.append(area)

    def _key(self, process: Process, block_id: int) -> Key | None:
        """The block that an id names; None for ids that are out of range, stale, or another family's."""
        generation, index, block = block_id >> 32, block_id >> 16 & 0xFFFF, block_id & 0xFFFF
        if block >= abi.const.SD_AREA_BLOCKS:
            return None
        area = self._known_area(process, index)
        if area is None or area.block_generation(block) != generation:
            return None
        return Key(area, block, generation)

    # ------------------------------------------------------------ connections

    def _offer(self, _listener: Listener, notif: Notification, process: Process) -> int:
        key = self._key(process, notif.args[2])
        fd = notif.int_arg(1)
        if key is None or fd < 0:
            return _INVALID
        if key.area.block_state(key.block) not in (abi.const.SD_BLOCK_TCP, abi.const.SD_BLOCK_OFFERED):
            return _INVALID
        sock = _take_socket(notif.tid, fd, process)
        try:
            about = os.fstat(sock)
            key.area.sockets[key.block] = (key.generation, about.st_ino)
            origin = _origin(process, key, notif.tid, fd, sock) if stat.S_ISSOCK(about.st_mode) else None
            if not self._alone(key, process, about.st_ino):
                result, reason = abi.const.SD_OFFER_LATER, 0
            elif process.given_back:
                result, reason = abi.const.SD_OFFER_REFUSED, abi.const.SD_REASON_detached
            elif self.taken(about.st_ino):
                result, reason = abi.const.SD_OFFER_REFUSED, abi.const.SD_REASON_passed
            elif origin is None:  # it has ended meanwhile: a library offers nothing else
                result, reason = abi.const.SD_OFFER_REFUSED, abi.const.SD_REASON_not_switched
            elif self.stays(origin):
                result, reason = abi.const.SD_OFFER_REFUSED, abi.const.SD_REASON_policy
            else:
                result, reason = self._broker.offer(key, sock, origin)
        finally:
            os.close(sock)
        if reason:
            key.area.view.block[key.block].reason = reason
        return result

    @staticmethod
    def _alone(key: Key, process: Process, inode: int) -> bool:
        """A connection that came in a message may be held by somebody who could not see its ring."""
        given = int(key.area.view.block[key.block].given) & abi.const.SD_GIVEN_CAME
        return not given or kin.alone(process.pid, inode)

    def stays(self, origin: Origin) -> bool:
        """Does a rule keep this connection on TCP? Who connected is the library's word: nobody else gains by a lie."""
        settings = self._settings(origin.exe, origin.uid)
        if not settings.rules:
            return False  # what holds for all its connections is in the area's `accel`
        import ipaddress  # few policies have rules

        host, port = origin.peer
        packed = ipaddress.ip_address(host.partition("%")[0]).packed
        if origin.direction == "out":
            verdict = judge(settings, "out", "tcp", packed, port)
        else:
            verdict = judge(settings, "in", "tcp", packed, origin.local[1])
        origin.carriers = tuple(verdict.transport)
        return verdict.action != "accelerate" or not origin.carriers

    def reconfigure(self) -> None:
        """Policies have changed."""
        for area in self.areas:
            area.configure(self._settings(area.exe, area.uid), accelerate=self._accelerate)

    def begin_performing(self) -> None:
        """A policy has begun to deny something: calls that may be denied are sent to us from now on."""
        self._perform = True
        for area in self.areas:
            area.perform()

    def _attach(self, listener: Listener, notif: Notification, process: Process) -> int | None:
        key = self._key(process, notif.args[2])
        if key is None:
            return _INVALID
        segment = self._broker.attach(key)
        if segment is None:
            return -errno.ENOENT
        try:
            return _give(listener, notif, segment)
        finally:
            os.close(segment)

    @staticmethod
    def is_wakeup(notif: Notification) -> bool:
        """A nudge that says no more than that there is news: whoever it is from, it does no harm."""
        return notif.nr == abi.const.SD_HC_NR and notif.args[0] == abi.const.SD_HC_NUDGE and notif.args[2] == 0

    def _nudge(self, _listener: Listener, notif: Notification, process: Process) -> int:
        key = self._key(process, notif.args[1])
        return _INVALID if key is None else self._broker.nudge(key, notif.args[2])

    def _withdraw(self, _listener: Listener, notif: Notification, process: Process) -> int:
        key = self._key(process, notif.args[1])
        if key is None:
            return _INVALID
        if int(key.area.view.block[key.block].given) & ~abi.const.SD_GIVEN_CAME == abi.const.SD_GIVEN_ONCE:
            self._broker.forsake(key)
        self._broker.withdraw(key, closing=notif.args[2] == 1)
        return 0

    # -------------------------------------------------------------------- end

    def _leave(self, _listener: Listener, notif: Notification, process: Process) -> int:
        if process.pid != self.reporting_pid:
            return _INVALID
        self._leaving(notif.int_arg(1), process)
        return 0

    # --------------------------------------------------------------- messages

    def _kin(self, listener: Listener, notif: Notification, process: Process) -> int | None:
        """Asked before a connection is sent in a message, and when one has come."""
        fd, area = notif.int_arg(1), self._known_area(process, 0)
        if fd < 0 or area is None:
            return _INVALID
        sock = _take_socket(notif.tid, fd)
        try:
            inode = os.fstat(sock).st_ino
        finally:
            os.close(sock)
        who, without = kin.who_receives(inode, area, self.has_library)
        if without and notif.args[2] and self._accelerate:
            self.equip(listener, notif, without, lambda: kin.who_receives(inode, area, self.has_library)[0])
            return None
        return who

    def _scatter(self, listener: Listener, notif: Notification, _process: Process) -> int | None:
        """A connection is sent to a second program; which may come in any of the user's trees."""
        fd = notif.int_arg(1)
        if fd < 0:
            return _INVALID
        sock = _take_socket(notif.tid, fd)
        try:
            about = os.fstat(sock)
        finally:
            os.close(sock)
        if not stat.S_ISSOCK(about.st_mode):
            return _INVALID
        self.scattered(listener, notif, about.st_ino)
        return None

    def _shared(self, listener: Listener, notif: Notification, process: Process) -> int | None:
        """An epoll set that forks share is used by a second one of them."""
        from sdtrace import givesets  # few share one

        fd = notif.int_arg(1)
        if fd < 0:
            return _INVALID
        if notif.args[2]:
            self.share(listener, notif, process.pid, fd)
            return None
        users = givesets.users(process.pid, fd, {area.inode for area in self.areas})
        return int(all(pid == process.pid for pid, _ in users))

    # ------------------------------------------------------------------ trace

    def _trace(self, listener: Listener, notif: Notification, process: Process) -> int | None:
        """Each process that asks gets its own; its forks find it mapped."""
        if self.drain is None or notif.args[1] >= abi.const.SD_MAX_TRACES:
            return _INVALID
        fd = self.drain.memory(process.ns_pid, process.program.exe, host_pids=process.pid == process.ns_pid)
        return _give(listener, notif, fd)

    # ------------------------------------------------------------------- exec

    def no_exec(self, process: Process) -> None:
        """It goes on here, whatever it asks for: the exec that it has announced has failed."""
        if process.carry is not None:
            process.carry = None
            self._vault.drop_carry(process)

    def _exec(self, _listener: Listener, notif: Notification, process: Process) -> int:
        address, count = notif.args[1], notif.args[2]
        if count > abi.const.SD_CARRY_MAX:
            return _INVALID
        data = read_memory(notif.tid, address, count * _CARRY.size) if count else b""
        carry = [(fd, block) for fd, block in _CARRY.iter_unpack(data)]
        self._known_area(process, 0)  # while its memory map still tells
        for fd, block in carry:
            if fd >= 0 and block in (abi.const.SD_CARRY_EPOLL, abi.const.SD_CARRY_AREAS):
                continue
            area = self._known_area(process, block >> 16)
            if fd < 0 or area is None or block & 0xFFFF >= abi.const.SD_AREA_BLOCKS:
                return _INVALID
        process.carry = carry
        self._vault.carry(process)  # before it goes on
        return 0


def _origin(process: Process, key: Key, tid: int, fd: int, duplicate: int) -> Origin | None:
    """Where an offered connection comes from; `duplicate` is a socket. None when it is none of TCP/IP."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, duplicate)  # else Python asks what it is, each time
    try:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) not in _INTERNET:
            return None
        local, peer, cookie = sock.getsockname()[:2], sock.getpeername()[:2], cookie_of(sock)
    except OSError:
        return None
    finally:
        sock.detach()
    direction = "out" if key.area.view.block[key.block].role == _CONNECTED else "in"
    return Origin(tid, fd, cookie, direction, local, peer, process.program.exe, _uid(process))


def _uid(process: Process) -> int:
    return procfs.uid(process.pid)


def _give(listener: Listener, notif: Notification, fd: int) -> int | None:
    """Answer with a duplicate of `fd`; the errno when the process has no room for it."""
    try:
        listener.add_fd(notif, fd, reply=True)
    except OSError as error:
        return None if error.errno == errno.ENOENT else -(error.errno or errno.EIO)
    return None


def _take_socket(tid: int, fd: int, process: Process | None = None) -> int:
    """A duplicate of the task's descriptor, of the process if it is known; OSError."""
    if process is not None and process.pid == tid:
        return procfs.get_fd(process.pidfd, fd)
    pidfd = procfs.pidfd_open_thread(tid)
    try:
        return procfs.get_fd(pidfd, fd)
    finally:
        os.close(pidfd)
