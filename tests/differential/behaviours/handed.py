# SPDX-License-Identifier: Apache-2.0
"""SCM_RIGHTS: a connection goes to another process in a message; to one that sees its ring, or to one that does not."""

from __future__ import annotations

import struct
import time

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.taken import gone, spend
from tests.differential.linux import DONTWAIT, IN, PEEK, SHUT_WR, SOL_SOCKET
from tests.differential.side import Side
from tests.differential.worlds import Stage, behaviour

UNIX, STREAM, DGRAM, SEQPACKET = 1, 1, 2, 5
NOTE = b"fd"
"""What goes along; it is no byte of a connection."""


def rights(*fds: int) -> bytes:
    """An SCM_RIGHTS control message."""
    body = struct.pack(f"={len(fds)}i", *fds)
    whole = struct.pack("=Qii", 16 + len(body), SOL_SOCKET, 1) + body
    return whole + bytes(-len(whole) % 8)


def hand(side: Side, to: int, *fds: int) -> None:
    """Send them."""
    side.sendmsg(to, [NOTE], control=rights(*fds))
    side.sent -= len(NOTE)


def receive_fd(side: Side, fd: int, flags: int = 0) -> int:
    """One descriptor, by recvmsg."""
    call = side.recvmsg(fd, [8], flags, control=64)
    return int(struct.unpack_from("=i", call.pieces[1], 16)[0])


def named(stage: Stage, other: Side) -> tuple[int, int]:
    """A unix connection that `other` makes to a: both descriptors."""
    a = stage.a
    name = struct.pack("=H", UNIX) + b"\0sdrun-rights-" + str(a.link.pid).encode()  # abstract
    listener = a.socket(UNIX)
    memory = a.link.memory()
    a.sys("bind", listener, memory.put(name), len(name), memory=memory, text="a name")
    a.listen(listener)
    theirs = other.socket(UNIX)
    memory = other.link.memory()
    other.sys("connect", theirs, memory.put(name), len(name), memory=memory, text="a name")
    ours = a.accept(listener).value
    a.close(listener)
    return ours, theirs


