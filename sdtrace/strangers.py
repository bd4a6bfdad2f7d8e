# SPDX-License-Identifier: Apache-2.0
"""A process takes a socket or an epoll set out of another one, by pidfd_getfd, and cannot see the rings behind it.

The filter holds the call.  A thread asks every supervisor of the user, this one too, for the connection by its socket's
inode (requests.py); whoever has it moves it to TCP, and what is unread in the ring with it: all processes that hold it
are stopped, and when none is inside of an operation the same is done as for --detach, for this one connection
(giveback.py).  From then on it is not offered any more.  Only then the kernel makes the call.

Of a set all connections are moved, and then its owner's library tells the kernel the program's own data (givesets.py).

It is the kernel that says whether the call is allowed: for a socket that we cannot take ourselves nothing is done.  A
process that is under no sdrun at all asks nobody.

Where a connection cannot be moved, nobody may read it who would miss a part without being told: pidfd_getfd is refused
(EPERM, as if ptrace were), a message resets it (sdlib/src/sock/pass.c).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import syslog
import time
from collections.abc import Callable, Iterator

from sdlib import abi
from sdlib.records import dataclass
from sdlib.wire import trees
from sdtrace import notify, procfs
from sdtrace.areas import Area
from sdtrace.held import Key
from sdtrace.image import Image
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Listener, Notification
from sdtrace.offers import Broker
from sdtrace.ptrace import RemoteError
from sdtrace.requests import LIBRARY, PASS, SET, STOP
from sdtrace.segments import holders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

RETRY_S: Final = 0.005
_PATIENCE_S: Final = 2.0
_TOLD_S: Final = 0.5
_ANSWER_S: Final = 5.0
_STOP_S: Final = 0.1
_SLOW_S: Final = 0.1
_FAILED_S: Final = 0.5
"""So long it is not tried again."""
_REMEMBERED: Final = 4096
_LISTEN: Final = 10
_REASON: Final = abi.const.SD_REASON_passed


# ------------------------------------------------------------------ the one who takes


def taken(notif: Notification) -> tuple[bytes, int] | None:
    """What this call of pidfd_getfd would take out of another process: a request, its number. None: neither kind."""
    try:
        table = procfs.pidfd_open_thread(notif.tid)
        with _closing(table), _closing(procfs.get_fd(table, notif.int_arg(0))) as pidfd:
            owner, number = _process_of(pidfd), notif.int_arg(1)
            if owner == procfs.status(notif.tid).tgid:
                return None  # its own: the library sees that it has one descriptor more
            with _closing(procfs.get_fd(pidfd, number)) as fd:
                if os.readlink(f"/proc/self/fd/{fd}") == procfs.EPOLL:
                    return SET, owner << 32 | number
                return (PASS, os.fstat(fd).st_ino) if _is_connection(fd) else None
    except OSError:
        return None


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _process_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as text:
        return next((int(line[4:]) for line in text if line.startswith(b"Pid:")), -1)


def _is_connection(fd: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.proto != socket.IPPROTO_TCP:
            return False
        return sock.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 8)[0] != _LISTEN


def have_it_passed(listener: Listener, notif: Notification, what: bytes, number: int) -> int | None:
    """Ask all supervisors, wait, and let the call go. In a thread: one of those who are asked is ours."""
    why = _everywhere(what, number)
    if not why:
        listener.let_through(notif)
        return None
    text = f"process {notif.tid} was refused a connection whose bytes it could not see: {why}"
    syslog.syslog(syslog.LOG_WARNING, text)
    return -errno.EPERM


def have_it_known(inode: int) -> int:
    """No supervisor offers this connection any more, and all of it is on TCP; -EBUSY. In a thread, as the other."""
    return -errno.EBUSY if _everywhere(PASS, inode) else 0


def _everywhere(what: bytes, number: int) -> str:
    """Why one that has it could not; who does not answer is noted, and may have nothing to do with it.

    One that was killed has a successor in a moment, which takes its name away, and knows what it had. One whose tree is
    over has taken it away by itself. So it is asked until there is nobody who has a name and does not answer. A name
    that was left for good, in whatever folder, only costs the time: who has not been asked has not taken anything.
    """
    answered: set[str] = set()
    unanswered: set[str] = set()
    since = time.monotonic()
    while True:
        why, died = "", False
        there = set(trees.find(os.environ, os.geteuid()))
        for path in there - answered:
            try:
                why = _ask(path, what, number) or why
            except _Ended as ended:
                died = True
                unanswered |= {path} if ended.asked else set()
                continue
            except OSError as error:
                syslog.syslog(syslog.LOG_WARNING, f"a connection is taken, {path} does not say if it is its: {error}")
            answered.add(path)
        if why or not died:
            return why
        if time.monotonic() > since + _PATIENCE_S:
            return "a supervisor has ended before it had answered" if unanswered & there else ""
        time.sleep(RETRY_S)


def have_libraries(pids: list[int]) -> None:
    """Who is about to receive a connection gets the library, whatever tree it is of. In a thread, as the others."""
    for path in trees.find(os.environ, os.geteuid()):
        for pid in pids:
            with contextlib.suppress(OSError):
                _ask(path, LIBRARY, pid)


def have_stopped(tid: int) -> None:
    """A thread that we have told to stop waits for the answer of another supervisor, which is asked to let it."""
    own = trees.socket_name(os.getpid())
    for path in trees.find(os.environ, os.geteuid()):
        with contextlib.suppress(OSError):
            if os.path.basename(path) != own and not _ask(path, STOP, tid, _STOP_S):
                return


def have_it_stop(tid: int, client: socket.socket) -> str:
    """The one who is asked."""
    try:
        tracer = procfs.status(tid).tracer
    except OSError:
        return "no such thread"
    mine = tracer == trees.peer_of(client)[0] and notify.let_stop(tid)
    return "" if mine else "it does not wait here for who traces it"


class _Ended(OSError):
    """It is no more, or not there yet. `asked`: it has ended since it was asked."""

    def __init__(self, *, asked: bool) -> None:
        super().__init__("it has ended")
        self.asked = asked


def _ask(path: str, what: bytes, number: int, patience: float = _ANSWER_S) -> str:
    """Why a supervisor could not do it; "" when it could, or has nothing to do with it. OSError: it does not answer."""
    folder, name = os.path.split(path)
    before, after = trees.socket_name(0).split("0")
    pid = name.removeprefix(before).removesuffix(after)
    if not pid.isdigit() or name != before + pid + after:
        return ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(patience)
        try:
            sock.connect(f"{folder}/{trees.request_name(int(pid))}")
        except (ConnectionError, FileNotFoundError) as error:
            raise _Ended(asked=False) from error
        said = b""
        with contextlib.suppress(ConnectionError):
            sock.send(what + b" %d" % number)
            said = sock.recv(4096)
    if not said:
        raise _Ended(asked=True)
    return said.decode(errors="replace").strip()


# ------------------------------------------------------------------ the one who has it


@dataclass
class _Request:
    number: int
    """A socket's inode, or minus what names a set."""
    since: float
    answer: Callable[[str], None]
    but: int = 0
    """A process that has given its part of the set, and stands in the middle of a call."""
    after: float = 0.0
    """Not to be tried again before. Each time its program is stopped for a moment."""


