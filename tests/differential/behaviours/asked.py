# SPDX-License-Identifier: Apache-2.0
"""Options, ioctls and fcntls that TCP has and few use: what is set, what is read back, lengths that are odd."""

from __future__ import annotations

import signal
import struct
import time
from typing import Final

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.ends import use
from tests.differential.linux import (
    DONTWAIT,
    ERR,
    F_GETFD,
    F_GETFL,
    F_GETOWN,
    F_SETFL,
    F_SETOWN,
    F_SETSIG,
    FIOASYNC,
    FIONREAD,
    HUP,
    IN,
    O_ASYNC,
    O_NONBLOCK,
    OOB,
    OUT,
    PEEK,
    SHUT_RD,
    SHUT_WR,
    SIOCATMARK,
    SIOCOUTQ,
    SIOCOUTQNSD,
    SO_ERROR,
    SO_LINGER,
    SO_RCVLOWAT,
    SO_RCVTIMEO,
    SO_RCVTIMEO_NEW,
    SO_SNDTIMEO,
    SO_SNDTIMEO_NEW,
    SOL_SOCKET,
    SOL_TCP,
    TCP_CORK,
    TCP_INFO,
    TCP_NODELAY,
)
from tests.differential.remote import ARENA
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

TCP_INTS: Final = {"MAXSEG": 2, "KEEPIDLE": 4, "KEEPINTVL": 5, "KEEPCNT": 6, "SYNCNT": 7, "LINGER2": 8,
                   "WINDOW_CLAMP": 10, "THIN_LINEAR_TIMEOUTS": 16, "THIN_DUPACK": 17, "USER_TIMEOUT": 18,
                   "FASTOPEN": 23, "TIMESTAMP": 24, "SAVE_SYN": 27, "FASTOPEN_CONNECT": 30, "FASTOPEN_NO_COOKIE": 34,
                   "TX_DELAY": 37, "RTO_MAX_MS": 44, "RTO_MIN_US": 45, "DELACK_MAX_US": 46}
SOCKET_INTS: Final = {"DEBUG": 1, "REUSEADDR": 2, "DONTROUTE": 5, "BROADCAST": 6, "NO_CHECK": 11, "PRIORITY": 12,
                      "BSDCOMPAT": 14, "PASSCRED": 16, "SNDLOWAT": 19, "PASSSEC": 34, "MARK": 36, "RXQ_OVFL": 40,
                      "WIFI_STATUS": 41, "NOFCS": 43, "LOCK_FILTER": 44, "SELECT_ERR_QUEUE": 45, "BUSY_POLL": 46,
                      "INCOMING_CPU": 49, "PREFER_BUSY_POLL": 69, "BUSY_POLL_BUDGET": 70, "RESERVE_MEM": 73,
                      "TXREHASH": 74, "RCVMARK": 75, "PASSPIDFD": 76, "RCVPRIORITY": 82}
READ_ONLY: Final = {"TYPE": 3, "PEERCRED": 17, "ACCEPTCONN": 30, "PEERSEC": 31, "PEERNAME": 28, "PROTOCOL": 38,
                    "DOMAIN": 39, "PEERGROUPS": 59, "NETNS_COOKIE": 71, "PEERPIDFD": 77}
IP_INTS: Final = {"TOS": 1, "TTL": 2, "OPTIONS": 4, "MTU_DISCOVER": 10, "RECVERR": 11, "MTU": 14, "FREEBIND": 15,
                  "TRANSPARENT": 19, "MINTTL": 21, "BIND_ADDRESS_NO_PORT": 24}


