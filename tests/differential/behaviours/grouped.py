# SPDX-License-Identifier: Apache-2.0
"""Listeners of one port (SO_REUSEPORT) among which a program of the kernel chooses (BPF): classic, or extended."""

from __future__ import annotations

import struct
from typing import Final

from tests.differential.behaviours.descriptors import exchange
from tests.differential.linux import IN, SO_REUSEPORT, SOL_SOCKET
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

ATTACH_CBPF, ATTACH_EBPF, DETACH, ATTACH_FILTER = 51, 52, 68, 26
RETURN: Final = 0x06  # BPF_RET | BPF_K
PROG_LOAD, SOCKET_FILTER, SK_REUSEPORT = 5, 1, 21
MOVE_R0, EXIT = 0xB7, 0x95


def classic(side: Side, fd: int, which: int, option: int = ATTACH_CBPF) -> None:
    """A program that always answers with a number."""
    memory = side.link.memory()
    code = memory.put(struct.pack("=HBBI", RETURN, 0, 0, which & 0xFFFFFFFF))
    program = memory.put(struct.pack("=H6xQ", 1, code))
    side.sys("setsockopt", fd, SOL_SOCKET, option, program, 16, memory=memory, text=f"{fd}, {option}, return {which}")


def extended(side: Side, which: int, kind: int = SOCKET_FILTER) -> int:
    """The descriptor of one."""
    memory = side.link.memory()
    code = memory.put(struct.pack("=BBhiBBhi", MOVE_R0, 0, 0, which, EXIT, 0, 0, 0))
    name = memory.put(b"GPL\0")
    attributes = memory.put(struct.pack("=IIQQ", kind, 2, code, name) + bytes(104))
    return side.sys("bpf", PROG_LOAD, attributes, 128, memory=memory, text=f"load, return {which}").value


def group(side: Side, other: Side) -> tuple[int, int, int]:
    """Two listeners of one port, the second in `other`; and the port."""
    first = side.socket()
    side.setsockopt(first, SOL_SOCKET, SO_REUSEPORT, 1)
    side.bind(first)
    port = side.port(first)
    second = other.socket()
    other.setsockopt(second, SOL_SOCKET, SO_REUSEPORT, 1)
    other.bind(second, port)
    side.listen(first)
    other.listen(second)
    return first, second, port


def served(stage: Stage, first: int, other: Side, second: int, port: int) -> None:
    """A client; the transcript says which of the two has it."""
    b = stage.b
    fd = b.socket()
    b.connect(fd, port)
    settle()
    for side, listener in ((stage.a, first), (other, second)):
        if side.poll([(listener, IN)]).value:
            x = side.accept(listener).value
            stage.with_a(side).talk(x, fd)
            exchange(stage, side, x, fd)
            side.close(x)
    b.recv(fd, 10)
    b.close(fd)


@behaviour("setsockopt SO_ATTACH_REUSEPORT_CBPF", "setsockopt SO_DETACH_REUSEPORT_BPF")
def reuseport_classic(stage: Stage) -> None:
    a = stage.a
    first, second, port = group(a, a)
    for which in (1, 0, 1):
        classic(a, first, which)
        served(stage, first, a, second, port)
        served(stage, first, a, second, port)
    classic(a, second, 0)
    served(stage, first, a, second, port)
    a.setsockopt(first, SOL_SOCKET, DETACH, 0)
    a.setsockopt(first, SOL_SOCKET, DETACH, 0)


@behaviour("setsockopt SO_ATTACH_REUSEPORT_CBPF, listeners of two processes")
def reuseport_classic_processes(stage: Stage) -> None:
    a = stage.a
    child = a.fork("c")
    first, second, port = group(a, child)
    for which in (1, 0):
        classic(a, first, which)
        served(stage, first, child, second, port)
    child.close(second)
    served(stage, first, a, first, port)


@behaviour("setsockopt SO_ATTACH_REUSEPORT_EBPF")
def reuseport_extended(stage: Stage) -> None:
    a = stage.a
    first, second, port = group(a, a)
    for which in (1, 0):
        program = extended(a, which)
        a.setsockopt(first, SOL_SOCKET, ATTACH_EBPF, program)
        a.close(program)
        served(stage, first, a, second, port)
    a.setsockopt(first, SOL_SOCKET, DETACH, 0)


@behaviour("setsockopt SO_ATTACH_REUSEPORT_CBPF refused (EINVAL)",
           "setsockopt SO_ATTACH_REUSEPORT_EBPF refused (EINVAL, EBADF)",
           "setsockopt SO_DETACH_REUSEPORT_BPF refused (ENOENT)")
def reuseport_refused(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    classic(a, x, 1)
    a.setsockopt(x, SOL_SOCKET, ATTACH_EBPF, 99)
    a.setsockopt(x, SOL_SOCKET, ATTACH_EBPF, y)
    a.setsockopt(x, SOL_SOCKET, ATTACH_CBPF, 1)
    a.setsockopt(x, SOL_SOCKET, DETACH, 0)
    a.setsockopt(x, SOL_SOCKET, SO_REUSEPORT, 1)
    a.setsockopt(x, SOL_SOCKET, DETACH, 0)
    exchange(stage, a, x, y)