class Strangers:
    """Connections of our tree that somebody else is about to take."""

    def __init__(self, image: Image | str, keepsake: Keepsake, broker: Broker, areas: list[Area]) -> None:
        """`areas` is the supervisor's own list, as it grows."""
        self._image, self._keepsake, self._broker, self._areas = image, keepsake, broker, areas
        self._open: list[_Request] = []
        self._failed: dict[int, tuple[float, str]] = {}
        self._taken: dict[int, None] = {}

    def has_taken(self, inode: int) -> bool:
        """Does somebody have this socket who could not see its ring?"""
        return inode in self._taken

    def note(self, inode: int) -> None:
        """Somebody has this socket who cannot see its ring."""
        self._taken[inode] = None
        if len(self._taken) > _REMEMBERED:
            del self._taken[next(iter(self._taken))]

    def __bool__(self) -> bool:
        """Does somebody wait?"""
        return bool(self._open)

    def request(self, inode: int, answer: Callable[[str], None]) -> None:
        """Have it on TCP; `answer` is told "" when it is, or why it cannot be."""
        self.note(inode)
        self._begin(inode, answer)

    def request_set(self, number: int, answer: Callable[[str], None]) -> None:
        """The same for all that is in a set, which the kernel knows then as its program does."""
        self._begin(-number, answer)

    def share(self, listener: Listener, notif: Notification, pid: int, fd: int) -> None:
        """One of those who have a set has given his part of it to the kernel, and asks us to have the others do so."""
        def answer(why: str) -> None:
            listener.reply(notif, -errno.EBUSY if why else 0)

        self._begin(-(pid << 32 | fd), answer, but=pid)

    def _begin(self, number: int, answer: Callable[[str], None], but: int = 0) -> None:
        # A program that stands still meanwhile, and has asked itself, asks once more when it goes on.
        since = min((request.since for request in self._open if request.number == number), default=time.monotonic())
        self._open.append(_Request(number, since, answer, but))
        self.tick()

    def tick(self) -> None:
        """Try what has not been possible yet."""
        still, self._open = self._open, []
        now = time.monotonic()
        self._failed = {number: failed for number, failed in self._failed.items() if failed[0] > now}
        for request in still:
            why = self._failed.get(request.number, (0.0, ""))[1]
            if why or now >= request.after:
                self._answer(request, why)
            else:
                self._open.append(request)

    def _answer(self, request: _Request, why: str) -> None:
        why, known = why or self._try(request), bool(why)
        waited = time.monotonic() - request.since
        if why and not known and waited < _PATIENCE_S:
            request.after = time.monotonic() + min(max(RETRY_S, waited / 4), _SLOW_S)
            self._open.append(request)
            return
        if why and not known:
            self._failed[request.number] = time.monotonic() + _FAILED_S, why
        request.answer(why)

    def _try(self, request: _Request) -> str:
        try:
            if request.number < 0:
                self._give(-request.number, request)
                return ""
            for key in self._keys(request.number):
                self._pass(key, request)
        except (RemoteError, OSError) as error:
            return str(error) or repr(error)
        return ""

    def _give(self, number: int, request: _Request) -> None:
        from sdtrace import givesets

        if not self._areas or isinstance(self._image, str):
            return
        users = givesets.users(number >> 32, number & 0xFFFFFFFF, {area.inode for area in self._areas})
        inodes = {inode for pid, fd in users for inode in givesets.sockets_in(pid, fd)}
        for inode in inodes:
            self.note(inode)
            for key in self._keys(inode):
                self._pass(key, request)
        users = [each for each in users if each[0] != request.but]
        for first in (True, False) if len(users) > 1 else (False,):
            for pid, fd in users:
                givesets.give(self._image, self._keepsake, pid, fd, first=first)

    def _keys(self, inode: int) -> list[Key]:
        found = [Key(area, block, generation) for area in self._areas
                 for block, (generation, each) in area.sockets.items() if each == inode]
        return [key for key in found if key.current]

    def _pass(self, key: Key, request: _Request) -> None:
        from sdtrace.giveback import WARNED_S, give_back, warn  # a large part of us, that few need
        from sdtrace.rouse import rouse, standing_still

        block = key.area.view.block[key.block]
        if block.state != abi.const.SD_BLOCK_ATTACHED:
            self._broker.keep_off(key, _REASON)
            return
        if int(block.rx_mode) == int(block.tx_mode) == abi.const.SD_MODE_BACK or isinstance(self._image, str):
            return
        if self._broker.untold and time.monotonic() < request.since + _TOLD_S:
            raise RemoteError("the monitor does not know us yet", transient=True)  # and asks nobody for its other end
        if warn(self._broker, key) and time.monotonic() < request.since + WARNED_S:
            raise RemoteError("its other end may be about to switch", transient=True)
        keys = self._with_other_end(key)
        with standing_still(self._image, *((each.area, each.area.sockets[each.block][1]) for each in keys)) as stopped:
            try:
                give_back(self._broker, [halted.pid for halted in stopped], only=keys, reason=_REASON)
            finally:  # also if only one direction has moved: who waits for room there is not rung for any more
                for area in {each.area for each in keys}:
                    for halted in stopped:
                        rouse(self._image, area, halted)

    def _with_other_end(self, key: Key) -> list[Key]:
        """Both ends, where one process has them: while it stands still its other end sends nothing again either."""
        ends = [(each, os.fstat(held.segment).st_ino) for each, held in self._broker.held() if held.segment >= 0]
        rings = next((inode for each, inode in ends if each == key), 0)
        other = next((each for each, inode in ends if inode == rings and each != key), None)
        return [key, other] if other is not None and _users(key) & _users(other) else [key]


def _users(key: Key) -> set[int]:
    _, inode = key.area.sockets.get(key.block, (0, -1))
    return {pid for pid, _ in holders(key.area.inode, inode)}
