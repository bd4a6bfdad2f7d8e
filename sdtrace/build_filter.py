# SPDX-License-Identifier: Apache-2.0
"""Compile `sdtrace.syscalls` into the BPF files that the launcher installs.

    python -m sdtrace.build_filter [--image sdlib.json] [--output DIR]

libseccomp compiles the rules.  It cannot compare the instruction pointer, so the gate test is put in front by hand.
Order of the result, and why:

1. another architecture than x86-64 (i386 on the same machine): allowed, such processes are never injected; in strict
   variants its networking gets ENOSYS;
2. the library's reserved call, and whatever else is wanted even from the gate: decided by number alone;
3. a call that no rule names: allowed by number alone.  The kernel sees that the verdict depends on nothing else
   and puts it into its per-filter bitmap, so most calls never run the program at all;
   In strict variants (syscalls.py), numbers of x32 get ENOSYS, and calls whose arguments decide even when the library
   makes them go on at step 5;
4. the instruction pointer lies in the gate (both halves; it is the address after the instruction): allowed;
5. the rules, as libseccomp compiled them.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import Final

import pyseccomp

from sdlib import abi
from sdtrace.syscalls import DENIED_ERRNO, FILTERS, I386_DENIED, I386_NOTIFIED, VARIANTS, X32_BIT, Match, Variant

AUDIT_ARCH_X86_64: Final = 0xC000003E
LD_W_ABS: Final = 0x20
JEQ_K: Final = 0x15
JGE_K: Final = 0x35
RET_K: Final = 0x06
RET_ALLOW: Final = 0x7FFF0000
RET_USER_NOTIF: Final = 0x7FC00000
RET_ERRNO: Final = 0x00050000
OFF_NR, OFF_ARCH, OFF_IP_LO, OFF_IP_HI = 0, 4, 8, 12
"""Offsets in struct seccomp_data, linux/seccomp.h."""

_GATE_TEST: Final = 6
"""Instructions of the gate test."""

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump if true, jump if false, operand."""


class FilterError(Exception):
    """The filter cannot be built; the text says why."""


def compile_rules(variant: Variant) -> list[Instruction]:
    """Step 5: the rules by libseccomp; calls decided before (step 2) are left out."""
    compiled = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    compiled.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ALLOW)
    for rule in variant.rules():
        if rule.even_from_gate and not rule.matches:
            continue
        arguments = [_argument(match) for match in rule.matches]
        action = pyseccomp.NOTIFY if rule.action == "notify" else pyseccomp.ERRNO(DENIED_ERRNO)
        compiled.add_rule(action, rule.name, *arguments)
    with tempfile.TemporaryFile() as exported:
        compiled.export_bpf(exported)
        exported.seek(0)
        return list(struct.iter_unpack("=HBBI", exported.read()))


def _argument(match: Match) -> pyseccomp.Arg:
    if match.not_zero:
        return pyseccomp.Arg(match.index, pyseccomp.NE, 0)
    return pyseccomp.Arg(match.index, pyseccomp.MASKED_EQ, match.mask, match.value)


def _other_architecture(variant: Variant) -> list[Instruction]:
    """What happens to calls of another architecture; the number is not loaded yet. Never falls through."""
    program: list[Instruction] = []
    if variant.deny:
        program.append((LD_W_ABS, 0, 0, OFF_NR))
        for number in I386_DENIED:
            program += [(JEQ_K, 0, 1, number), (RET_K, 0, 0, RET_ERRNO | DENIED_ERRNO)]
        for number in I386_NOTIFIED:
            program += [(JEQ_K, 0, 1, number), (RET_K, 0, 0, RET_USER_NOTIF)]
    return [*program, (RET_K, 0, 0, RET_ALLOW)]


def prologue(variant: Variant, gate_start: int, gate_end: int) -> list[Instruction]:
    """Steps 1 to 4. Falls through to the rules."""
    if gate_start >> 32 != gate_end >> 32:
        raise FilterError(f"the gate {gate_start:#x}..{gate_end:#x} crosses a 4 GiB boundary: move it in sdlib.ld")
    other = _other_architecture(variant)
    program: list[Instruction] = [
        (LD_W_ABS, 0, 0, OFF_ARCH),
        (JEQ_K, len(other), 0, AUDIT_ARCH_X86_64),
        *other,
        (LD_W_ABS, 0, 0, OFF_NR),
    ]
    if variant.deny:
        program += [(JGE_K, 0, 1, X32_BIT), (RET_K, 0, 0, RET_ERRNO | DENIED_ERRNO)]
    decided = {int(abi.const.SD_HC_NR): RET_USER_NOTIF}
    for rule in variant.rules():
        if rule.even_from_gate and not rule.matches:
            decided[rule.number] = RET_USER_NOTIF if rule.action == "notify" else RET_ERRNO | DENIED_ERRNO
    for number, verdict in decided.items():
        program += [(JEQ_K, 0, 1, number), (RET_K, 0, 0, verdict)]
    even = {rule.number for rule in variant.rules() if rule.even_from_gate} - set(decided)
    named = sorted({rule.number for rule in variant.rules() if not rule.even_from_gate} - set(decided) - even)
    tests = [(number, _GATE_TEST) for number in sorted(even)] + [(number, 0) for number in named]
    for position, (number, further) in enumerate(tests):
        program.append((JEQ_K, len(tests) - position + further, 0, number))
    program += [
        (RET_K, 0, 0, RET_ALLOW),
        (LD_W_ABS, 0, 0, OFF_IP_HI),
        (JEQ_K, 0, 4, gate_start >> 32),
        (LD_W_ABS, 0, 0, OFF_IP_LO),
        (JGE_K, 0, 2, gate_start & 0xFFFFFFFF),
        (JGE_K, 1, 0, gate_end & 0xFFFFFFFF),
        (RET_K, 0, 0, RET_ALLOW),
    ]
    return program


def compile_filter(variant: Variant, gate_start: int, gate_end: int) -> bytes:
    """The whole filter as an array of struct sock_filter."""
    program = prologue(variant, gate_start, gate_end) + compile_rules(variant)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def check_numbers() -> None:
    """The table's numbers are written down once more for readers and the supervisor: they must be libseccomp's."""
    for variant in VARIANTS:
        for rule in variant.rules():
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, rule.name)
            if number != rule.number:
                raise FilterError(f"syscalls.py calls {rule.name} number {rule.number}, libseccomp says {number}")


def write_if_changed(path: Path, content: bytes) -> None:
    """Replace the file in one step; an unchanged one keeps its time."""
    if path.exists() and path.read_bytes() == content:
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def main() -> int:
    """Command line. Exit 1 with one line when the filter cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m sdtrace.build_filter", description="Compile the seccomp filters.")
    parser.add_argument("--image", type=Path, default=Path(abi.__file__).parent / "_image" / "sdlib.json")
    parser.add_argument("--output", type=Path, default=Path(FILTERS))
    options = parser.parse_args()
    try:
        symbols = json.loads(options.image.read_text())["symbols"]
        check_numbers()
        options.output.mkdir(parents=True, exist_ok=True)
        for variant in VARIANTS:
            program = compile_filter(variant, symbols["sd_gate_start"], symbols["sd_gate_end"])
            write_if_changed(options.output / variant.file_name, program)
    except (OSError, KeyError, FilterError) as error:
        print(f"build_filter: {error}", file=sys.stderr)
        return 1
    return 0


__all__ = ["FilterError", "compile_filter", "main"]

if __name__ == "__main__":
    sys.exit(main())
