# SPDX-License-Identifier: Apache-2.0
"""What was carried by what: the JSON of `--report`, also the source of `--explain`.

Sums the counters of all process slots in all areas, plus the connections whose blocks are still in use (a process
that was killed closes nothing in an orderly way).  The counters are the programs' own word; nothing is decided by them.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress

from sdlib import abi
from sdlib.records import dataclass, field
from sdtrace.areas import Area
from sdtrace.held import OFFERED_FOR
from sdtrace.processes import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Literal

VERSION: Final = 1
_TCP: Final = "tcp:"
_BACK: Final = "back:"
SIZES: Final = ("sent", "received")
_SAID: Final = frozenset({abi.const.SD_REASON_shared, abi.const.SD_REASON_short_lived, abi.const.SD_REASON_peer_plain,
                          *OFFERED_FOR})
"""Reasons of connections that may yet move."""
_BLOCK_REASONS: Final = {
    abi.const.SD_BLOCK_TCP: "few-operations",
    abi.const.SD_BLOCK_OFFERED: "peer-not-under-sdrun",
    abi.const.SD_BLOCK_PAIRED: "closed-before-switch",
    abi.const.SD_BLOCK_ATTACHED: "closed-before-switch",
}


@dataclass
class Totals:
    """Sums over everything; names of counters as in sd_abi.h, those of reasons with `_TCP` or `_BACK` in front."""

    counters: Counter[str] = field(default_factory=Counter)
    by_process: dict[tuple[int, int], tuple[str, Counter[str]]] = field(default_factory=dict)
    """Program and counters by (serial of the area, pid in its namespace)."""

    def add_slot(self, area: Area, slot: abi.CData, pid: int = 0) -> None:
        """Take in the counters of one process."""
        own = Counter({name: int(slot.ctr[index]) for index, name in enumerate(abi.COUNTERS)})
        for index, reason in enumerate(abi.REASONS):
            own[_TCP + reason] = int(slot.tcp_reasons[index])
            own[_BACK + reason] = int(slot.moved_back[index])
        for direction, name in enumerate(SIZES):
            for index in range(abi.const.SD_SIZES):
                own[f"{name}:{index}"] = int(slot.sizes[direction][index])
        self.counters.update(own)
        _, sums = self.by_process.setdefault((area.serial, pid or int(slot.pid)), (area.exe, Counter()))
        sums.update(own)

    def add_block(self, area: Area, block: abi.CData) -> None:
        """Take in a connection that nobody has closed; its bytes are not yet in any process's counters."""
        ring = "rdma" if block.far else "shm"
        own = Counter({
            f"bytes_{ring}_tx": block.bytes_shm_tx, f"bytes_{ring}_rx": block.bytes_shm_rx,
            "bytes_tcp_tx": block.bytes_tcp,
        })  # fmt: skip
        if block.established:
            own["conns_total"] = 1
            if abi.const.SD_MODE_TCP not in (block.rx_mode, block.tx_mode) or block.bytes_shm_tx or block.bytes_shm_rx:
                own[f"conns_{ring}"] = 1
            else:
                own["conns_tcp"] = 1
                pinned = block.state == abi.const.SD_BLOCK_PINNED or block.reason in _SAID
                reason = abi.REASONS[block.reason] if pinned and block.reason < len(abi.REASONS) else None
                own[_TCP + (reason or _BLOCK_REASONS.get(block.state, "none"))] = 1
        self.counters.update(own)
        if (area.serial, int(block.owner_pid)) in self.by_process:
            self.by_process[area.serial, int(block.owner_pid)][1].update(own)

    def add_area(self, area: Area) -> None:
        """Take in a whole area as it is now."""
        for slot in area.slots():
            self.add_slot(area, slot)
        for block in area.blocks():
            self.add_block(area, block)

    def reasons(self, kind: Literal["tcp", "back"]) -> dict[str, int]:
        """Connections that ended on TCP, or were moved back to it, by reason."""
        return _reasons(self.counters, f"{kind}:")

    def sizes(self) -> dict[str, list[int]]:
        """How many messages there were of each size (abi.SIZES)."""
        return {name: [self.counters[f"{name}:{index}"] for index in range(abi.const.SD_SIZES)] for name in SIZES}

    def with_areas(self, areas: Iterable[Area]) -> Totals:
        """These sums and those of areas that are still in use."""
        result = copy.deepcopy(self)
        for area in areas:
            result.add_area(area)
        return result


