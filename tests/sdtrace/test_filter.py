# SPDX-License-Identifier: Apache-2.0
"""The compiled filter against the table it comes from: every call, from outside and from the gate.

A BPF machine of a few lines runs the very bytes that the launcher installs.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdlib import abi
from sdtrace.build_filter import (
    AUDIT_ARCH_X86_64,
    RET_ALLOW,
    RET_ERRNO,
    RET_USER_NOTIF,
    FilterError,
    compile_filter,
    prologue,
)
from sdtrace.syscalls import DENIED_ERRNO, VARIANTS, Variant

GATE = (0x2D0000001000, 0x2D0000003000)
AUDIT_ARCH_I386 = 0x40000003
X32 = 0x40000000
OUTSIDE = 0x7F0000001234
ENOSYS = RET_ERRNO | DENIED_ERRNO
SOCK_STREAM, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC = 1, 2, 0o4000, 0o2000000
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10


def bpf_run(
    program: bytes, nr: int, ip: int, args: tuple[int, ...] = (), arch: int = AUDIT_ARCH_X86_64
) -> tuple[int, bool]:
    """The verdict, and whether anything but the number and the architecture was looked at."""
    data = struct.pack("=iIQ6Q", nr if nr < 1 << 31 else nr - (1 << 32), arch, ip, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, position, looked = 0, 0, False
    while True:
        op, jt, jf, k = code[position]
        position += 1
        if op == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
            looked |= k >= 8
        elif op == 0x05:
            position += k
        elif op == 0x54:
            accumulator &= k
        elif op in (0x15, 0x25, 0x35, 0x45):
            tests = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}
            position += jt if tests[op] else jf
        elif op == 0x06:
            return k, looked
        else:
            raise AssertionError(f"instruction {op:#x} at {position - 1}")


LENIENT = [variant for variant in VARIANTS if not variant.deny]
STRICT = [variant for variant in VARIANTS if variant.deny]


@pytest.fixture(params=LENIENT, ids=[variant.file_name for variant in LENIENT])
def built(request: pytest.FixtureRequest) -> Iterator[tuple[Variant, bytes]]:
    yield request.param, compile_filter(request.param, *GATE)


SOCKET_CASES = [
    (AF_INET, SOCK_STREAM, RET_USER_NOTIF),
    (AF_INET6, SOCK_STREAM, RET_USER_NOTIF),
    (AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, RET_USER_NOTIF),
    (AF_INET | 0xABCD00000000, SOCK_STREAM | 0x1234500000000, RET_USER_NOTIF),  # ints: upper halves are noise
    (AF_INET, SOCK_DGRAM, RET_ALLOW),
    (AF_INET6, 3, RET_ALLOW),
    (AF_UNIX, SOCK_STREAM, RET_ALLOW),
    (16, SOCK_STREAM, RET_ALLOW),
]


@pytest.mark.parametrize(("domain", "kind", "verdict"), SOCKET_CASES)
def test_socket_by_domain_and_type(built: tuple[Variant, bytes], domain: int, kind: int, verdict: int) -> None:
    assert bpf_run(built[1], 41, OUTSIDE, (domain, kind, 0))[0] == verdict
    assert bpf_run(built[1], 41, GATE[0] + 2, (domain, kind, 0))[0] == RET_ALLOW


def test_every_number_as_the_table_says(built: tuple[Variant, bytes]) -> None:
    variant, program = built
    conditional = {41, 158}
    for nr in range(600):
        rules = [rule for rule in variant.rules() if rule.number == nr]
        outside, gate = bpf_run(program, nr, OUTSIDE)[0], bpf_run(program, nr, GATE[0] + 2)[0]
        if not rules or nr in conditional:
            assert (outside, gate) == (RET_ALLOW, RET_ALLOW), nr
            continue
        expected = RET_USER_NOTIF if rules[0].action == "notify" else ENOSYS
        assert outside == expected, nr
        assert gate == (expected if rules[0].even_from_gate else RET_ALLOW), nr


def test_unlisted_calls_are_decided_by_number_alone(built: tuple[Variant, bytes]) -> None:
    """Only then does the kernel answer them from its bitmap, without running the filter."""
    variant, program = built
    listed = {rule.number for rule in variant.rules() if not rule.even_from_gate}
    for nr in range(600):
        if nr not in listed:
            assert bpf_run(program, nr, OUTSIDE) == (bpf_run(program, nr, OUTSIDE)[0], False), nr


def test_the_librarys_own_call_always_arrives(built: tuple[Variant, bytes]) -> None:
    for ip in (OUTSIDE, GATE[0], GATE[0] + 2, GATE[1]):
        assert bpf_run(built[1], int(abi.const.SD_HC_NR), ip)[0] == RET_USER_NOTIF


@pytest.mark.parametrize(("ip", "inside"), [
    (GATE[0] - 1, False), (GATE[0], True), (GATE[1] - 1, True), (GATE[1], False),
    (GATE[0] & 0xFFFFFFFF | 0x5 << 32, False), ((GATE[0] >> 32 << 32) + 0xFFFFFFFF, False), (0, False),
])  # fmt: skip
def test_gate_bounds(built: tuple[Variant, bytes], ip: int, inside: bool) -> None:
    assert bpf_run(built[1], 42, ip)[0] == (RET_ALLOW if inside else RET_USER_NOTIF)


def test_arch_prctl_only_for_the_thread_pointer(built: tuple[Variant, bytes]) -> None:
    assert bpf_run(built[1], 158, OUTSIDE, (0x1002,))[0] == RET_USER_NOTIF
    assert bpf_run(built[1], 158, OUTSIDE, (0x1001,))[0] == RET_ALLOW


def test_other_architectures_are_left_alone(built: tuple[Variant, bytes]) -> None:
    for nr in (41, 42, 102, 359, 425, int(abi.const.SD_HC_NR)):
        assert bpf_run(built[1], nr, OUTSIDE, (AF_INET, SOCK_STREAM), AUDIT_ARCH_I386)[0] == RET_ALLOW
    assert bpf_run(built[1], 41 | X32, OUTSIDE, (AF_INET, SOCK_STREAM))[0] == RET_ALLOW


@pytest.mark.parametrize("variant", STRICT, ids=[variant.file_name for variant in STRICT])
def test_strict_variants(variant: Variant) -> None:
    """What could make a connection is notified wherever it comes from; other ways to the same calls are closed."""
    program = compile_filter(variant, *GATE)
    udp, fast = variant.deny == "udp", 0x20000000
    for ip in (OUTSIDE, GATE[0], GATE[0] + 2):
        def verdict(nr: int, *args: int, arch: int = AUDIT_ARCH_X86_64, ip: int = ip) -> int:
            return bpf_run(program, nr, ip, args, arch)[0]

        for nr in (42, 43, 288, 49, 50, 59, 322):
            assert verdict(nr) == RET_USER_NOTIF, nr
        for domain in (AF_INET, AF_INET6, 17):
            assert {verdict(41, domain, kind) for kind in (SOCK_STREAM, SOCK_DGRAM, 3)} == {RET_USER_NOTIF}
        assert verdict(41, AF_UNIX, SOCK_STREAM) == RET_ALLOW
        maybe = RET_USER_NOTIF if udp else RET_ALLOW
        assert verdict(44, 3, 4, 5, 0, 0, 0) == RET_ALLOW
        assert verdict(44, 3, 4, 5, 0, 1 << 32, 16) == verdict(44, 3, 4, 5, 0, 1, 16) == maybe
        assert verdict(46, 3, 4, 0) == verdict(307, 3, 4, 5, 0) == maybe
        assert {verdict(44, 3, 4, 5, fast), verdict(46, 3, 4, fast), verdict(307, 3, 4, 5, fast)} == {RET_USER_NOTIF}
        assert verdict(157, 36, 1) == RET_USER_NOTIF and verdict(157, 15) == RET_ALLOW
        assert verdict(435) == verdict(425) == ENOSYS
        assert verdict(56, 0x400) == ENOSYS and verdict(56, 0x10F00) == verdict(56, 17) == RET_ALLOW
        for nr in (0, 42, 44, 59, 600):
            assert verdict(nr | X32) == ENOSYS
        for nr in (102, 345, 359, 361, 362, 363, 364, 369, 370, 425, 435):
            assert verdict(nr, arch=AUDIT_ARCH_I386) == ENOSYS
        assert {verdict(nr, arch=AUDIT_ARCH_I386) for nr in (11, 358, 172)} == {RET_USER_NOTIF}
        assert verdict(4, arch=AUDIT_ARCH_I386) == RET_ALLOW
        assert bpf_run(program, 1, ip) == (RET_ALLOW, False)


def test_installed_files_fit_the_image() -> None:
    """What the launcher loads was compiled for the gate of the image that is injected."""
    image = json.loads((Path(abi.__file__).parent / "_image" / "sdlib.json").read_text())["symbols"]
    for variant in VARIANTS:
        installed = (Path(sys.prefix) / "share" / "sdrun" / variant.file_name).read_bytes()
        assert installed == compile_filter(variant, image["sd_gate_start"], image["sd_gate_end"])


def test_a_gate_across_four_gigabytes_is_refused() -> None:
    with pytest.raises(FilterError, match="4 GiB"):
        prologue(VARIANTS[0], 0x2D00FFFFF000, 0x2D0100001000)
