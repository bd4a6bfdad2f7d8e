# SPDX-License-Identifier: Apache-2.0
"""What the supervisor reads of a program's memory, garbled in every way: addresses, messages, areas, requests.

The kernel is the oracle where there is one: the same garbled bytes are given to its own call, and what it did is
compared with what was concluded from them, or performed. Memory is this process's own, so nothing needs a second one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from policies import Policy, PolicyError, effective, judge
from sdlib import abi
from sdtrace import calls, datagrams, report
from sdtrace.areas import Area
from sdtrace.enforce import PERFORMED, Enforcer
from sdtrace.hypercalls import Hypercalls
from sdtrace.keepsake import Keepsake
from sdtrace.lineage import Subject
from sdtrace.memory import read_memory
from sdtrace.messages import read_message, read_messages
from sdtrace.notify import Listener, Notification
from sdtrace.offers import Broker
from sdtrace.processes import Process, Program
from sdtrace.workers import Workers
from tests.fuzzing import cases

LIBC = ctypes.CDLL(None, use_errno=True)
ARENA = 1 << 16
DONTWAIT = socket.MSG_DONTWAIT
EDGES = (0, 1, 2, 7, 8, 15, 16, 24, 28, 29, 110, 127, 128, 129, 255, 1024, 1025, 65535, 65536, 2**31 - 1, 2**31,
         2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)  # fmt: skip


class Arena:
    """Memory that ends at a page that is not there."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.memory = mmap.mmap(-1, ARENA + mmap.PAGESIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        assert LIBC.mprotect(ctypes.c_void_p(self.address + ARENA), mmap.PAGESIZE, 0) == 0

    def pointer(self) -> int:
        """Somewhere in it, often near its end, now and then nowhere."""
        match self.rng.randrange(8):
            case 0:
                return self.rng.choice(EDGES)
            case 1 | 2:
                return self.address + ARENA - self.rng.randrange(0, 200)
            case _:
                return self.address + self.rng.randrange(ARENA)

    def length(self) -> int:
        return self.rng.choice(EDGES) if self.rng.randrange(4) == 0 else self.rng.randrange(0, 130)

    def put(self, at: int, data: bytes) -> None:
        """Store what fits."""
        place = at - self.address
        if 0 <= place < ARENA:
            data = data[: ARENA - place]
            self.memory[place:place + len(data)] = data

    def read(self, address: int, length: int) -> bytes:
        return read_memory(os.getpid(), address, length) if length else b""


def an_address(rng: random.Random, ports: list[int]) -> bytes:
    """A socket address, more or less."""
    port = struct.pack(">H", rng.choice([*ports, 0, 1, 65535]))
    v4 = socket.inet_aton(rng.choice(["127.0.0.1", "0.0.0.0", "127.0.0.2", "255.255.255.255", "224.0.0.1"]))
    mapped = bytes(10) + b"\xff\xff" + v4
    v6 = rng.choice([bytes(15) + b"\1", bytes(16), mapped, bytes(12) + v4, b"\xfe\x80" + bytes(14)])
    family = rng.choice([0, 1, 2, 2, 2, 10, 10, 16, 17, rng.randrange(65536)])
    body = port + v4 + bytes(8) if rng.randrange(2) else port + rng.choice([bytes(4), rng.randbytes(4)]) + v6 + bytes(4)
    whole = bytearray(struct.pack("=H", family) + body)
    if rng.randrange(4) == 0:
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    cut = rng.choice([len(whole), len(whole), len(whole), 16, 28, 24, 15, 23, 2, 1, 0, 128])
    return bytes(whole[:cut]).ljust(cut if cut in (16, 24, 28, 128) else 0, b"\0")


def test_no_address_leads_elsewhere_than_was_concluded() -> None:
    """Where the kernel goes with these bytes is where `target` says, by connect, bind and sendto."""
    rng = random.Random(11)
    ports = [rng.randrange(20000, 60000) for _ in range(3)]
    seen = {"connected": 0, "bound": 0}
    for case in range(cases(3_000, 100_000)):
        data = an_address(rng, ports)
        domain = rng.choice([socket.AF_INET, socket.AF_INET6])
        with socket.socket(domain, socket.SOCK_DGRAM) as sock:
            where = calls.target(data, unspec_is_inet=False)
            if calls.connect(sock.fileno(), data) == 0:
                try:
                    peer = sock.getpeername()
                except OSError:
                    continue  # AF_UNSPEC has disconnected it, or IPv6 to port 0
                seen["connected"] += 1
                assert where is not None and _same(where, peer[:2]), (case, data, where, peer)
        with socket.socket(domain, socket.SOCK_DGRAM) as sock:
            if calls.bind(sock.fileno(), data) == 0:
                where = calls.target(data, unspec_is_inet=domain == socket.AF_INET)
                asked = sock.getsockname()[1]
                seen["bound"] += 1
                assert where is not None and where.port in (0, asked), (case, data, where)
    assert min(seen.values()) > 100, seen