def _lines(programs: list[Program], totals: Totals) -> list[dict[str, Any]]:
    """One entry per program, and one per forked process that only its slots tell of."""
    left = dict(totals.by_process)
    lines = []
    for program in programs:
        own: Counter[str] = Counter()
        for area in program.areas:
            _, sums = left.pop((area.serial, program.ns_pid), ("", Counter()))
            own.update(sums)
        lines.append(_line(program.pid, program.exe, program.injected, program.reason, own))
    forked: dict[tuple[int, str], Counter[str]] = {}
    for (_, pid), (exe, sums) in left.items():
        forked.setdefault((pid, exe), Counter()).update(sums)
    lines += [_line(pid, exe, True, "", sums) for (pid, exe), sums in forked.items()]
    return lines


def _reasons(counters: Counter[str], kind: str) -> dict[str, int]:
    return {name.removeprefix(kind): n for name, n in counters.items() if n and name.startswith(kind)}


def _connections(counters: Counter[str]) -> dict[str, Any]:
    total, shm, rdma = counters["conns_total"], counters["conns_shm"], counters["conns_rdma"]
    return {
        "total": total, "shm": shm, "rdma": rdma, "tcp": total - shm - rdma,
        "tcp_reasons": _reasons(counters, _TCP), "moved_back": _reasons(counters, _BACK),
    }  # fmt: skip


def _bytes(counters: Counter[str]) -> dict[str, int]:
    return {
        "shm": counters["bytes_shm_tx"] + counters["bytes_shm_rx"],
        "rdma": counters["bytes_rdma_tx"] + counters["bytes_rdma_rx"],
        "tcp": counters["bytes_tcp_tx"] + counters["bytes_tcp_rx"],
    }  # fmt: skip


def _line(pid: int, exe: str, injected: bool, reason: str, counters: Counter[str]) -> dict[str, Any]:
    return {
        "pid": pid, "exe": exe, "injected": injected, "reason": "" if injected else reason,
        "sites_patched": counters["sites_patched"], "sites_trapping": counters["sites_trapping"],
        "connections": _connections(counters), "bytes": _bytes(counters),
    }  # fmt: skip


def build(
    programs: list[Program], unlisted: int, totals: Totals, exit_status: int | None, errors: int,
    denials: Mapping[tuple[str, str, str], int],
) -> dict[str, Any]:
    """The report as the issue describes it; `exit_status` None when the kernel did not tell."""
    count = totals.counters
    return {
        "version": VERSION,
        "exit_status": exit_status,
        "processes": _lines(programs, totals),
        "connections": _connections(count),
        "calls": {"library": count["calls_library"], "kernel": count["calls_kernel"]},
        "bytes": _bytes(count),
        "counters": {name: count[name] for name in abi.COUNTERS},
        "denied": [{"exe": exe, "what": what, "rule": rule, "times": times}
                   for (exe, what, rule), times in denials.items()],
        "processes_not_listed": unlisted,
        "supervisor_errors": errors,
    }  # fmt: skip


def write(path: str, report: dict[str, Any]) -> None:
    """Replace the file in one step, so that a reader sees a whole report or none. OSError."""
    import json  # not needed before the end, and by most trees never
    import tempfile

    text = json.dumps(report, indent=1) + "\n"
    folder, name = os.path.split(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder or ".")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            os.fchmod(fd, 0o644)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
