# SPDX-License-Identifier: Apache-2.0
"""Calls that a rule may deny are performed here: on a copy of the address, with a duplicate of the socket.

What is looked at must be what the kernel acts upon. A program may change its memory, and exchange its descriptors,
between our look and a call that it makes itself; so for a restricted program no call with an address is ever let
through. Two facts keep the rest simple (the strict filter, sdtrace/syscalls.py, makes them so):

  - descriptors are shared by the threads of one process only. A call of a process with a single thread therefore
    acts on the descriptor that we have looked at: if that is no internet socket, the call may go on by itself.
  - data of connections that exist need no look: only sends that make a connection or name a receiver come here.

Other kinds of sockets of processes with threads are served as well, but unix sockets then show our pid to their peers.
What cannot be read (a program that took itself out of our reach) is denied.

Calls that may sleep go to a thread (workers.py); whether they may is the program's O_NONBLOCK, which we share.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress

from policies.model import Dir, Verdict
from sdlib import abi
from sdtrace import calls, datagrams, notify, procfs, syscalls
from sdtrace.caller import (
    INTERNET,
    KNOWN,
    Call,
    Continue,
    Later,
    Socket,
    closing,
    cookie_of,
    duplicate,
    shown,
    sleeps,
    store_address,
    take,
    time_limit,
)
from sdtrace.lineage import Subject
from sdtrace.messages import Message, read_message, read_messages
from sdtrace.notify import Listener, Notification
from sdtrace.privileges import bound_by, may_act_for
from sdtrace.workers import POLL_S, Workers, wakeable, with_filesystem_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sdtrace.learning import Learner

_LINGER_RESET: Final = struct.pack("=ii", 1, 0)
_DATA_MAX: Final = 1 << 20
DENIALS_MAX: Final = 1000
PERFORMED: Final = frozenset({
    syscalls.CONNECT, syscalls.BIND, syscalls.LISTEN, syscalls.ACCEPT, syscalls.ACCEPT4, syscalls.SENDTO,
    syscalls.SENDMSG, syscalls.SENDMMSG, syscalls.SOCKET,
})  # fmt: skip


class Enforcer:
    """Performs what programs of a strict tree may not do by themselves."""

    def __init__(self, workers: Workers, learner: Learner | None) -> None:
        self._workers = workers
        self._learner = learner
        self._accepted: dict[int, list[tuple[int, bytes]]] = {}
        """Connections that were accepted for programs that had gone away meanwhile, by the listener's cookie."""
        self.denials: Counter[tuple[str, str, str]] = Counter()
        """How often (program, what, by which rule)."""
        self._handlers: Final[dict[int, Callable[[Call], int]]] = {
            syscalls.CONNECT: self._connect, syscalls.BIND: self._bind, syscalls.LISTEN: self._listen,
            syscalls.ACCEPT: self._accept, syscalls.ACCEPT4: self._accept, syscalls.SENDTO: self._sendto,
            syscalls.SENDMSG: self._sendmsg, syscalls.SENDMMSG: self._sendmmsg, syscalls.SOCKET: self._socket,
        }  # fmt: skip

    def performs(self, number: int) -> bool:
        """Is this call one of ours?"""
        return number in self._handlers

    def answer(self, listener: Listener, notif: Notification, subject: Subject) -> None:
        """Answer a call of the table above; the caller sees to it that none remains unanswered if this raises."""
        self._answer(self._handlers[notif.nr], Call(listener, notif, subject))

    def answer_admission(self, listener: Listener, notif: Notification, subject: Subject) -> None:
        """May the connection that the library has just accepted (first argument) come in? If not it ends in a reset."""
        self._answer(self._admit, Call(listener, notif, subject))

    def _answer(self, handler: Callable[[Call], int], call: Call) -> None:
        listener, notif, _ = call
        if not listener.valid(notif):
            return
        try:
            value = handler(call)
        except Continue:
            self._let_through(listener, notif)
        except Later:
            pass
        except OSError as error:
            listener.reply(notif, -(error.errno or errno.EIO))
        else:
            listener.reply(notif, value)

    @staticmethod
    def _let_through(listener: Listener, notif: Notification) -> None:
        if notif.routed:
            listener.reply(notif, abi.const.SD_PERFORM_YOURSELF)
        else:
            listener.let_through(notif)

    def _admit(self, call: Call) -> int:
        try:
            sock = take(call, "in")
        except Continue:
            return 0
        with closing(sock):
            peer = calls.getpeername(sock.fd)
            if isinstance(peer, int) or self._may_come_in(call, sock, sock.fd, peer):
                return 0
            sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            return -errno.EACCES

    # ---------------------------------------------------------------- judging

    def _deny(self, call: Call, what: str, verdict: Verdict) -> OSError:
        key = (call.subject.exe, what, verdict.where)
        if key in self.denials or len(self.denials) < DENIALS_MAX:
            self.denials[key] += 1
        return OSError(verdict.errno, what)

    def _may_reach(self, call: Call, sock: Socket, address: bytes, *, unspec_is_inet: bool) -> None:
        """OSError unless the program may send to this address by all protocols that the socket may speak."""
        where = calls.target(address, unspec_is_inet=unspec_is_inet and sock.domain == socket.AF_INET)
        if where is None:
            return
        for proto in sock.protos:
            verdict = call.subject.judge("out", proto, where.packed, where.port)
            if verdict.action == "deny":
                raise self._deny(call, f"out {proto} {shown(where)}", verdict)
        self._learn(call, "out", sock, where)

    def _may_listen(self, call: Call, sock: Socket, port: int) -> None:
        for proto in sock.protos:
            verdict = call.subject.judge_port(proto, port)
            if verdict.action == "deny":
                raise self._deny(call, f"in {proto} port {port}", verdict)

    @staticmethod
    def _guard(call: Call, sock: Socket) -> None:
        """Before a datagram socket gets a port, by which way ever: it shall receive only from those who may send."""
        if sock.internet and sock.protos == ("udp",) and call.subject.restricts("in", "udp"):
            datagrams.guard(sock.sock, datagrams.compile_rules(call.subject.binding))

    def _learn(self, call: Call, dir_: Dir, sock: Socket, where: calls.Target) -> None:
        if self._learner is not None:
            for proto in sock.protos:
                self._learner.saw(call.subject.exe, dir_, proto, where.packed, where.port)

    # ----------------------------------------------------------------- sockets

    def _perform(self, call: Call, sock: Socket, sleeps: bool, action: Callable[[], int]) -> int:
        """Do it here, or where it may sleep or needs the program's own rights, in a thread."""
        rights = procfs.rights(call.subject.tid)
        call.still_there()
        unix = sock.domain == socket.AF_UNIX
        if not (sleeps or unix) and may_act_for(rights):
            with sock.sock:
                return action()

        def work() -> int:
            with sock.sock:
                bound_by(rights)
                with wakeable():
                    if unix:
                        return with_filesystem_of(call.subject.tid, rights.umask, action)
                    return action()

        if sleeps:
            _limit(call, sock.sock, socket.SO_SNDTIMEO)
        self._workers.run(call.listener, call.notif, work)
        raise Later

    # ------------------------------------------------------------------- calls

    def _socket(self, call: Call) -> int:
        """Protocols that no rule can be about belong to those of which everything is denied that is not allowed.

        All arguments are in registers: what we see is what the kernel does.
        """
        domain, kind, proto = (call.notif.int_arg(index) for index in range(3))
        usual = domain in INTERNET and proto in (0, *KNOWN) and kind & syscalls.SOCK_TYPE_MASK != socket.SOCK_RAW
        denying = next((settings for settings in call.subject.binding if settings.action == "deny"), None)
        if usual or denying is None:
            raise Continue
        verdict = Verdict("deny", errno.EACCES, (), denying.source.get("action", ""))
        raise self._deny(call, f"socket({domain}, {kind & syscalls.SOCK_TYPE_MASK}, {proto})", verdict)

    def _address(self, call: Call, pointer: int, length: int) -> bytes:
        if not 0 <= length <= calls.ADDRESS_MAX:
            raise OSError(errno.EINVAL, "address length")
        return call.memory(pointer, length)

    def _connect(self, call: Call) -> int:
        sock = take(call, "out")
        with closing(sock):
            address = self._address(call, call.notif.args[1], call.notif.int_arg(2))
            self._may_reach(call, sock, address, unspec_is_inet=False)
            self._guard(call, sock)
            return self._perform(call, sock, sock.blocking, lambda: calls.connect(sock.fd, address))

    def _bind(self, call: Call) -> int:
        sock = take(call, "in")
        with closing(sock):
            address = self._address(call, call.notif.args[1], call.notif.int_arg(2))
            where = calls.target(address, unspec_is_inet=sock.domain == socket.AF_INET) if sock.internet else None
            if where is not None and where.port:
                self._may_listen(call, sock, where.port)
                if self._learner is not None and "udp" in sock.protos:
                    self._learner.saw(call.subject.exe, "in", "udp", None, where.port)
            self._guard(call, sock)
            return self._perform(call, sock, False, lambda: calls.bind(sock.fd, address))

    def _listen(self, call: Call) -> int:
        """The port is the socket's own; one that has none yet gets one first."""
        sock = take(call, "in")
        with closing(sock):
            if not sock.internet:
                return self._perform(call, sock, False, lambda: calls.listen(sock.fd, call.notif.int_arg(1)))
            chosen = sock.sock.getsockname()[1] == 0
            if chosen:
                size = 16 if sock.domain == socket.AF_INET else 28
                calls.bind(sock.fd, struct.pack("=H", sock.domain).ljust(size, b"\0"))
            port = sock.sock.getsockname()[1]
            self._may_listen(call, sock, port)
            value = calls.listen(sock.fd, call.notif.int_arg(1))
            if value == 0 and self._learner is not None:
                self._learner.saw(call.subject.exe, "in", "tcp", None, port)
            return value

    # ------------------------------------------------------------------ accept

    def _accept(self, call: Call) -> int:
        sock = take(call, "in")
        with closing(sock):
            flags = call.notif.int_arg(3) if call.notif.nr == syscalls.ACCEPT4 else 0
            if flags & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC):
                return -errno.EINVAL
            if not sock.blocking:
                value = self._accept_one(call, sock, flags)
                if value is None:
                    raise Later
                return value
            limit = _limit(call, sock.sock, socket.SO_RCVTIMEO)

            def work() -> int | None:
                with sock.sock:
                    return self._accept_waiting(call, sock, flags, limit)

            self._workers.run(call.listener, call.notif, work)
            raise Later

    def _accept_waiting(self, call: Call, sock: Socket, flags: int, limit: float | None) -> int | None:
        """Wait outside of accept, so that a program that goes away takes no connection with it."""
        ready = select.poll()
        ready.register(sock.fd, select.POLLIN)
        deadline = None if limit is None else time.monotonic() + limit
        while call.listener.valid(call.notif):
            if ready.poll(POLL_S * 1000) or self._accepted.get(cookie_of(sock.sock)):
                value = self._accept_one(call, sock, flags)
                if value != -errno.EAGAIN:
                    return value
            if deadline is not None and time.monotonic() >= deadline:
                return -errno.EAGAIN
        return -errno.EINTR

    def _accept_one(self, call: Call, sock: Socket, flags: int) -> int | None:
        """The next connection that may come in; those that may not are reset. None: it has been delivered."""
        cookie = cookie_of(sock.sock)
        while True:
            if kept := self._accepted.get(cookie):
                fd, address = kept.pop()
            else:
                with wakeable() if sock.blocking else nullcontext():
                    fd, address = calls.accept(sock.fd, flags & socket.SOCK_NONBLOCK)
            if fd < 0:
                return fd
            if self._may_come_in(call, sock, fd, address):
                return self._deliver(call, sock, fd, address, flags)
            with socket.socket(fileno=fd) as refused, suppress(OSError):
                refused.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)

    def _may_come_in(self, call: Call, sock: Socket, fd: int, address: bytes) -> bool:
        where = calls.target(address, unspec_is_inet=False) if sock.internet else None
        if where is None:
            return True
        with socket.socket(fileno=os.dup(fd)) as accepted:
            try:
                local = accepted.getsockname()[1]
            except OSError:
                return True  # reset already: the program shall see that as ever
        for proto in sock.protos:
            verdict = call.subject.judge("in", proto, where.packed, local)
            if verdict.action == "deny":
                self._deny(call, f"in {proto} {shown(where)} to port {local}", verdict)
                return False
        self._learn(call, "in", sock, where._replace(port=local))
        return True

    def _deliver(self, call: Call, sock: Socket, fd: int, address: bytes, flags: int) -> int | None:
        """Hand over a connection; one whose program has gone away meanwhile is kept for the next accept."""
        try:
            try:
                store_address(call, address)
                call.listener.add_fd(call.notif, fd, reply=True, cloexec=bool(flags & socket.SOCK_CLOEXEC))
            except OSError as error:
                if error.errno != errno.ENOENT and call.listener.valid(call.notif):
                    return -(error.errno or errno.EIO)  # EFAULT, EMFILE: the kernel drops the connection as well
                self._accepted.setdefault(cookie_of(sock.sock), []).append((os.dup(fd), address))
                return -errno.EINTR
            return None
        finally:
            os.close(fd)

    # ------------------------------------------------------------------ sending

    def _sendto(self, call: Call) -> int:
        _, data, length, _, pointer, _ = call.notif.args
        flags = call.notif.int_arg(3)
        sock = take(call, "out")
        with closing(sock):
            address = self._address(call, pointer, call.notif.int_arg(5)) if pointer else None
            if address is not None:
                self._may_reach(call, sock, address, unspec_is_inet=True)
            self._guard(call, sock)
            body = call.memory(data, min(length, _DATA_MAX))
            return self._perform(call, sock, sleeps(sock, flags), lambda: calls.sendto(sock.fd, body, flags, address))

    def _sendmsg(self, call: Call) -> int:
        flags = call.notif.int_arg(2)
        sock = take(call, "out")
        with closing(sock):
            message = read_message(call.memory, call.notif.args[1], _DATA_MAX)
            self._may_send(call, sock, message)
            return self._perform(call, sock, sleeps(sock, flags), lambda: self._send(call, sock, message, flags))

    def _may_send(self, call: Call, sock: Socket, message: Message) -> None:
        if message.address is not None:
            self._may_reach(call, sock, message.address, unspec_is_inet=True)
        self._guard(call, sock)

    @staticmethod
    def _send(call: Call, sock: Socket, message: Message, flags: int) -> int:
        if sock.internet:  # the kernel looks at no descriptor there
            return calls.sendmsg(sock.fd, message.data, flags, message.address, message.control)
        with message.control_here(lambda fd: duplicate(call.subject.tid, fd)) as control:
            return calls.sendmsg(sock.fd, message.data, flags, message.address, control)

    def _sendmmsg(self, call: Call) -> int:
        flags = call.notif.int_arg(3)
        sock = take(call, "out")
        with closing(sock):
            messages = read_messages(call.memory, call.notif.args[1], call.notif.args[2] & 0xFFFFFFFF, _DATA_MAX)

            def action() -> int:
                done = 0
                for place, message in messages:
                    try:
                        self._may_send(call, sock, message)
                        sent = self._send(call, sock, message, flags)
                    except OSError as error:
                        sent = -(error.errno or errno.EIO)
                    if sent < 0:
                        return done or sent
                    call.store(place, struct.pack("=I", sent))
                    done += 1
                return done

            return self._perform(call, sock, sleeps(sock, flags), action)


def _limit(call: Call, sock: socket.socket, option: int) -> float | None:
    """How long the call waits; one with a limit is ended by every handler."""
    limit = time_limit(sock, option)
    if limit is not None:
        notify.has_limit(call.subject.tid)
    return limit