def _same(where: calls.Target, peer: tuple[str, int]) -> bool:
    family = socket.AF_INET if len(where.packed) == 4 else socket.AF_INET6
    host = peer[0].partition("%")[0]
    if ":" in host and family == socket.AF_INET:
        host = host.rpartition(":")[2]
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    ours = where.packed
    mapped = bytes(10) + b"\xff\xff"
    return (packed.removeprefix(mapped), peer[1]) == (ours.removeprefix(mapped), where.port)


def a_header(arena: Arena, ports: list[int]) -> bytes:
    """struct msghdr with an address, buffers and control data in the arena, or not quite."""
    rng = arena.rng
    name, iov, control = arena.pointer(), arena.pointer(), arena.pointer()
    address = an_address(rng, ports)
    arena.put(name, address)
    count = rng.choice([0, 1, 1, 2, 5, 1024, 1025, 2**40])
    for index in range(min(count, 5)):
        length = rng.choice([arena.length(), rng.randrange(50)])
        arena.put(iov + 16 * index, struct.pack("=QQ", arena.pointer(), length))
    level = rng.choice([1, 1, 0, 41, rng.randrange(300)])
    fields = rng.choice([20, 24, 16, *EDGES]), level, rng.choice([1, 2, 8]), rng.choice([-1, 0, 2])
    arena.put(control, struct.pack("=Qiii", *fields))
    namelen = rng.choice([len(address), len(address), arena.length()]) & 0xFFFFFFFF
    controllen = rng.choice([0, 0, 0, 20, 24, arena.length()])
    name = rng.choice([name, name, 0])
    return struct.pack("=QIxxxxQQQQi4x", name, namelen, iov, count, control, controllen, rng.randrange(99))


def raw_sendmsg(fd: int, at: int) -> int:
    result = int(LIBC.syscall(ctypes.c_long(46), ctypes.c_int(fd), ctypes.c_void_p(at), ctypes.c_int(0x4040)))
    return result if result >= 0 else -ctypes.get_errno()


def test_messages_are_sent_as_the_kernel_would() -> None:
    """The kernel's sendmsg on the garbled memory, and ours on what we have read of it: same outcome, same datagram."""
    rng = random.Random(12)
    arena = Arena(rng)
    sent = failed = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        ports = [receiver.getsockname()[1]]
        for case in range(cases(4_000, 200_000)):
            at = arena.pointer()
            arena.put(at, a_header(arena, ports))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(("127.0.0.1", ports[0]))
                wanted = raw_sendmsg(sock.fileno(), at), drained(receiver)
                try:
                    message = read_message(arena.read, at, 1 << 20)
                    got = calls.sendmsg(sock.fileno(), message.data, DONTWAIT, message.address, message.control)
                except OSError as error:
                    got = -(error.errno or 0)
                ours = got, drained(receiver)
            if wanted[0] >= 0 or ours[0] >= 0:
                assert ours == wanted, f"{case}: {ours[0]} {wanted[0]} {shown(arena, at)}"
                sent += 1
            else:  # several things may be wrong with a message, and which is said first is nobody's business
                failed += 1
    assert min(sent, failed) > 200, (sent, failed)


def shown(arena: Arena, at: int) -> object:
    """A header and its buffers, for a failure's message."""
    header = struct.unpack("=QixxxxQQQQi4x", arena.read(at, 56))
    size = 16 * min(header[3], 5)
    return [hex(x) for x in header], [hex(x) for x in struct.unpack(f"={size // 8}Q", arena.read(header[2], size))]