@behaviour("setsockopt options of TCP", "getsockopt options of TCP", carried=False)
def tcp_ints(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    for name, option in TCP_INTS.items():
        a.say(name)
        if name not in ("MAXSEG", "WINDOW_CLAMP", "TIMESTAMP"):  # which the packets have made
            a.getsockopt(x, SOL_TCP, option)
        for value in (0, 1, 5, -1, 1000):
            if name != "WINDOW_CLAMP":
                a.setsockopt(x, SOL_TCP, option, value)
        if name not in ("MAXSEG", "WINDOW_CLAMP", "TIMESTAMP"):
            a.getsockopt(x, SOL_TCP, option)
        a.setsockopt(x, SOL_TCP, option, b"\1")
    exchange(stage, a, x, y)


@behaviour("setsockopt options of sockets", "getsockopt options of sockets")
def socket_ints(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    for name, option in SOCKET_INTS.items():
        a.say(name)
        if name != "INCOMING_CPU":
            a.getsockopt(x, SOL_SOCKET, option)
        for value in (1, 3, -1, 0):
            if name != "LOCK_FILTER":
                a.setsockopt(x, SOL_SOCKET, option, value)
            if name != "RESERVE_MEM":
                a.getsockopt(x, SOL_SOCKET, option)
        a.setsockopt(x, SOL_SOCKET, option, b"\1")
    for name, option in READ_ONLY.items():
        a.say(name)
        for size in (0, 1, 4, 128):
            a.getsockopt(x, SOL_SOCKET, option, size, show=name in ("TYPE", "ACCEPTCONN", "PROTOCOL", "DOMAIN"))
        a.setsockopt(x, SOL_SOCKET, option, 1)
    exchange(stage, a, x, y)


@behaviour("setsockopt options of IP", "getsockopt options of IP")
def ip_ints(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    for level in (0, 41):
        for name, option in IP_INTS.items():
            a.say(name)
            for value in (0, 1, 16, -1):
                a.setsockopt(x, level, option, value)
                a.getsockopt(x, level, option)
    exchange(stage, a, x, y)


@behaviour("getsockopt SO_COOKIE", "getsockopt SO_INCOMING_NAPI_ID", "getsockopt SO_INCOMING_CPU",
           "getsockopt SO_MEMINFO", "getsockopt TCP_CC_INFO", "getsockopt TCP_SAVED_SYN", "getsockopt TCP_CONGESTION")
def descriptions(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    cookie = a.getsockopt(x, SOL_SOCKET, 57, 8, show=False).pieces[0]
    a.say(f"the same: {a.getsockopt(x, SOL_SOCKET, 57, 8, show=False).pieces[0] == cookie}")
    for option in (49, 55, 56):
        for size in (0, 2, 4, 8, 64):
            a.getsockopt(x, SOL_SOCKET, option, size, show=False)
    for option, size in ((26, 64), (28, 64), (13, 16), (13, 0), (31, 16), (33, 16), (36, 16), (TCP_INFO, 0),
                         (TCP_INFO, 1), (TCP_INFO, 104), (TCP_INFO, 1000)):
        a.getsockopt(x, SOL_TCP, option, size, show=option not in (26, TCP_INFO))
    for name in (b"reno", b"cubic\0", b"nosuch", b"", b"x" * 40):
        a.setsockopt(x, SOL_TCP, 13, name)
        a.getsockopt(x, SOL_TCP, 13, 16)
    exchange(stage, a, x, y)


@behaviour("setsockopt odd lengths", "getsockopt odd lengths")
def odd_lengths(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    options = ((SOL_TCP, TCP_NODELAY), (SOL_TCP, TCP_CORK), (SOL_SOCKET, SO_RCVLOWAT), (SOL_SOCKET, SO_ERROR),
               (SOL_SOCKET, SO_LINGER), (SOL_SOCKET, SO_RCVTIMEO), (SOL_SOCKET, SO_SNDTIMEO_NEW))
    for level, option in options:
        for length in (-1, 0, 1, 3, 4, 5, 8, 15, 16, 17, 1 << 31, 0x7FFFFFFF):
            memory = a.link.memory()
            size = memory.both(struct.pack("=I", length & 0xFFFFFFFF))
            a.sys("getsockopt", x, level, option, memory.room(20), size, memory=memory,
                  text=f"{level}, {option}, {length}", shown=lambda _, data: f"{data[1].hex()} {data[0].hex()}")
            if option != SO_ERROR:
                memory = a.link.memory()
                a.sys("setsockopt", x, level, option, memory.put(bytes(20)), length, memory=memory,
                      text=f"{level}, {option}, {length}")
        a.sys("getsockopt", x, level, option, 0, 0)
        a.sys("setsockopt", x, level, option, 0, 4)
        a.sys("setsockopt", x, level, option, 1 << 63, 16)
    for level in (-1, 2, 17, 58, 132, 282, 284, 0x7FFFFFFF):
        a.getsockopt(x, level, 1)
        a.setsockopt(x, level, 1, 1)
    a.setsockopt(x, SOL_TCP, TCP_NODELAY, 1)
    for size in (1, 3, 2, 0, 4):
        a.getsockopt(x, SOL_TCP, TCP_NODELAY, size)
    exchange(stage, a, x, y)
    b.recv(y, 10, DONTWAIT)


@behaviour("getsockopt SO_ERROR of an odd length takes the error", carried=False)
def error_lengths(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for length in (0, 1, 2, 3, 4, 8):
        x, y = stage.connection()
        b.setsockopt(y, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
        b.close(y)
        settle()
        memory = a.link.memory()
        size = memory.both(struct.pack("=I", length))
        a.sys("getsockopt", x, SOL_SOCKET, SO_ERROR, memory.room(8), size, memory=memory, text=f"{length}",
              shown=lambda _, data: f"{data[1].hex()} {data[0].hex()}")
        a.option(x, SOL_SOCKET, SO_ERROR)
        a.poll([(x, IN | OUT)])
        use(a, x)
        a.close(x)


@behaviour("getsockopt SO_ERROR with nowhere to put it", carried=False)
def error_nowhere(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    nowhere = ARENA + (257 << 20)
    memory = a.link.memory()
    a.sys("getsockopt", x, SOL_SOCKET, SO_ERROR, nowhere, memory.put(struct.pack("=I", 4)), memory=memory, text="alive")
    exchange(stage, a, x, y)
    b.setsockopt(y, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
    b.close(y)
    settle()
    memory = a.link.memory()
    a.sys("getsockopt", x, SOL_SOCKET, SO_ERROR, nowhere, memory.put(struct.pack("=I", 4)), memory=memory, text="reset")
    a.option(x, SOL_SOCKET, SO_ERROR)
    use(a, x)


@behaviour("getsockopt SO_RCVTIMEO in all its forms", "getsockopt SO_SNDTIMEO in all its forms")
def timeout_forms(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    for option in (SO_RCVTIMEO, SO_SNDTIMEO, SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW):
        for seconds, micros in ((1, 500_000), (0, 1), (0, 999_999), (1 << 40, 0), (1, -1), (-5, 5), (0, 0)):
            a.setsockopt(x, SOL_SOCKET, option, struct.pack("=qq", seconds, micros))
            for each in (SO_RCVTIMEO, SO_SNDTIMEO, SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW):
                a.getsockopt(x, SOL_SOCKET, each, 16)
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", 0, 20_000))
    a.recv(x, 10)
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", -1, 0))
    a.recv(x, 10)


@behaviour("ioctl SIOCOUTQ of bytes that the peer has, and has not read",
           "ioctl SIOCOUTQNSD of bytes that the peer has")
def acknowledged(stage: Stage) -> None:
    """What the peer's kernel has acknowledged is under way no more, whether its program reads it or not."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for size in (6, 5000, 40_000):
        a.send(x, b"s" * size)
        time.sleep(0.1)  # a delayed acknowledgement comes after 40 ms
        a.ioctl(x, SIOCOUTQ)
        a.ioctl(x, SIOCOUTQNSD)
        b.ioctl(y, FIONREAD)
    b.recv_all(y, 45_006)
    a.ioctl(x, SIOCOUTQ)
    a.shutdown(x, SHUT_WR)
    settle()
    a.ioctl(x, SIOCOUTQ)


@behaviour("ioctl in all states", carried=False)
def requests_in_states(stage: Stage) -> None:
    a, b = stage.a, stage.b

    def ask(side: Side, fd: int) -> None:
        for request in (FIONREAD, SIOCATMARK, SIOCOUTQ, SIOCOUTQNSD):
            if request != SIOCOUTQ:
                side.ioctl(fd, request)

    x, y = stage.connection()
    ask(a, x)
    b.send(y, b"abc")
    ask(a, x)
    a.shutdown(x, SHUT_RD)
    ask(a, x)
    a.shutdown(x, SHUT_WR)
    ask(a, x)
    ask(b, y)
    b.shutdown(y, SHUT_WR)
    settle()
    ask(a, x)
    ask(b, y)
    a.recv(x, 10)
    ask(a, x)
    x, y = stage.connection()
    a.send(x, b"abc")
    b.close(y)
    settle()
    ask(a, x)
    x, y = stage.connection()
    b.send(y, b"unread")
    b.setsockopt(y, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
    b.close(y)
    settle()
    ask(a, x)
    a.recv(x, 10)
    ask(a, x)
    fd = a.socket()
    ask(a, fd)
    listener, _ = stage.listener()
    ask(a, listener)


@behaviour("ioctl FIOCLEX", "ioctl FIONCLEX", "ioctl FIOGETOWN", "ioctl SIOCSPGRP", "ioctl SIOCGSTAMP",
           "fcntl F_GETOWN_EX", "fcntl F_SETOWN_EX", "fcntl F_GETSIG", "fcntl of other kinds")
def owners(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.sys("ioctl", x, 0x5451, 0)
    a.fcntl(x, F_GETFD)
    a.sys("ioctl", x, 0x5450, 0)
    a.fcntl(x, F_GETFD)
    for request in (0x8903, 0x8904):  # FIOGETOWN, SIOCGPGRP
        a.ioctl(x, request)
    memory = a.link.memory()
    a.sys("ioctl", x, 0x8902, memory.put(struct.pack("=i", a.link.pid)), memory=memory, text="SIOCSPGRP")
    a.say(f"owner: {a.link.begin('fcntl', x, F_GETOWN).end()[0] == a.link.pid}")
    a.sys("fcntl", x, F_SETOWN, 0, text="F_SETOWN 0")
    for kind, who in ((0, a.link.tid), (1, a.link.pid), (2, 0), (9, 1), (1, 99_999_999)):
        memory = a.link.memory()
        a.sys("fcntl", x, 15, memory.put(struct.pack("=ii", kind, who)), memory=memory, text=f"F_SETOWN_EX {kind}")
        memory = a.link.memory()
        a.sys("fcntl", x, 16, memory.room(8), memory=memory, text="F_GETOWN_EX",
              shown=lambda _, data: data[0][:4].hex())
    a.fcntl(x, F_SETSIG, 99)
    a.fcntl(x, F_SETSIG, 34)
    a.fcntl(x, 11)
    a.fcntl(x, F_SETSIG, 0)
    a.fcntl(x, 11)
    memory = a.link.memory()
    a.sys("ioctl", x, 0x8906, memory.room(16), memory=memory, text="SIOCGSTAMP")
    for command in (5, 6, 7, 1024, 1025, 1026, 1031, 1032, 1033, 1034, 1036, 1037, 9999):
        a.sys("fcntl", x, command, 0)
    a.sys("fcntl", x, 1027, x, text="F_DUPFD_QUERY")
    a.fcntl(x, F_SETFL, O_NONBLOCK | 0o40000)  # O_DIRECT
    a.fcntl(x, F_GETFL)
    a.recv(x, 10, DONTWAIT)
    for flags in (0, 0o2000, 0o1000000, 1, 3):
        a.fcntl(x, F_SETFL, flags)
        a.fcntl(x, F_GETFL)
    waits = a.start.recv(x, 10).asleep()
    b.send(y, b"abc")
    waits.end()
    exchange(stage, a, x, y)


@behaviour("fcntl F_SETOWN, and urgent data (SIGURG)", carried=False)
def sigurg(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.handle(signal.SIGURG)
    b.send(y, b"!", OOB)
    settle()
    a.signals(signal.SIGURG)
    a.recv(x, 1, OOB)
    a.sys("fcntl", x, F_SETOWN, a.link.pid, text="itself")
    b.send(y, b"!", OOB)
    a.poll([(x, 2)], 1000)
    settle()
    a.signals(signal.SIGURG)
    a.recv(x, 1, OOB | PEEK)
    a.recv(x, 1, OOB)
    exchange(stage, a, x, y)
    x, y = stage.connection()
    a.sys("fcntl", x, F_SETOWN, a.link.pid, text="itself")
    exchange(stage, a, x, y)
    b.send(y, b"late!", OOB)
    a.poll([(x, 2)], 1000)
    settle()
    a.signals(signal.SIGURG)
    a.recv(x, 10)


@behaviour("fcntl F_SETOWN_EX of a thread", "fcntl O_ASYNC told of room, of the end, of a reset", carried=False)
def sigio_more(stage: Stage) -> None:
    a, b = stage.a, stage.b
    a.handle(signal.SIGIO)
    for end in ("shutdown", "close", "reset"):
        x, y = stage.connection()
        memory = a.link.memory()
        a.sys("fcntl", x, 15, memory.put(struct.pack("=ii", 0, a.link.tid)), memory=memory, text="F_SETOWN_EX a thread")
        a.fcntl(x, F_SETSIG, signal.SIGIO)
        a.ioctl(x, FIOASYNC, 1)
        a.fcntl(x, F_GETFL)
        b.send(y, b"abc")
        settle()
        a.recv(x, 10)
        if end == "reset":
            b.setsockopt(y, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
        if end == "shutdown":
            b.shutdown(y, SHUT_WR)
        else:
            b.close(y)
        a.poll([(x, IN)], 1000)
        settle()
        a.say("told" if a.link.seen(signal.SIGIO)[0] else "not told")
        a.poll([(x, IN | OUT | ERR | HUP)])
        a.ioctl(x, FIOASYNC, 0)
        a.fcntl(x, F_GETFL)
        a.recv(x, 10)
        a.close(x)
    x, y = stage.connection()
    a.fcntl(x, F_SETFL, 2 | O_ASYNC)
    a.fcntl(x, F_SETFL, 2)
    exchange(stage, a, x, y)
