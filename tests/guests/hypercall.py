# SPDX-License-Identifier: Apache-2.0
"""What a program can do that knows the library's secret number: used by tests/sdtrace/test_hypercalls.py.

    hypercall.py SCENARIO     exits 0 if everything was as it should be
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import subprocess
import sys
import time

from sdlib import abi

C = abi.const
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def ask(*args: int) -> int:
    """One request; the result or -errno."""
    result: int = libc.syscall(ctypes.c_long(C.SD_HC_NR), *(ctypes.c_long(arg) for arg in args))
    return -ctypes.get_errno() if result < 0 else result


def area(index: int) -> tuple[int, abi.CData]:
    """(descriptor, mapped struct sd_area) of area `index`."""
    fd = ask(C.SD_HC_AREA, index)
    assert fd > 2, fd
    return fd, abi.view("struct sd_area", mmap.mmap(fd, abi.sizeof("struct sd_area")))


def block_id(index: int, block: int, generation: int = 0) -> int:
    return generation << 32 | index << 16 | block


def tcp_pair(
    family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1"
) -> tuple[socket.socket, socket.socket]:
    with socket.create_server((host, 0), family=family) as server:
        one = socket.create_connection(server.getsockname()[:2])
        return one, server.accept()[0]


def scenario_area() -> None:
    fd, view = area(0)
    assert view.magic == C.SD_AREA_MAGIC and view.version == C.SD_ABI_VERSION and view.index == 0
    assert view.bytes == abi.sizeof("struct sd_area") == os.fstat(fd).st_size
    assert view.cfg.accel == 0 and view.cfg.reason == C.SD_REASON_policy
    assert not os.get_inheritable(fd)
    for size in (0, 1 << 30):
        try:
            os.ftruncate(fd, size)
        except PermissionError:
            continue
        raise AssertionError("the area can be resized")
    again, _ = area(0)
    assert os.fstat(again).st_ino == os.fstat(fd).st_ino
    other, _ = area(1)
    assert os.fstat(other).st_ino != os.fstat(fd).st_ino
    assert ask(C.SD_HC_AREA, C.SD_MAX_AREAS) == -errno.ENOSPC
    assert ask(C.SD_HC_AREA, -1) == -errno.ENOSPC


def scenario_fork() -> None:
    """A child has its parent's areas, by its memory map, and makes its own new ones."""
    fd, view = area(0)
    pid = os.fork()
    if pid == 0:
        same, _ = area(0)
        assert os.fstat(same).st_ino == os.fstat(fd).st_ino
        mine, _ = area(1)
        os._exit(0 if os.fstat(mine).st_ino != os.fstat(fd).st_ino else 1)
    assert os.waitpid(pid, 0)[1] == 0
    theirs, _ = area(1)
    assert view.magic == C.SD_AREA_MAGIC and theirs > 2


def scenario_hostile() -> None:
    """Every wrong value is an errno; the supervisor is asked for something sensible in the end."""
    invalid = -errno.EINVAL
    _, view = area(0)
    sock = socket.socket()
    big = (1 << 63) - 1
    for call in (0, 8, 10, 99, -1, big):
        assert ask(call, 0, 0) == invalid, call
    assert ask(C.SD_HC_LEAVE, 3, 0) == 0  # a lie: the report is written now, and again at the end
    pid = os.fork()
    if pid == 0:
        os._exit(int(ask(C.SD_HC_LEAVE, 3, 0) != invalid))
    assert os.waitpid(pid, 0)[1] == 0
    other_areas, no_such_block, stale = (1, 0xFFFF), (C.SD_AREA_BLOCKS, 0xFFFF), block_id(0, 0, 1)
    for bad in (*(block_id(i, 0) for i in other_areas), *(block_id(0, b) for b in no_such_block), stale, -1):
        assert ask(C.SD_HC_OFFER, sock.fileno(), bad) == invalid, bad
        assert ask(C.SD_HC_ATTACH, sock.fileno(), bad) == invalid, bad
        assert ask(C.SD_HC_WITHDRAW, bad) == invalid, bad
    view.block[5].state = C.SD_BLOCK_TCP
    assert ask(C.SD_HC_OFFER, sock.fileno(), block_id(0, 6)) == invalid  # a free block
    for state in (C.SD_BLOCK_PAIRED, C.SD_BLOCK_ATTACHED, C.SD_BLOCK_PINNED, 77, 0xFFFFFFFF):
        view.block[6].state = state
        assert ask(C.SD_HC_OFFER, sock.fileno(), block_id(0, 6)) == invalid
    assert ask(C.SD_HC_OFFER, -1, block_id(0, 5)) == invalid
    assert ask(C.SD_HC_OFFER, 900, block_id(0, 5)) == -errno.EBADF
    pipe = os.pipe()
    for not_a_connection in (sock.fileno(), 0, pipe[0], socket.socket(socket.AF_UNIX).detach()):
        assert ask(C.SD_HC_OFFER, not_a_connection, block_id(0, 5)) == C.SD_OFFER_REFUSED
    assert ask(C.SD_HC_ATTACH, sock.fileno(), block_id(0, 5)) == -errno.ENOENT
    assert ask(C.SD_HC_EXEC, 0, 1) == -errno.EFAULT
    assert ask(C.SD_HC_EXEC, 0x1000, C.SD_CARRY_MAX) == -errno.EFAULT
    for count in (C.SD_CARRY_MAX + 1, -1, big):
        assert ask(C.SD_HC_EXEC, 0x1000, count) == invalid
    carry = (ctypes.c_int32 * 2)(3, block_id(9, 0))
    assert ask(C.SD_HC_EXEC, ctypes.addressof(carry), 1) == invalid
    assert ask(C.SD_HC_AREA, 0) > 2