@behaviour("sendmsg SCM_RIGHTS with bytes unread")
def rights_child(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    stage.listener()  # from here on children see what becomes of our sockets
    child = a.fork("c")
    x, y = stage.connection()
    exchange(stage, a, x, y)
    b.send(y, b"unread")
    hand(a, one, x)
    a.close(x)
    z = receive_fd(child, two)
    child.recv(z, 100)
    exchange(stage, child, z, y)
    child.close(z)
    b.recv(y, 10)


@behaviour("sendmsg SCM_RIGHTS with as much unread as TCP's buffers hold, to a program that was started elsewhere",
           carried=False, only=("before", "after", "accepting"))
def rights_much(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ours, theirs = named(stage, thief)
    x, y = stage.connection()
    data = bytes(range(256)) * 9000
    b.send(y, data)
    a.send(x, data)
    hand(a, ours, x)
    a.close(x)
    z = receive_fd(thief, theirs)
    thief.recv_all(z, len(data))
    b.recv_all(y, len(data))
    exchange(stage, thief, z, y)


@behaviour("sendmsg SCM_RIGHTS, both keep it")
def rights_both(stage: Stage) -> None:
    a = stage.a
    one, two = a.pair()
    stage.listener()  # from here on children see what becomes of our sockets
    child = a.fork("c")
    x, y = stage.connection()
    hand(a, one, x)
    z = receive_fd(child, two)
    exchange(stage, child, z, y)
    exchange(stage, a, x, y)
    exchange(stage, child, z, y)


@behaviour("sendmsg SCM_RIGHTS to a child that is older than the first socket", carried=False)
def rights_older(stage: Stage) -> None:
    a = stage.a
    one, two = a.pair()
    child = a.fork("c")
    x, y = stage.connection()
    hand(a, one, x)
    a.close(x)
    z = receive_fd(child, two)
    exchange(stage, child, z, y)


@behaviour("sendmsg SCM_RIGHTS to oneself")
def rights_self(stage: Stage) -> None:
    a = stage.a
    one, two = a.pair()
    x, y = stage.connection()
    hand(a, one, x)
    z = receive_fd(a, two)
    exchange(stage, a, z, y)
    a.close(x)
    exchange(stage, a, z, y)


@behaviour("sendmsg SCM_RIGHTS by a datagram", "sendmsg SCM_RIGHTS by SOCK_SEQPACKET")
def rights_kinds(stage: Stage) -> None:
    a = stage.a
    for kind in (DGRAM, SEQPACKET):
        one, two = a.pair(kind)
        x, y = stage.connection()
        child = a.fork("c")
        hand(a, one, x)
        a.close(x)
        z = receive_fd(child, two)
        child.close(x)
        exchange(stage, child, z, y)


@behaviour("sendmsg SCM_RIGHTS of two at once")
def rights_two(stage: Stage) -> None:
    a = stage.a
    one, two = a.pair()
    stage.listener()  # from here on children see what becomes of our sockets
    child = a.fork("c")
    pairs = [stage.connection() for _ in range(2)]
    hand(a, one, pairs[0][0], pairs[1][0], pairs[0][0])
    call = child.recvmsg(two, [8], control=64)
    got = struct.unpack_from("=3i", call.pieces[1], 16)
    for _, (x, _) in zip(got, pairs, strict=False):
        a.close(x)
    exchange(stage, child, got[0], pairs[0][1])
    exchange(stage, child, got[1], pairs[1][1])
    child.close(got[0])
    exchange(stage, child, got[2], pairs[0][1])


@behaviour("recvmsg MSG_PEEK of SCM_RIGHTS")
def rights_peek(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    stage.listener()  # from here on children see what becomes of our sockets
    child = a.fork("c")
    x, y = stage.connection()
    hand(a, one, x)
    a.close(x)
    first = receive_fd(child, two, PEEK)
    exchange(stage, child, first, y)
    child.close(first)
    second = receive_fd(child, two, PEEK)
    exchange(stage, child, second, y)
    third = receive_fd(child, two)
    for fd in (second, third):
        exchange(stage, child, fd, y)
        child.close(fd)
    b.recv(y, 10)


@behaviour("sendmmsg SCM_RIGHTS", "recvmmsg SCM_RIGHTS")
def rights_many(stage: Stage) -> None:
    a = stage.a
    one, two = a.pair(SEQPACKET)
    stage.listener()  # from here on children see what becomes of our sockets
    child = a.fork("c")
    pairs = [stage.connection() for _ in range(2)]
    messages(a, "sendmmsg", one, [rights(x) for x, _ in pairs])
    for x, _ in pairs:
        a.close(x)
    got = messages(child, "recvmmsg", two, [bytes(24)] * 3)
    for control, (_, y) in zip(got, pairs, strict=False):
        exchange(stage, child, struct.unpack_from("=i", control, 16)[0], y)


def messages(side: Side, name: str, fd: int, controls: list[bytes]) -> list[bytes]:
    """sendmmsg or recvmmsg of one byte each; the control buffers afterwards."""
    memory = side.link.memory()
    where = [memory.both(control) for control in controls]
    pieces = [memory.put(struct.pack("=QQ", memory.put(b"m"), 1)) for _ in controls]
    vector = memory.put(b"".join(struct.pack("=QIIQQQQI4xQ", 0, 0, 0, piece, 1, control, 24, 0, 0)
                                 for piece, control in zip(pieces, where, strict=True)))
    more = (DONTWAIT, 0) if name == "recvmmsg" else (0,)
    return side.sys(name, fd, vector, len(controls), *more, memory=memory, text=f"{fd}, {len(controls)}").pieces


@behaviour("sendmsg SCM_RIGHTS that nobody receives", carried=False)
def rights_lost(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    x, y = stage.connection()
    z, w = stage.connection()
    hand(a, one, x, z)
    a.close(x)
    b.poll([(y, IN)])
    exchange(stage, a, z, w)
    a.close(two)
    b.recv(y, 10)
    hand(a, one, z)
    exchange(stage, a, z, w)
    a.close(z)
    b.recv(w, 10)


@behaviour("sendmsg SCM_RIGHTS to one that begins another program before it receives")
def rights_exec_later(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    stage.listener()  # from here on children see what becomes of our sockets
    child = a.fork("c")
    x, y = stage.connection()
    b.send(y, b"unread")
    hand(a, one, x)
    a.close(x)
    child.exec()
    z = receive_fd(child, two)
    child.recv(z, 100)
    exchange(stage, child, z, y)


@behaviour("sendmsg SCM_RIGHTS to another program", carried=False)
def rights_exec_before(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    stage.listener()  # from here on children see what becomes of our sockets
    child = a.fork("c")
    child.exec()
    x, y = stage.connection()
    b.send(y, b"unread")
    hand(a, one, x)
    z = receive_fd(child, two)
    child.recv(z, 100)
    exchange(stage, child, z, y)
    exchange(stage, a, x, y)
    a.close(x)
    exchange(stage, child, z, y)


@behaviour("sendmsg SCM_RIGHTS between processes that have a connection of their own")
def rights_named(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    child = a.fork("c")
    ours, theirs = named(stage, child)
    exchange(stage, a, x, y)
    stage.b.send(y, b"unread")
    hand(a, ours, x)
    a.close(x)
    z = receive_fd(child, theirs)
    child.close(x)
    child.recv(z, 100)
    exchange(stage, child, z, y)
    exchange(stage, child, z, y, b"again")


@behaviour("sendmsg SCM_RIGHTS to a program that was started elsewhere", carried=False)
def rights_elsewhere(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ours, theirs = named(stage, thief)
    x, y = stage.connection()
    b.send(y, b"unread")
    hand(a, ours, x)
    z = receive_fd(thief, theirs)
    thief.recv(z, 3)
    a.recv(x, 100)
    exchange(stage, thief, z, y)
    exchange(stage, a, x, y)


@behaviour("sendmsg SCM_RIGHTS to a program that was started elsewhere, and has it alone then", carried=False)
def rights_away(stage: Stage) -> None:
    """Both ends may move up again."""
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ours, theirs = named(stage, thief)
    x, y = stage.connection()
    ep = b.epoll()
    b.ctl(ep, "add", y, IN)
    b.send(y, b"unread")
    hand(a, ours, x)
    a.close(x)
    z = receive_fd(thief, theirs)
    thief.recv(z, 100)
    for number in range(12):
        exchange(stage, thief, z, y, b"message %d" % number)
    thief.send(z, b"ready")
    b.wait(ep)
    b.recv(y, 100)
    b.wait(ep, timeout=0)
    copy = thief.fork("copy")
    exchange(stage, copy, z, y)
    copy.close(z)
    thief.close(z)
    b.wait(ep)
    b.recv(y, 10)


@behaviour("sendmsg SCM_RIGHTS there and back", carried=False)
def rights_back(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ours, theirs = named(stage, thief)
    x, y = stage.connection()
    for turn in range(3):
        b.send(y, b"unread")
        hand(a, ours, x)
        a.close(x)
        z = receive_fd(thief, theirs)
        thief.recv(z, 3)
        for number in range(6):
            thief.send(z, b"from there %d" % number)
            b.recv(y, 100)
        thief.send(z, b"on its way")
        hand(thief, theirs, z)
        thief.close(z)
        x = receive_fd(a, ours)
        a.recv(x, 100)
        b.recv(y, 100)
        for number in range(6):
            exchange(stage, a, x, y, b"turn %d, %d" % (turn, number))


@behaviour("sendmsg SCM_RIGHTS of the unix socket, and a connection through it", carried=False)
def rights_of_the_way(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    thief = b.fork("thief")
    ours, theirs = named(stage, thief)
    x, y = stage.connection()
    hand(a, one, x)
    a.close(receive_fd(a, two))
    hand(a, ours, two)
    a.close(two)
    way = receive_fd(thief, theirs)
    b.send(y, b"unread")
    hand(a, one, x)
    z = receive_fd(thief, way)
    thief.recv(z, 3)
    a.recv(x, 100)
    exchange(stage, thief, z, y)
    exchange(stage, a, x, y)


@behaviour("sendmsg SCM_RIGHTS of a connection that has just been accepted")
def rights_young(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    listener, port = stage.listener()
    child = a.fork("c")
    for _ in range(2):
        y = b.socket()
        b.connect(y, port)
        x = a.accept(listener).value
        hand(a, one, x)
        a.close(x)
        z = receive_fd(child, two)
        stage.with_a(child).talk(z, y)
        exchange(stage, child, z, y)


@behaviour("sendmsg SCM_RIGHTS of what a peer had sent that has closed, to another program",
           "sendmsg SCM_RIGHTS of what a peer had sent that has died, to another program",
           "sendmsg SCM_RIGHTS of what a peer had sent that has reset it, to another program", carried=False)
def rights_of_the_gone(stage: Stage) -> None:
    a = stage.a
    thief = stage.b.fork("thief")
    ours, theirs = named(stage, thief)
    for way in ("closes", "dies", "resets"):
        x = gone(stage, way)
        a.recv(x, 4)
        hand(a, ours, x)
        z = receive_fd(thief, theirs)
        spend(thief, z)
        a.recv(x, 100, DONTWAIT)
        a.close(x)
        thief.close(z)


@behaviour("sendmsg SCM_RIGHTS of what a peer had sent that shut its side, to another program", carried=False)
def rights_of_the_silent(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ours, theirs = named(stage, thief)
    x, y = stage.connection()
    waits = a.thread("other").start.recv(x, 100, PEEK).asleep()
    b.send(y, b"the last bytes")
    waits.end()
    b.shutdown(y, SHUT_WR)
    time.sleep(0.02)
    hand(a, ours, x)
    a.close(x)
    z = receive_fd(thief, theirs)
    spend(thief, z)
    for text in (b"an answer", bytes(1_000_000)):
        waits = thief.start.send(z, text)
        b.recv_all(y, len(text))
        waits.end()
    thief.close(z)
    b.recv(y, 10)


@behaviour("sendmsg SCM_RIGHTS of both ends, with bytes unread", carried=False)
def rights_of_both(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ours, theirs = named(stage, thief)
    far_b, far_a = named(stage, b)
    x, y = stage.connection()
    for turn in range(2):
        a.send(x, b"to b %d" % turn)
        b.send(y, b"to a %d" % turn)
    hand(b, far_a, y)
    w = receive_fd(a, far_b)
    a.recv(w, 3)
    b.send(y, b" and more")
    hand(a, ours, x)
    z = receive_fd(thief, theirs)
    thief.recv_all(z, 21)
    b.recv_all(y, 9)
    exchange(stage, thief, z, y)
    exchange(stage, a, x, y)
    for side, fd in ((b, y), (a, w), (a, x)):
        side.close(fd)
    thief.recv(z, 10)