def drained(receiver: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(receiver.recv(1 << 20))
        except BlockingIOError:
            return found


def test_any_memory_is_messages_or_a_clean_error() -> None:
    """Whole random memory, sendmmsg: bounded reading, whatever lengths and counts say."""
    rng = random.Random(13)
    arena = Arena(rng)
    asked = 0

    def read(address: int, length: int) -> bytes:
        nonlocal asked
        assert 0 <= length <= 1 << 20
        asked += length
        return arena.read(address, length)

    whole = 0
    for _ in range(cases(300, 20_000)):
        at = arena.pointer()
        for index in range(rng.randrange(5)):
            arena.put(at + 64 * index, a_header(arena, [9]))
        asked = 0
        try:
            for _place, message in read_messages(read, at, rng.choice([1, 3, 1024, 2**32 - 1]), 1 << 20):
                with message.control_here(os.dup):
                    whole += 1
        except OSError as error:
            assert error.errno in (errno.EFAULT, errno.EINVAL, errno.EMSGSIZE, errno.ENOBUFS, errno.EBADF), error
        assert asked < 1 << 28, "reads without bounds"
    assert whole > 20


class Answered(Listener):
    """Notes what a program would have been told."""

    def __init__(self) -> None:
        self.answers: list[object] = []
        self.alive = True

    def reply(self, notif: Notification, value: int) -> bool:
        self.answers.append(value)
        return True

    def let_through(self, notif: Notification) -> bool:
        self.answers.append("through")
        return True

    def add_fd(self, notif: Notification, fd: int, *, reply: bool = False, cloexec: bool = True) -> int:
        if reply:
            self.answers.append(("fd", os.fstat(fd).st_ino))
        return 99

    def valid(self, notif: Notification) -> bool:
        return self.alive


def arguments(arena: Arena, fds: list[int], ports: list[int]) -> tuple[int, ...]:
    """Six registers: descriptors, pointers to addresses and messages, lengths, flags, in all orders."""
    rng = arena.rng
    pointer = arena.pointer()
    arena.put(pointer, rng.choice([an_address(rng, ports), a_header(arena, ports)]))
    choices: list[Callable[[], int]] = [lambda: pointer, arena.pointer, arena.length, lambda: rng.choice(EDGES),
                                        lambda: rng.choice([16, 28]), lambda: 0x4000]
    first = rng.choice([*fds, *fds, -1 & 0xFFFFFFFF, 10**6])
    if rng.randrange(2):  # connect, bind, or sendto as they should be
        return first, pointer, 16, 0x4040, pointer, 16
    return first, *(rng.choice(choices)() for _ in range(5))


@pytest.fixture
def denied() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A port that everything is denied to: whoever comes there has got around."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(tcp.getsockname())
        yield tcp, udp


def test_any_call_is_answered_once_and_leads_nowhere_denied(
    denied: tuple[socket.socket, socket.socket],
) -> None:
    """The whole enforcer, with any registers and any memory behind them."""
    rng = random.Random(14)
    arena = Arena(rng)
    port = denied[0].getsockname()[1]
    rules = [f"out tcp *:{port} deny", f"out udp *:{port} deny", f"in tcp *:{port} deny", f"in udp *:{port} deny"]
    settings = effective(Policy(packaged=False), "/bin/guest", [], 0, rules)
    program = Program(os.getpid(), os.getpid(), "/bin/guest")
    process = Process(os.getpid(), os.getpid(), -1, program)
    subject = Subject(process, os.getpid(), "/bin/guest", (settings,))
    enforcer = Enforcer(Workers(Keepsake()), None)
    values: set[object] = set()
    before = len(os.listdir("/proc/self/fd"))
    for case in range(cases(2_500, 100_000)):
        socks = [socket.socket(domain, kind | socket.SOCK_NONBLOCK)
                 for domain in (socket.AF_INET, socket.AF_INET6) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
        listener = Answered()
        listener.alive = rng.randrange(20) > 0
        nr = rng.choice(sorted(PERFORMED))
        args = arguments(arena, [sock.fileno() for sock in socks], [port, 1])
        enforcer.answer(listener, Notification(case, os.getpid(), nr, 0, args), subject)
        join_workers()
        assert len(listener.answers) <= 1 and (listener.answers or not listener.alive), (case, nr, args)
        values.update(listener.answers)
        for sock in socks:
            sock.close()
        assert not select.select(list(denied), [], [], 0)[0], (case, nr, args, "came to a denied port")
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors are lost"
    assert {-errno.EACCES, -errno.EFAULT, -errno.EBADF, 0} <= values, values


def join_workers() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "_one" in thread.name:
            thread.join(30)
            assert not thread.is_alive()


def some_rule(rng: random.Random, port: int) -> str:
    """About datagrams that come in, from parts of this host's own networks."""
    low = rng.randrange(1 << 6)
    networks = [f"127.0.0.{low}", f"127.0.0.{low & 48}/28", "127.0.0.32/27", "127.0.0.0/8"]
    where = rng.choice(["*", "[::1]", "[::/0]", *networks])
    first = rng.choice([port - 5, port, port + 1])
    ports = rng.choice(["*", str(port), f"{first}-{port + 9}", f"1-{port - 1}"])
    return f"in udp {where}:{ports} {rng.choice(['kernel', 'deny'])}"


def test_the_kernel_drops_what_the_engine_denies() -> None:
    """Random rules, compiled to a filter on a socket; who is heard is who `judge` lets in."""
    rng = random.Random(16)
    outcomes = {"deny": 0, "kernel": 0}
    with contextlib.ExitStack() as stack:
        hosts = ["127.0.0.1", *(f"127.0.0.{number}" for number in range(2, 64, 7)), "::1"]
        senders = {}
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            senders[host] = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            senders[host].bind((host, 0))
        for case in range(cases(150, 5_000)):
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.bind(("::", 0))
                sock.setblocking(False)
                port = sock.getsockname()[1]
                rules: list[str] = []
                for _ in range(rng.randrange(1, 8)):
                    with contextlib.suppress(PolicyError):  # one that can never apply is refused
                        effective(Policy(packaged=False), "/bin/guest", [], 0, [*rules, rule := some_rule(rng, port)])
                        rules.append(rule)
                default = rng.choice(["kernel", "deny"])
                settings = effective(Policy(packaged=False), "/bin/guest", [f"default={default}"], 0, rules)
                datagrams.guard(sock, datagrams.compile_rules([settings]))
                for host, sender in senders.items():
                    sender.sendto(b"", ("::1" if ":" in host else "127.0.0.1", port))
                    packed = socket.inet_pton(sender.family, host)
                    verdict = "deny" if judge(settings, "in", "udp", packed, port).action == "deny" else "kernel"
                    outcomes[verdict] += 1
                    heard = bool(select.select([sock], [], [], 0)[0]) and sock.recv(1) == b""
                    assert heard == (verdict == "kernel"), (case, rules, default, host, port)
    assert min(outcomes.values()) > 100, outcomes


def test_any_request_of_the_library_and_any_area(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Requests with any numbers, while the program writes what it likes into its area; reports are still made."""
    monkeypatch.setenv("SOCKSDIRECT_MONITOR", str(tmp_path / "none"))
    rng = random.Random(15)
    arena = Arena(rng)
    settings = effective(Policy(packaged=False), "/bin/guest", [], 0, ["out tcp *:9 kernel"])

    class NoMonitor(Broker):
        def _monitor(self, *, wait: bool = True) -> None:
            return None

    broker = NoMonitor(lambda fd: None, lambda fd: None, lambda exe, uid: settings, lambda: None)
    hypercalls = Hypercalls(broker, lambda exe, uid: settings, accelerate=True, reporting_pid=0,
                            leaving=lambda *_: None)
    process = Process(os.getpid(), os.getpid(), -1, Program(os.getpid(), os.getpid(), "/bin/guest"))
    listener = Answered()
    hypercalls.handle(listener, request((abi.const.SD_HC_AREA, 0)), process)
    (area,) = hypercalls.areas
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        for case in range(cases(1_500, 60_000)):
            garble_area(rng, area)
            block = rng.choice([0, 1, rng.randrange(5000), rng.choice(EDGES) % 2**64])
            place = block | int(area.view.block[block % 4096].gen) << 32 if rng.randrange(2) else block
            args = (rng.choice([*range(8), *EDGES]), rng.choice([sock.fileno(), place, arena.pointer(), 0, 2**32 - 1]),
                    rng.choice([place, arena.length(), 64, 65]))
            listener.answers.clear()
            hypercalls.handle(listener, request(args), process)
            assert len(listener.answers) == 1, (case, args)
            for other in hypercalls.areas[1:]:
                other.close()
            del hypercalls.areas[1:], process.program.areas[1:]
            process.areas = {0: area}
            if case % 100 == 0:
                totals = report.Totals().with_areas(hypercalls.areas)
                report.build([process.program], 0, totals, None, 0, {})
                broker._sweep(now=True)
    area.close()


def request(args: tuple[Any, ...]) -> Notification:
    return Notification(1, os.getpid(), abi.const.SD_HC_NR, 0, (*args, *(0,) * (6 - len(args))))


def garble_area(rng: random.Random, area: Area) -> None:
    """Anywhere in what the program may write: slots, blocks, participants."""
    view = area.view
    for _ in range(4):
        target = rng.choice([view.block[rng.randrange(8)], view.proc[rng.randrange(4)], view.part[rng.randrange(4)]])
        memory = abi.ffi.buffer(abi.ffi.addressof(target))
        place = rng.randrange(0, len(memory) - 8, 4)
        memory[place:place + 8] = rng.choice([bytes(8), b"\xff" * 8, rng.randbytes(8), struct.pack("=II", 1, 2)])


