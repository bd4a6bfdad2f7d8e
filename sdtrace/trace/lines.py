# SPDX-License-Identifier: Apache-2.0
"""Records as lines in the manner of strace, with what carried the bytes.

    [pid 4711] 12:34:56.789012 sendto(5, 0x7ffc01d0, 8, 0) = 8 <0.000000214> ring
    [pid 4711] 12:34:56.789013 recvfrom(5, 0x7ffc01d0, 8, 0) = -1 EAGAIN (...) <0.000001012> ring kernel
"""

from __future__ import annotations

import errno
import os
import time
from functools import cache, lru_cache
from typing import Final

from sdlib import abi
from sdtrace.trace.stream import Clock, Record

CALLS: Final[dict[int, tuple[str, str]]] = {
    0: ("read", "dpn"), 1: ("write", "dpn"), 3: ("close", "d"), 7: ("poll", "pnn"), 13: ("rt_sigaction", "npp"),
    14: ("rt_sigprocmask", "npp"), 16: ("ioctl", "dxp"), 19: ("readv", "dpn"), 20: ("writev", "dpn"),
    23: ("select", "nppp"), 32: ("dup", "d"), 33: ("dup2", "dd"), 40: ("sendfile", "ddpn"), 41: ("socket", "nnn"),
    42: ("connect", "dpn"), 49: ("bind", "dpn"), 50: ("listen", "dn"),
    43: ("accept", "dpp"), 44: ("sendto", "dpnx"), 45: ("recvfrom", "dpnx"),
    46: ("sendmsg", "dpx"), 47: ("recvmsg", "dpx"), 48: ("shutdown", "dn"), 54: ("setsockopt", "dnnp"),
    55: ("getsockopt", "dnnp"), 56: ("clone", "xpp"), 57: ("fork", ""), 58: ("vfork", ""), 59: ("execve", "ppp"),
    60: ("exit", "n"), 72: ("fcntl", "dnx"), 130: ("rt_sigsuspend", "pn"), 131: ("sigaltstack", "pp"),
    157: ("prctl", "nxxx"), 158: ("arch_prctl", "xp"), 200: ("tkill", "nn"), 213: ("epoll_create", "n"),
    231: ("exit_group", "n"), 234: ("tgkill", "nnn"),
    232: ("epoll_wait", "dpnn"), 233: ("epoll_ctl", "dndp"), 270: ("pselect6", "nppp"), 271: ("ppoll", "pnpp"),
    272: ("unshare", "x"), 275: ("splice", "dpdp"),
    281: ("epoll_pwait", "dpnn"), 288: ("accept4", "dppx"), 291: ("epoll_create1", "x"),
    292: ("dup3", "ddx"), 299: ("recvmmsg", "dpnx"), 307: ("sendmmsg", "dpnx"), 317: ("seccomp", "nxp"),
    322: ("execveat", "dppp"), 327: ("preadv2", "dpnn"), 328: ("pwritev2", "dpnn"), 435: ("clone3", "pn"),
    436: ("close_range", "nnx"), 438: ("pidfd_getfd", "ddx"), 441: ("epoll_pwait2", "dpnp"),
}  # fmt: skip
"""Every call of sdlib/src/gate/calls.h: name, and how its first four arguments are shown."""

PATHS: Final = {
    abi.const.SD_TRACE_PATH_NONE: "library", abi.const.SD_TRACE_PATH_RING: "ring",
    abi.const.SD_TRACE_PATH_KERNEL: "kernel", abi.const.SD_TRACE_PATH_BACK: "moved-back",
}  # fmt: skip
PATH_NUMBERS: Final = {name: number for number, name in PATHS.items()}
EXTRAS: Final = ((abi.const.SD_TRACE_SPUN, "spun"), (abi.const.SD_TRACE_BELL, "bell"),
                  (abi.const.SD_TRACE_PARKED, "parked"), (abi.const.SD_TRACE_KERNEL, "kernel"))
DIRECT: Final = ("kernel", "moved-back")
RESTARTS: Final = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}


def name_of(record: Record) -> str:
    """The call's name."""
    known = CALLS.get(record.nr)
    return known[0] if known else f"syscall_{record.nr}"


def is_call(record: Record) -> bool:
    """Is it a call, and not bytes of a connection?"""
    return record.nr < abi.const.SD_TRACE_OWNER


def _signed(value: int) -> int:
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _argument(form: str, value: int) -> str:
    if form == "p":
        return "NULL" if value == 0 else hex(value)
    if form == "d":
        return str(_signed(value))
    if form == "x":
        return hex(value) if value else "0"
    return str(value if value < 1 << 63 else value - (1 << 64)) if value >> 32 else str(_signed(value))


def fd_of(record: Record) -> int | None:
    """The descriptor in the first argument, if it takes one there."""
    known = CALLS.get(record.nr)
    return _signed(record.args[0]) if known and known[1].startswith("d") else None


def has_result(record: Record) -> bool:
    """Was it still there when the call was over?"""
    return not record.bits & abi.const.SD_TRACE_NO_RESULT


def error_of(record: Record) -> str:
    """"EAGAIN", or "" when it has succeeded."""
    number = -record.result
    return _error(number) if 0 < number < 4096 and has_result(record) else ""


@cache
def _error(number: int) -> str:
    return RESTARTS.get(number) or errno.errorcode.get(number, f"E{number}")


def path_of(record: Record) -> str:
    """What carried it: ring, kernel, moved-back; library where no connection's bytes are in it."""
    return PATHS.get(record.path, "?")


def _result(record: Record) -> str:
    result = record.result
    if not has_result(record):
        return "?"
    if -4096 < result < 0:
        return _failure(-result)
    return hex(result) if result > 1 << 40 else str(result)


@cache
def _failure(number: int) -> str:
    return f"-1 {_error(number)} ({os.strerror(number)})"


@lru_cache(maxsize=16)
def _second(when_s: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when_s))


@cache
def _where(path: int, bits: int) -> str:
    name = PATHS.get(path, "?")
    return " ".join([name, *(text for bit, text in EXTRAS
                             if bits & bit and not (text == "kernel" and name in DIRECT))])  # fmt: skip


def line(record: Record, clock: Clock) -> str:
    """One call. This is what limits how many lines a second there can be."""
    name, forms = CALLS.get(record.nr) or (name_of(record), "xxxx")
    args = ", ".join(map(_argument, forms, record.args))
    when_s, ns = divmod(clock.ns(record.tsc), 1_000_000_000)
    who = f"{record.pid}" if record.pid == record.tid else f"{record.pid}/{record.tid}"
    took = f" <{clock.seconds(record.ticks):.9f}>" if has_result(record) else ""
    where = _where(record.path, record.bits)
    return f"[pid {who}] {_second(when_s)}.{ns // 1000:06} {name}({args}) = {_result(record)}{took} {where}"
