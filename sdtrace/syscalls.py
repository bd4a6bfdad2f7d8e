# SPDX-License-Identifier: Apache-2.0
"""What the filter does with which system call, and why: the one table that feeds filter, supervisor and tests.

Rules name the calls as libseccomp does.  A call that is not listed is allowed.  Of each listed call, the part that
comes from the library's gate is allowed as well, unless the rule says `even_from_gate`.  Arguments are C ints: only
the lower half of the register counts, as in the kernel.

Strict variants are for trees in which some program may be denied something (policy). There the calls by which a
connection could come about are notified wherever they come from: the supervisor performs them itself (enforce.py).  So
nobody who may do anything pays for rules that others have, once the library is in.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from sdlib.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    Deny = Literal["", "tcp", "udp"]
else:
    Deny = str

ARCH_SET_FS: Final = 0x1002
"""`arch_prctl` code, asm/prctl.h."""

INT: Final = 0xFFFFFFFF
"""Mask of an argument that the kernel reads as an int."""

SOCK_TYPE_MASK: Final = 0xF
"""The type without SOCK_NONBLOCK and SOCK_CLOEXEC, linux/net.h."""

EXIT_GROUP: Final = 231
ARCH_PRCTL: Final = 158
EXECVE, EXECVEAT, PRCTL = 59, 322, 157
CONNECT, ACCEPT, ACCEPT4, BIND, LISTEN = 42, 43, 288, 49, 50
SOCKET, SENDTO, SENDMSG, SENDMMSG = 41, 44, 46, 307
PIDFD_GETFD: Final = 438
PR_SET_CHILD_SUBREAPER: Final = 36
MSG_FASTOPEN: Final = 0x20000000
_CLONE_FILES, _CLONE_THREAD = 0x400, 0x10000


@dataclass(frozen=True)
class Match:
    """Argument number `index`, seen through `mask`, equals `value`; `not_zero`: the whole register is not 0."""

    index: int
    mask: int
    value: int
    not_zero: bool = False


@dataclass(frozen=True)
class Rule:
    """One line of the filter: all matches must hold; several rules for one call are alternatives."""

    name: str
    number: int
    action: Literal["notify", "enosys"]
    why: str
    matches: tuple[Match, ...] = ()
    only_if: Literal["always", "io_uring_denied", "exit_notified", "deny_tcp", "deny_udp"] = "always"
    even_from_gate: bool = False


def _tcp_socket(domain: int) -> tuple[Match, ...]:
    """Arguments of a `socket` call that makes a stream socket of an internet family."""
    return (Match(0, INT, domain), Match(1, SOCK_TYPE_MASK, socket.SOCK_STREAM))


_BIRTH = "a process makes its first TCP socket: the place to inject"
_INHERITED = "a process may have inherited its socket (socket activation, inetd): its first use is the place to inject"
_URING = "submissions would pass by the filter and the library; programs fall back to epoll on ENOSYS"

_PERFORMED = "what a rule may deny is performed by the supervisor on a copied address, even when the library asks"
_FAST = "a connection is made by sending; other sends carry bytes of one that was judged when it was made"
_LINEAGE = "what a program is denied is denied to what it starts, so who starts whom must be known"
_SHARING = "descriptors shared between processes could be exchanged between the supervisor's look and the call"
_FASTOPEN = MSG_FASTOPEN

STRICT_RULES: Final = (
    *(Rule(name, number, "notify", _PERFORMED, only_if="deny_tcp", even_from_gate=True) for name, number in
      (("connect", CONNECT), ("accept", ACCEPT), ("accept4", ACCEPT4), ("bind", BIND), ("listen", LISTEN))),
    *(Rule("socket", 41, "notify", "protocols that no rule can be about", (Match(0, INT, domain),), "deny_tcp", True)
      for domain in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET)),
    Rule("sendto", SENDTO, "notify", _FAST, (Match(3, _FASTOPEN, _FASTOPEN),), "deny_tcp", True),
    Rule("sendmsg", SENDMSG, "notify", _FAST, (Match(2, _FASTOPEN, _FASTOPEN),), "deny_tcp", True),
    Rule("sendmmsg", SENDMMSG, "notify", _FAST, (Match(3, _FASTOPEN, _FASTOPEN),), "deny_tcp", True),
    Rule("sendto", SENDTO, "notify", "datagrams have an address each", (Match(4, 0, 0, not_zero=True),), "deny_udp",
    True), Rule("sendmsg", SENDMSG, "notify", "the address lies in memory", (), "deny_udp", True),
    Rule("sendmmsg", SENDMMSG, "notify", "the addresses lie in memory", (), "deny_udp", True),
    Rule("execve", EXECVE, "notify", _LINEAGE, only_if="deny_tcp", even_from_gate=True),
    Rule("execveat", EXECVEAT, "notify", _LINEAGE, only_if="deny_tcp", even_from_gate=True),
    Rule("prctl", PRCTL, "notify", _LINEAGE, (Match(0, INT, PR_SET_CHILD_SUBREAPER),), "deny_tcp", True),
    Rule("clone", 56, "enosys", _SHARING, (Match(0, _CLONE_FILES | _CLONE_THREAD, _CLONE_FILES),), "deny_tcp", True),
    Rule("clone3", 435, "enosys", _SHARING + "; its flags lie in memory, and libcs fall back to clone", (),
    "deny_tcp", True), )

I386_DENIED: Final = (102, 345, 359, 361, 362, 363, 364, 369, 370, 425, 426, 427, 435)
"""socketcall, sendmmsg, socket, bind, connect, listen, accept4, sendto, sendmsg, io_uring_*, clone3 of a 32-bit
program: its arguments look different, so in a strict tree it gets ENOSYS."""
I386_NOTIFIED: Final = (11, 358, 172)
"""execve, execveat, prctl."""
X32_BIT: Final = 0x40000000

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
         "the report must be on disk before the parent sees the program end; the library says so itself (SD_HC_LEAVE), "
         "and only for the process that sdrun has become",
         only_if="exit_notified"),
    Rule("pidfd_getfd", PIDFD_GETFD, "notify",
         "a connection on shared memory goes back to TCP before somebody takes it who cannot see its ring",
         even_from_gate=True),
    Rule("io_uring_setup", 425, "enosys", _URING, only_if="io_uring_denied", even_from_gate=True),
    Rule("io_uring_enter", 426, "enosys", _URING, only_if="io_uring_denied", even_from_gate=True),
    Rule("io_uring_register", 427, "enosys", _URING, only_if="io_uring_denied", even_from_gate=True),
)

SOCKET_NUMBERS: Final = {rule.number: rule.name for rule in RULES if rule.action == "notify"
                         and rule.name not in ("arch_prctl", "exit_group", "pidfd_getfd")}
"""Calls that lead to lazy injection."""

DENIED_ERRNO: Final = errno.ENOSYS


FILTERS: Final = os.path.join(sys.prefix, "share", "sdrun")
"""Where the launcher looks for the variants, too: beside the bin directory of this environment."""


@dataclass(frozen=True)
class Variant:
    """One of the filters that the launcher chooses from. `deny`: tcp, or udp as well."""

    io_uring_denied: bool
    exit_notified: bool
    deny: Deny = ""

    @property
    def file_name(self) -> str:
        """Name of the compiled filter; the launcher builds the same name (launch/filter.c)."""
        parts = ("uring", "deny" if self.io_uring_denied else "allow", self.deny, "exit" if self.exit_notified else "")
        return "-".join(part for part in parts if part) + ".bpf"

    def rules(self) -> tuple[Rule, ...]:
        """The rules that are in force in this variant."""
        active = {"always": True, "io_uring_denied": self.io_uring_denied, "exit_notified": self.exit_notified,
                  "deny_tcp": bool(self.deny), "deny_udp": self.deny == "udp"}
        found = tuple(rule for rule in (*RULES, *STRICT_RULES) if active[rule.only_if])
        # A call that is notified in any case needs no rules about its arguments.
        always = {rule.number for rule in found if rule.even_from_gate and not rule.matches}
        return tuple(rule for rule in found if rule.number not in always or (rule.even_from_gate and not rule.matches))


VARIANTS: Final = (
    *(Variant(uring, leave) for uring in (True, False) for leave in (True, False)),
    *(Variant(True, leave, deny) for deny in ("tcp", "udp") for leave in (True, False)),
)
