# SPDX-License-Identifier: Apache-2.0
"""What the filter does with which system call, and why: the one table that feeds filter, supervisor and tests.

Rules name the calls as libseccomp does.  A call that is not listed is allowed.  Of each listed call, the part that
comes from the library's gate is allowed as well, unless the rule says `even_from_gate`.  Arguments are C ints: only
the lower half of the register counts, as in the kernel.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Final, Literal

ARCH_SET_FS: Final = 0x1002
"""`arch_prctl` code, asm/prctl.h."""

INT: Final = 0xFFFFFFFF
"""Mask of an argument that the kernel reads as an int."""

SOCK_TYPE_MASK: Final = 0xF
"""The type without SOCK_NONBLOCK and SOCK_CLOEXEC, linux/net.h."""

EXIT_GROUP: Final = 231
ARCH_PRCTL: Final = 158


@dataclass(frozen=True)
class Match:
    """Argument number `index`, seen through `mask`, equals `value`."""

    index: int
    mask: int
    value: int


@dataclass(frozen=True)
class Rule:
    """One line of the filter: all matches must hold; several rules for one call are alternatives."""

    name: str
    number: int
    action: Literal["notify", "enosys"]
    why: str
    matches: tuple[Match, ...] = ()
    only_if: Literal["always", "io_uring_denied", "exit_notified"] = "always"
    even_from_gate: bool = False


def _tcp_socket(domain: int) -> tuple[Match, ...]:
    """Arguments of a `socket` call that makes a stream socket of an internet family."""
    return (Match(0, INT, domain), Match(1, SOCK_TYPE_MASK, socket.SOCK_STREAM))


_BIRTH = "a process makes its first TCP socket: the place to inject"
_INHERITED = "a process may have inherited its socket (socket activation, inetd): its first use is the place to inject"
_URING = "submissions would pass by the filter and the library; programs fall back to epoll on ENOSYS"

RULES: Final = (
    Rule("socket", 41, "notify", _BIRTH, _tcp_socket(socket.AF_INET)),
    Rule("socket", 41, "notify", _BIRTH, _tcp_socket(socket.AF_INET6)),
    Rule("connect", 42, "notify", _INHERITED),
    Rule("accept", 43, "notify", _INHERITED),
    Rule("accept4", 288, "notify", _INHERITED),
    Rule("bind", 49, "notify", _INHERITED),
    Rule("listen", 50, "notify", _INHERITED),
    Rule("arch_prctl", ARCH_PRCTL, "notify",
         "every libc and Go set the thread pointer once per exec, early and single-threaded: a new program image",
         (Match(0, INT, ARCH_SET_FS),)),
    Rule("exit_group", EXIT_GROUP, "notify",
         "the report must be on disk before the parent sees the program end",
         only_if="exit_notified", even_from_gate=True),
    Rule("io_uring_setup", 425, "enosys", _URING, only_if="io_uring_denied", even_from_gate=True),
    Rule("io_uring_enter", 426, "enosys", _URING, only_if="io_uring_denied", even_from_gate=True),
    Rule("io_uring_register", 427, "enosys", _URING, only_if="io_uring_denied", even_from_gate=True),
)

SOCKET_NUMBERS: Final = {rule.number: rule.name for rule in RULES if rule.action == "notify"
                         and rule.name not in ("arch_prctl", "exit_group")}
"""Calls that lead to lazy injection."""

DENIED_ERRNO: Final = errno.ENOSYS


@dataclass(frozen=True)
class Variant:
    """One of the filters that the launcher chooses from."""

    io_uring_denied: bool
    exit_notified: bool

    @property
    def file_name(self) -> str:
        """Name of the compiled filter; the launcher builds the same name (launch/filter.c)."""
        return f"uring-{'deny' if self.io_uring_denied else 'allow'}{'-exit' if self.exit_notified else ''}.bpf"

    def rules(self) -> tuple[Rule, ...]:
        """The rules that are in force in this variant."""
        active = {"always": True, "io_uring_denied": self.io_uring_denied, "exit_notified": self.exit_notified}
        return tuple(rule for rule in RULES if active[rule.only_if])


VARIANTS: Final = tuple(Variant(uring, leave) for uring in (True, False) for leave in (True, False))