def offer(view: abi.CData, block: int, sock: socket.socket) -> int:
    view.block[block].state = C.SD_BLOCK_OFFERED
    return ask(C.SD_HC_OFFER, sock.fileno(), block_id(0, block))


def scenario_kin() -> None:
    """Who has the other end of a unix socket, and has our area."""
    _, view = area(0)
    one, two = socket.socketpair()
    assert ask(C.SD_HC_KIN, -1) == -errno.EINVAL
    assert ask(C.SD_HC_KIN, 900) == -errno.EBADF
    for other in (os.pipe()[1], socket.socket().detach(), socket.socket(socket.AF_UNIX).detach()):
        assert ask(C.SD_HC_KIN, other) == 0
    assert ask(C.SD_HC_KIN, one.fileno()) == 0  # we have not said who we are
    view.procs_top = 4
    view.proc[3].pid = os.getpid()
    assert ask(C.SD_HC_KIN, one.fileno()) == 1
    view.proc[3].execs = 1
    assert ask(C.SD_HC_KIN, one.fileno()) == 0
    view.proc[3].execs = 0
    stranger = subprocess.Popen(["sleep", "60"], pass_fds=[two.fileno()])
    assert ask(C.SD_HC_KIN, one.fileno()) == 0
    assert ask(C.SD_HC_KIN, two.fileno()) == 1  # that is of who has `one`
    stranger.kill()
    stranger.wait()
    assert ask(C.SD_HC_KIN, one.fileno()) == 1
    two.close()
    assert ask(C.SD_HC_KIN, one.fileno()) == 0
    nobody = os.fork()
    if nobody == 0:
        os._exit(int(ask(C.SD_HC_KIN, one.fileno()) != 0))
    assert os.waitpid(nobody, 0)[1] == 0


def scenario_pair() -> None:
    """Both ends offered: the second is paired at once, the first by its block; both get the same segment."""
    _, view = area(0)
    for position, (family, host) in enumerate(((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))):
        one, two = 10 + 2 * position, 11 + 2 * position
        left, right = tcp_pair(family, host)
        assert offer(view, one, left) == C.SD_OFFER_PENDING
        assert ask(C.SD_HC_ATTACH, left.fileno(), block_id(0, one)) == -errno.ENOENT
        assert offer(view, two, right) == C.SD_OFFER_PAIRED
        deadline = time.monotonic() + 5
        while view.block[one].state != C.SD_BLOCK_PAIRED:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        fds = [ask(C.SD_HC_ATTACH, s.fileno(), block_id(0, b)) for s, b in ((left, one), (right, two))]
        assert min(fds) > 2 and os.fstat(fds[0]).st_ino == os.fstat(fds[1]).st_ino
        assert {view.block[one].side, view.block[two].side} == {0, 1}
        segment = abi.view("struct sd_seg", mmap.mmap(fds[0], C.SD_SEG_HDR_BYTES))
        assert segment.magic == C.SD_SEG_MAGIC
        again = ask(C.SD_HC_ATTACH, left.fileno(), block_id(0, one))  # as a program that lived through execve does
        assert again > 2 and os.fstat(again).st_ino == os.fstat(fds[0]).st_ino


def scenario_withdraw() -> None:
    """A withdrawn offer is not paired, and closing the socket is seen by the other end at once: nobody holds it."""
    _, view = area(0)
    left, right = tcp_pair()
    assert offer(view, 20, left) == C.SD_OFFER_PENDING
    assert ask(C.SD_HC_WITHDRAW, block_id(0, 20)) == 0
    assert offer(view, 21, right) == C.SD_OFFER_PENDING
    left.close()
    right.settimeout(2)
    assert right.recv(1) == b""


def scenario_counters() -> None:
    """Numbers for the report: two processes and the blocks that nobody has closed."""
    _, view = area(0)
    counters = {name: position for position, name in enumerate(abi.COUNTERS)}
    reasons = {name: position for position, name in enumerate(abi.REASONS)}
    view.procs_top = 2
    for slot, pid in ((0, os.getpid()), (1, 4_000_000)):
        view.proc[slot].pid = pid
        view.proc[slot].ctr[counters["conns_total"]] = 10
        view.proc[slot].ctr[counters["conns_shm"]] = 7
        view.proc[slot].ctr[counters["conns_tcp"]] = 3
        view.proc[slot].ctr[counters["sites_patched"]] = 100 + slot
        view.proc[slot].ctr[counters["bytes_shm_tx"]] = 1 << 40
        view.proc[slot].tcp_reasons[reasons["few-operations"]] = 3
        view.proc[slot].moved_back[reasons["socket-option"]] = 1
    tcp, offered, attached = C.SD_BLOCK_TCP, C.SD_BLOCK_OFFERED, C.SD_BLOCK_ATTACHED
    for block, state in enumerate((tcp, offered, attached, attached, tcp)):
        view.block[block].state = state
        view.block[block].established = block != 4  # a listener or an unconnected socket is no connection
    view.block[3].rx_mode = view.block[3].tx_mode = C.SD_MODE_RING


def scenario_exec() -> None:
    """Announce an exec; the new program finds itself injected although it makes no socket."""
    _, view = area(0)
    view.block[1].state = C.SD_BLOCK_TCP
    carry = (ctypes.c_int32 * 2)(0, block_id(0, 1))
    assert ask(C.SD_HC_EXEC, ctypes.addressof(carry), 1) == 0
    os.execv("/bin/cat", ["cat", "/proc/self/maps"])


if __name__ == "__main__":
    globals()[f"scenario_{sys.argv[1]}"]()
    print("fine")
