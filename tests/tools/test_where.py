# SPDX-License-Identifier: Apache-2.0
"""What instructions and samples are for (tools/purposes.py, tools/sdbench/where.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tools import purposes
from tools.instructions import BASELINE
from tools.sdbench import tables, where
from tools.sdbench.micro import Plan, natively, under_sdrun
from tools.sdbench.results import Results, Row
from tools.sdbench.runner import Case, Runner
from tools.sdbench.stage import Stage

SENT = ["tcp_sendmsg_locked", "tcp_sendmsg", "__sys_sendto", "__x64_sys_sendto", "do_syscall_64"]


@pytest.mark.parametrize(("inside", "purpose"), [
    ([], purposes.PROTOCOL),
    (["_copy_from_iter"], purposes.COPY),
    (["kmem_cache_alloc_node_noprof", "__alloc_skb"], purposes.BUFFERS),
    (["lock_sock_nested"], purposes.LOCKING),
    (["_raw_spin_lock_bh", "lock_sock_nested"], purposes.LOCKING),
    (["_raw_spin_unlock_irqrestore", "try_to_wake_up", "sock_def_readable", "tcp_rcv_established"], purposes.WAKE),
    (["read_tsc", "ktime_get", "tcp_mstamp_refresh"], purposes.PROTOCOL),
    (["asm_sysvec_apic_timer_interrupt"], purposes.OTHER),
])  # fmt: skip
def test_the_innermost_function_that_is_known_decides(inside: list[str], purpose: str) -> None:
    assert purposes.of_kernel([*inside, *SENT]) == purpose


def test_nobody_knows_it() -> None:
    assert purposes.of_kernel(["what_is_this"]) == purposes.OTHER
    assert purposes.of_kernel(["do_syscall_64"]) == purposes.SYSTEM_CALL


def test_the_short_ways_are_known_whole() -> None:
    """Of the calls that the targets are about, each instruction has a purpose."""
    calls = json.loads(BASELINE.read_text())["calls"]
    for name in ("send8", "recv8", "send8, with threads", "recv8, with threads"):
        parts = calls[name]["purposes"]
        assert sum(parts.values()) == calls[name]["total"], name
        assert parts.get(purposes.OTHER, 0) == 0, name
        assert all(parts[part] > 0 for part in (purposes.SHIM, purposes.LOCKING, purposes.BUFFERS, purposes.COPY)), name


PRINTED = """\
pair 
\tffffffff81c7edb4 _copy_to_iter ([kernel.kallsyms])
\tffffffff815a545f tcp_recvmsg_locked ([kernel.kallsyms])
\t           224b6 recv (/usr/lib/x86_64-linux-gnu/libc.so.6)

pair 
\t           224b6 recv (/usr/lib/x86_64-linux-gnu/libc.so.6)

sdmonitor 
\tffffffff81c7edb4 _copy_to_iter ([kernel.kallsyms])
"""  # noqa: W291  perf puts it there


def test_samples_of_one_command_are_counted() -> None:
    counts = where.parts_of(PRINTED, "pair", Path("no image is needed"))
    assert counts == {purposes.COPY: 1, where.PROGRAM: 1}


def row(mode: str, size: str, copied: float) -> Row:
    samples = [{"cpu_us": 1.0, **dict.fromkeys(where.PARTS, 0.0), purposes.COPY: copied}]
    case = {"mode": mode, "size": size, "placement": "one core"}
    return Row(where.BENCH, case, "cpu_us", "tcp", {"tcp": samples, "sdrun": samples})


def test_a_table_says_what_a_message_and_a_kib_cost() -> None:
    (table,) = tables.parts([row("stream", "8 B", 10), row("stream", "64 KiB", 6410), row("rtt", "8 B", 30)])
    assert table.headings[1:4] == ["tcp, message", "unix, message", "sdrun, message"]
    assert table.rows == [[purposes.COPY, "10.0", "-", "10.0", "100", "-", "100", "15.0", "-", "15.0"]]


@pytest.mark.skipif(shutil.which("perf") is None, reason="no perf here")
def test_the_parts_of_a_message(tmp_path: Path) -> None:
    """Natively no part is the library's; under sdrun hardly any is the kernel's."""
    stage, plan = Stage(), Plan(warm_ms=50, ms=75)
    try:
        ways = {"tcp": where.asked(natively, "tcp", "stream", 8, None, plan),
                "sdrun": where.asked(under_sdrun(), "tcp", "stream", 8, None, plan)}
        runner = Runner(stage, Results("micro", {}, {}), 1, tmp_path / "r.json")
        runner.run([Case(where.BENCH, {"mode": "stream"}, "cpu_us", ways)])
    finally:
        stage.close()
    (result,) = runner.results.rows
    if set(result.skipped) == {"tcp", "sdrun"} and "may not see" in result.skipped["tcp"]:
        pytest.skip(result.skipped["tcp"])
    assert result.skipped == {}
    (tcp,), (own,) = result.samples["tcp"], result.samples["sdrun"]
    for sample in (tcp, own):
        assert sum(sample[part] for part in where.PARTS) == pytest.approx(sample["cpu_us"] * 1000)
    assert tcp[purposes.SHIM] == 0 < tcp[purposes.PROTOCOL]
    assert own[purposes.SHIM] > 0 and own[purposes.BUFFERS] > 0
    assert own[purposes.OTHER] < own["cpu_us"] * 1000 / 4
