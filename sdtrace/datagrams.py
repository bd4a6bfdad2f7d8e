# SPDX-License-Identifier: Apache-2.0
"""Datagrams that may not come in: dropped by the kernel, by a filter on the program's own socket (classic BPF).

The rules about incoming UDP are compiled: sender's address and our port, of IPv4 and IPv6, in their order. The filter
is put there before the socket can receive anything (bind, connect and sends are performed by us), in front of one that
the program may have set, and locked: it stays for the socket's life, whoever has it. A policy that is reloaded is for
sockets that come after.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable, Sequence

from policies import Settings
from policies.model import Box

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ATTACH, _LOCK, _GET = 26, 44, 26  # SO_ATTACH_FILTER, SO_LOCK_FILTER, SO_GET_FILTER
_LD_W, _LD_H, _LD_B, _RSH, _AND = 0x20, 0x28, 0x30, 0x74, 0x54
_JEQ, _JGE, _JGT, _JA, _RET = 0x15, 0x35, 0x25, 0x05, 0x06
_NET: Final = 0xFFF00000  # SKF_NET_OFF: offsets from the IP header; others are from the UDP header
_PORT_AT: Final = 2
_SENDER_AT: Final = {4: (_NET + 12,), 6: (_NET + 8, _NET + 12, _NET + 16, _NET + 20)}
_BITS: Final = {4: 32, 6: 128}
_LONGEST: Final = 4096  # BPF_MAXINSNS
_END: Final = -1
"""As the target of a jump: behind the settings' own part."""
_libc: Final = ctypes.CDLL(None, use_errno=True)

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump if true, jump if false, operand."""


def _sender(family: int, box: Box) -> Iterable[tuple[int, int, int]]:
    """(offset, mask, value) of the words that a sender in the box has. Boxes of rules are networks."""
    mask = ~(box.low ^ box.high) & ((1 << _BITS[family]) - 1)
    for number, offset in enumerate(reversed(_SENDER_AT[family])):
        part = mask >> (32 * number) & 0xFFFFFFFF
        if part:
            yield offset, part, box.low >> (32 * number) & 0xFFFFFFFF


def _block(family: int, box: Box, deny: bool) -> list[Instruction]:
    """What a rule says about senders in one box; falls through for others."""
    program: list[Instruction | tuple[int, bool, int]] = []  # three: a jump's code, whether it leaves if true, operand
    if (box.first, box.last) != (0, 65535):
        program += [(_LD_H, 0, 0, _PORT_AT), (_JGE, False, box.first), (_JGT, True, box.last)]
    for offset, mask, value in _sender(family, box):
        program += [(_LD_W, 0, 0, offset), (_AND, 0, 0, mask), (_JEQ, False, value)]
    program.append((_RET, 0, 0, 0) if deny else (_JA, 0, 0, _END))
    placed: list[Instruction] = []
    for position, step in enumerate(program):
        if len(step) == 4:
            placed.append(step)
        else:
            code, when, operand = step
            out = len(program) - 1 - position
            placed.append((code, out if when else 0, 0 if when else out, operand))
    return placed


def _section(family: int, settings: Settings) -> list[Instruction]:
    found = [instruction for rule in settings.rules if (rule.dir, rule.proto) == ("in", "udp")
             for box in rule.boxes if box.family == family
             for instruction in _block(family, box, rule.action == "deny")]  # fmt: skip
    return [*found, (_RET, 0, 0, 0) if settings.action == "deny" else (_JA, 0, 0, _END)]


def _part(settings: Settings) -> list[Instruction]:
    """One program's rules: drops, or goes on behind."""
    v4, v6 = _section(4, settings), _section(6, settings)
    program = [(_LD_B, 0, 0, _NET), (_RSH, 0, 0, 4), (_JEQ, 1, 0, 4), (_JA, 0, 0, len(v4)), *v4, *v6]
    return [(code, true, false, len(program) - 1 - position if (code, operand) == (_JA, _END) else operand)
            for position, (code, true, false, operand) in enumerate(program)]


def compile_rules(binding: Iterable[Settings]) -> list[Instruction]:
    """The filter's beginning: drops what any of these denies; the rest goes on behind it."""
    return [instruction for settings in binding if ("in", "udp") in settings.denies
            for instruction in _part(settings)]  # fmt: skip


def _own_filter(sock: socket.socket) -> list[Instruction]:
    """What is on the socket. The option's length counts instructions, not bytes. OSError: EACCES for eBPF."""
    buffer = ctypes.create_string_buffer(8 * _LONGEST)
    count = ctypes.c_uint32(_LONGEST)
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _GET, buffer, ctypes.byref(count)) < 0:
        raise OSError(ctypes.get_errno(), "SO_GET_FILTER")
    return list(struct.iter_unpack("=HBBI", buffer.raw[: 8 * count.value]))


def guard(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Have the kernel drop what `program` drops, for good; OSError EACCES when that is not possible."""
    own = _own_filter(sock)
    if own[: len(program)] == list(program) and sock.getsockopt(socket.SOL_SOCKET, _LOCK):
        return
    whole = [*program, *(own or [(_RET, 0, 0, 0xFFFFFFFF)])]
    if len(whole) > _LONGEST:
        raise OSError(errno.EACCES, "too many rules for a filter")
    memory = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in whole))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("@HP", len(whole), ctypes.addressof(memory)))
        sock.setsockopt(socket.SOL_SOCKET, _LOCK, 1)
    except OSError as error:  # EPERM: the program has locked one of its own
        raise OSError(errno.EACCES, f"SO_ATTACH_FILTER: {error.strerror}") from None
