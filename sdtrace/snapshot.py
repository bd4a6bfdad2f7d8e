# SPDX-License-Identifier: Apache-2.0
"""The content of docs/observing.md: the tree as its supervisor sees it at this moment.

Counters and blocks are the programs' own word, read while they write: each number is true of some moment, they need
not be of the same. Addresses are not here: a connection is named by its socket's inode, which the kernel told when the
connection was offered, and by which /proc/net/tcp tells the rest. That costs the program nothing.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable

from sdlib import abi
from sdlib.records import dataclass, field
from sdlib.wire import trees
from sdtrace import procfs
from sdtrace.areas import Area
from sdtrace.held import Key
from sdtrace.meter import Meter
from sdtrace.offers import Broker
from sdtrace.processes import Process, Processes
from sdtrace.report import SIZES, Totals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_SEGMENT_BYTES: Final = abi.sizeof("struct sd_seg")
LISTED_MAX: Final = 4096
"""Connections in one document."""

_STATES: Final = {
    abi.const.SD_BLOCK_TCP: "tcp", abi.const.SD_BLOCK_OFFERED: "offered", abi.const.SD_BLOCK_PAIRED: "paired",
    abi.const.SD_BLOCK_ATTACHED: "attached", abi.const.SD_BLOCK_PINNED: "pinned",
}  # fmt: skip
_MODES: Final = {
    abi.const.SD_MODE_TCP: "tcp", abi.const.SD_MODE_RING: "shm", abi.const.SD_MODE_BACK: "back",
    abi.const.SD_MODE_RETIRE: "shm", abi.const.SD_MODE_SWITCH: "tcp",
}  # fmt: skip
_ROLES: Final = {1: "connected", 2: "accepted"}


@dataclass
class Source:
    """Where the content comes from."""

    root_pid: int
    command: str
    strict: bool
    processes: Processes
    broker: Broker
    areas: list[Area]
    notifications: Meter = field(default_factory=Meter)
    started: float = field(default_factory=time.monotonic)


def build(source: Source, ended: Totals, errors: int) -> dict[str, Any]:
    """The whole document. `ended`: counters of processes that are gone."""
    connections, left_out = _connections(source.areas, source.broker)
    whole = {"processes": _processes(source), "connections": connections, "connections_left_out": left_out}
    return summary(source, ended, errors) | whole


def summary(source: Source, ended: Totals, errors: int) -> dict[str, Any]:
    """The document without processes and connections: what the monitor is told for its metrics."""
    totals = ended.with_areas(source.areas)
    return {
        "version": trees.VERSION,
        "supervisor": {
            "pid": os.getpid(), "root_pid": source.root_pid, "command": source.command, "strict": source.strict,
            "uptime_s": round(time.monotonic() - source.started, 3), "errors": errors,
            "notifications": source.notifications.as_json(),
        },
        "monitor": {"socket": source.broker.monitor_path, "offers": source.broker.asked.as_json()},
        "counters": {name: totals.counters[name] - (ended.counters[name] if name in abi.GAUGES else 0)
                     for name in abi.COUNTERS},
        "tcp_reasons": totals.reasons("tcp"),
        "moved_back": totals.reasons("back"), "sizes": totals.sizes(), "open": _open(source.areas),
        "processes": [], "connections": [], "connections_left_out": 0,
    }  # fmt: skip


def _open(areas: Iterable[Area]) -> dict[str, int]:
    """How many connections are open, by what carries at least one direction."""
    found = {"shm": 0, "rdma": 0, "tcp": 0}
    for area in areas:
        for block in (area.view.block[index] for index in area.used()):
            if block.established:
                modes = {_mode(block, int(block.tx_mode)), _mode(block, int(block.rx_mode))}
                found[next((ring for ring in ("shm", "rdma") if ring in modes), "tcp")] += 1
    return found


def _ring_of(block: abi.CData) -> str:
    """What a ring of this connection is: memory of this host, or the mirror of another one's."""
    return "rdma" if block.far else "shm"


def _mode(block: abi.CData, mode: int) -> str:
    name = _MODES.get(mode & 0xFF, "?")
    return _ring_of(block) if name == "shm" else name


