# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about a socket that a client held up. Nothing here is taken from the client's words.

Holding the descriptor is the proof of owning that end. It is closed as soon as it has been read, because as long as
we hold it the program's close() would send no FIN.

Closing somebody else's descriptor can block: close(2) of a TCP socket with SO_LINGER waits for the peer if ours was the
last reference, whatever O_NONBLOCK says, and close(2) of a file on FUSE waits for its daemon. The first wait ends at a
signal, so a timer interrupts it; other kinds of files are closed by a thread of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from struct import Struct

from monitor.match import Address, Key
from sdlib import abi
from sdlib.records import NamedTuple
from sdlib.wire.messages import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SO_COOKIE: Final = 57  # asm-generic/socket.h; Python has no names for these three
SO_BINDTOIFINDEX: Final = 62
SO_NETNS_COOKIE: Final = 71
TCP_ESTABLISHED: Final = 1  # include/net/tcp_states.h
_INTERNET: Final = (int(socket.AF_INET), int(socket.AF_INET6))
_U64: Final = Struct("=Q")
_CLOSE_LIMIT_S: Final = 0.02
_MAPPED: Final = bytes(10) + b"\xff\xff"
_OPTIONS: Final = 0b111  # TCPI_OPT_TIMESTAMPS, _SACK, _WSCALE: those of one end only stand above


class Shape(NamedTuple):
    """What both ends of a connection have agreed in (struct tcp_info): option bits, the scales of both windows."""

    options: int
    send_scale: int
    receive_scale: int


class Endpoint(NamedTuple):
    """An established TCP socket: which end of which connection it is, which socket (SO_COOKIE), and its shape."""

    key: Key
    cookie: int
    shape: Shape


class Unsuitable(Exception):
    """The offered descriptor cannot be paired; `code` says why, str() adds what was found."""

    def __init__(self, code: Code, found: str) -> None:
        super().__init__(found)
        self.code = code


def take(fd: int) -> Endpoint:
    """Read the endpoint from `fd` and close it, always; raises Unsuitable.

    The first question is a socket's own (getsockname), not fstat(2): a file on a hung FUSE would block that.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        close_foreign(fd)
        raise Unsuitable(Code.DESCRIPTOR, "not a socket") from None
    try:
        return _read(sock)
    except OSError as error:
        raise Unsuitable(Code.DESCRIPTOR, error.strerror or "socket could not be read") from None
    finally:
        _close_socket(sock)


def discard(fd: int) -> None:
    """Close a descriptor that came with something else than an offer."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        close_foreign(fd)
    else:
        _close_socket(sock)


def _read(sock: socket.socket) -> Endpoint:
    """The endpoint; raises Unsuitable, or OSError (the connection went away meanwhile)."""
    domain = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)  # its `family` makes an enum's member each time
    if domain not in _INTERNET or sock.proto != socket.IPPROTO_TCP:
        raise Unsuitable(Code.DESCRIPTOR, f"domain {domain}, protocol {sock.proto}: not TCP")
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 7)
    state = info[0]
    if state != TCP_ESTABLISHED:
        raise Unsuitable(Code.NOT_ESTABLISHED, f"TCP state {state}")
    local, peer = _address(domain, sock.getsockname()), _address(domain, sock.getpeername())
    bound = sock.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX)
    # connect() to a link-local address binds the socket by itself; that interface is in the key as the scope.
    if bound and not local.scope:
        raise Unsuitable(Code.BOUND_DEVICE, f"bound to interface {bound}")
    shape = Shape(info[5] & _OPTIONS, info[6] & 15, info[6] >> 4)
    return Endpoint(Key(_u64(sock, SO_NETNS_COOKIE), local, peer), _u64(sock, SO_COOKIE), shape)


def _u64(sock: socket.socket, option: int) -> int:
    value: int = _U64.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _U64.size))[0]
    return value


def _address(domain: int, name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """A socket address as matching wants it: an IPv4 address looks the same from an IPv6 socket."""
    if domain == socket.AF_INET:
        return Address(_MAPPED + socket.inet_pton(socket.AF_INET, name[0]), 0, name[1])
    host = name[0].partition("%")[0]
    return Address(socket.inet_pton(socket.AF_INET6, host), name[3] if len(name) == 4 else 0, name[1])


def owns(uid: int, tid: int, fd: int, cookie: int) -> bool:
    """Whether a task of the user's has that socket. The cookie will do from here on, whoever gets the task's number.

    What is not dumpable is root's here: its descriptors are not ours to take.
    """
    if not (_is_of(uid, tid) and 0 <= fd < 1 << 31):
        return False
    taken = abi.lib.sd_far_take(tid, fd, cookie)
    if taken < 0:
        return False
    discard(taken)
    return _is_of(uid, tid)


def _is_of(uid: int, tid: int) -> bool:
    try:
        return 0 < tid < 1 << 31 and os.stat(f"/proc/{tid}").st_uid == uid
    except OSError:
        return False


def show(address: Address) -> str:
    """host:port for log lines."""
    if address.ip.startswith(_MAPPED):
        return f"{socket.inet_ntop(socket.AF_INET, address.ip[12:])}:{address.port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, address.ip)}]:{address.port}"


def install_close_timer() -> None:
    """Make SIGALRM interrupt a blocked close(2) instead of ending the process; once, from the main thread."""
    signal.signal(signal.SIGALRM, lambda *_: None)


def _close_socket(sock: socket.socket) -> None:
    """Close a socket of somebody else's within _CLOSE_LIMIT_S seconds.

    The timer repeats, so that one that fires just before the call sleeps is made up for. An interrupted close(2) has
    closed the descriptor all the same.
    """
    signal.setitimer(signal.ITIMER_REAL, _CLOSE_LIMIT_S, _CLOSE_LIMIT_S)
    try:
        sock.close()
    except OSError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def close_foreign(fd: int) -> None:
    """Close a descriptor of an unknown kind without waiting for it."""
    try:
        threading.Thread(target=_close_quietly, args=(fd,), daemon=True).start()
    except RuntimeError:  # no more threads: closing may wait, but a descriptor must not be lost
        _close_quietly(fd)


def _close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)