def _processes(source: Source) -> list[dict[str, Any]]:
    """Those that we have heard of, then forked ones that only their counters tell of."""
    slots: dict[tuple[int, int], abi.CData] = {}
    exes: dict[tuple[int, int], str] = {}
    live: dict[tuple[int, int], Counter[str]] = {}
    for area in source.areas:
        for slot in area.slots():
            slots[area.serial, int(slot.pid)] = slot
            exes[area.serial, int(slot.pid)] = area.exe
        for index in area.used():
            block = area.view.block[index]
            ring = _ring_of(block)
            live.setdefault((area.serial, int(block.owner_pid)), Counter()).update({
                f"bytes_{ring}_tx": block.bytes_shm_tx, f"bytes_{ring}_rx": block.bytes_shm_rx,
                "bytes_tcp_tx": block.bytes_tcp})
    lines = []
    for process in source.processes:
        keys = [(area.serial, process.ns_pid) for area in process.areas.values()]
        own = [slot for slot in (slots.pop(key, None) for key in keys) if slot is not None]
        program = process.program
        line = _line(process.pid, program.exe, own, [live[key] for key in keys if key in live])
        line |= {"injected": program.injected, "reason": "" if program.injected else program.reason}
        lines.append(line | {"accelerate": _accelerate(process)})
    for (serial, pid), slot in slots.items():
        open_ = [live[serial, pid]] if (serial, pid) in live else []
        line = _line(pid, _exe_of(pid, exes[serial, pid]), [slot], open_)
        lines.append(line | {"injected": True, "reason": "", "accelerate": ""})
    return lines


def _exe_of(pid: int, otherwise: str) -> str:
    found = procfs.exe(pid)
    return otherwise if found == "?" else found


def _accelerate(process: Process) -> str:
    """Why the process's connections all stay on TCP, "" if they need not."""
    for area in process.areas.values():
        if not area.view.cfg.accel:
            return _reason(int(area.view.cfg.reason))
    return ""


def _line(pid: int, exe: str, slots: list[abi.CData], live: list[Counter[str]]) -> dict[str, Any]:
    """`live`: bytes of connections that are still open; the program counts them when it closes."""
    counters = {name: sum(int(slot.ctr[index]) for slot in slots) for index, name in enumerate(abi.COUNTERS)}
    for sums in live:
        for name, number in sums.items():
            counters[name] += number
    return {
        "pid": pid, "exe": exe, "counters": counters,
        "moved_back": {
            reason: count for index, reason in enumerate(abi.REASONS)
            if (count := sum(int(slot.moved_back[index]) for slot in slots))
        },
        "sizes": {
            name: [sum(int(slot.sizes[direction][index]) for slot in slots) for index in range(abi.const.SD_SIZES)]
            for direction, name in enumerate(SIZES)
        },
    }  # fmt: skip


def _reason(number: int) -> str:
    return abi.REASONS[number] if 0 < number < len(abi.REASONS) else ""


def _connections(areas: Iterable[Area], broker: Broker) -> tuple[list[dict[str, Any]], int]:
    """Lines, and how many more there would be."""
    lines: list[dict[str, Any]] = []
    left_out = 0
    for area in areas:
        for index in area.used():
            block = area.view.block[index]
            if not block.established:
                continue
            if len(lines) >= LISTED_MAX:
                left_out += 1
                continue
            lines.append(_connection(area, index, block, broker))
    return lines, left_out


def _connection(area: Area, index: int, block: abi.CData, broker: Broker) -> dict[str, Any]:
    generation, inode = area.sockets.get(index, (-1, None))
    if generation != block.gen:
        inode = None
    queued = _queued(broker.segment_of(Key(area, index, int(block.gen))), int(block.side))
    pinned = block.state == abi.const.SD_BLOCK_PINNED
    return {
        "inode": inode, "pid": int(block.owner_pid), "role": _ROLES.get(block.role, ""),
        "state": _STATES.get(block.state, "?"),
        "tx": _mode(block, int(block.tx_mode)), "rx": _mode(block, int(block.rx_mode)),
        "reason": _reason(int(block.reason)) if pinned or block.reason else _area_reason(area),
        "bytes_shm_tx": int(block.bytes_shm_tx), "bytes_shm_rx": int(block.bytes_shm_rx),
        "bytes_tcp": int(block.bytes_tcp), "ops": int(block.ops),
        **{name: int(getattr(block, name)) for name in trees.CONNECTION_COUNTS},
        "ring": None if queued is None else {"bytes": queued[2], "tx_queued": queued[0], "rx_queued": queued[1]},
    }  # fmt: skip


def _queued(segment: int, side: int) -> tuple[int, int, int] | None:
    """Bytes in the rings that this end has written, that it has yet to read, and a ring's size; None without a segment.

    The peer's words too, so no more than what fits is believed.
    """
    if segment < 0 or side not in (0, 1):
        return None
    data = os.pread(segment, _SEGMENT_BYTES, 0)
    if len(data) < _SEGMENT_BYTES:
        return None
    head: abi.CData = abi.ffi.cast("struct sd_seg *", abi.ffi.from_buffer(data))
    size = max((os.fstat(segment).st_size - abi.const.SD_SEG_HDR_BYTES) // 2, 0)
    lengths = [min((direction.tail - direction.head) % (1 << 64), size) for direction in head.dir]
    return lengths[side], lengths[1 - side], size


def _area_reason(area: Area) -> str:
    return "" if area.view.cfg.accel else _reason(int(area.view.cfg.reason))
