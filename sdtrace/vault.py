# SPDX-License-Identifier: Apache-2.0
"""What the keeper keeps for our successor, should we be killed (launch/vault.c), and how the successor reads it.

Connections on shared memory need no supervisor, except where a program hands them to the next one by execve: the new
program gets them at its birth, from descriptors that only a supervisor has.  So the keeper has a copy of each: of
areas, of segments, and of what an exec that has been announced will take along.  Whatever else we know can be found
again, or only served the report.

Sending never waits.  If the keeper does not read, everything that it has is declared void, and what comes later is
kept again: a successor knows less then, but nothing wrong.
"""

from __future__ import annotations

import syslog
from collections.abc import Callable, Iterable
from contextlib import suppress

from sdlib import abi, compact
from sdlib.records import dataclass, field
from sdlib.wire.segment import counts_as
from sdtrace import procfs
from sdtrace.areas import Area
from sdtrace.control import TEXT_BYTES, Control, Record
from sdtrace.held import Held, Key, Origin
from sdtrace.processes import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_NUMBERS_MAX: Final = 1 << 20
_ORDER: Final = ("area", "segment", "carry")


@dataclass
class Inheritance:
    """What a predecessor has left."""

    areas: list[Area] = field(default_factory=list)
    segments: list[tuple[Key, Held]] = field(default_factory=list)
    carries: list[tuple[int, list[tuple[int, int]] | None, list[Area]]] = field(default_factory=list)
    """Processes in an exec, or just after it: pid, what the new program gets, areas."""


class Vault:
    """Our side of it: every record has a number, by which it is dropped."""

    def __init__(self, control: Control | None) -> None:
        """Use this channel to the keeper; None: nothing is kept."""
        self._control = control
        self._numbers: dict[tuple[str, int], int] = {}
        self._free: list[int] = []
        self._top = 0
        self._void = False

    # ---------------------------------------------------------------- keeping

    def area(self, area: Area) -> None:
        """An area is in use."""
        self._keep(("area", area.serial), area.fd, index=area.index, exe=area.exe, uid=area.uid,
                   host_pids=area.host_pids)

    def drop_area(self, area: Area) -> None:
        """Nobody sees it any more."""
        self._drop("area", area.serial)

    def segment(self, key: Key, held: Held) -> None:
        """A connection is paired."""
        self._keep(("segment", held.name), held.segment, area=key.area.inode, block=key.block,
                   generation=key.generation, socket=key.area.sockets.get(key.block, (0, -1))[1],
                   side=held.side, far=held.far, origin=vars(held.origin))

    def drop_segment(self, held: Held) -> None:
        """It is over."""
        self._drop("segment", held.name)

    def carry(self, process: Process) -> None:
        """The process is about to exec, and takes `process.carry` along. None: it has, and soon maps its areas."""
        with suppress(OSError):  # gone
            self._keep(("carry", process.pid), -1, pid=process.pid, started=procfs.start_time(process.pid),
                       carry=process.carry, areas=[area.inode for area in process.areas.values()])

    def drop_carry(self, process: Process) -> None:
        """There is no new program, or no process."""
        self._drop("carry", process.pid)

    def _keep(self, name: tuple[str, int], fd: int, **what: Any) -> None:
        pid = what["pid"] if what.get("carry") else 0
        text = compact.dumps({"kind": name[0], **what}).encode()
        if self._control is None or len(text) >= TEXT_BYTES:
            return
        number = self._numbers.get(name, -1)  # replaced in one step: we may die at any moment
        if number < 0:
            number = self._free.pop() if self._free else self._top
        if number >= _NUMBERS_MAX:
            return
        self._top = max(self._top, number + 1)
        self._numbers[name] = number
        self._send(lambda control: control.keep(number, text, fd, pid))

    def _drop(self, kind: str, which: int) -> None:
        number = self._numbers.pop((kind, which), None)
        if number is not None:
            self._free.append(number)
            self._send(lambda control: control.drop(number))

    def _send(self, how: Callable[[Control], None]) -> None:
        if self._control is None:
            return
        try:
            if self._void:
                self._control.clear()
                self._void = False
            how(self._control)
        except BrokenPipeError:
            self._control = None  # no keeper, or the tree is over: there will be no successor
        except OSError as error:
            if not self._void:
                syslog.syslog(syslog.LOG_WARNING, f"the keeper does not take what it is given: {error}")
            self._void = True

    # ------------------------------------------------------------- inheriting

    def inherit(self, records: Iterable[Record]) -> Inheritance:
        """What a predecessor has left, as far as it fits together. The keeper keeps it, for who comes after us.

        Nothing of one of another version, where the installation has been replaced meanwhile: its connections go on,
        but those that its libraries offer from now on are of no area that we know, and stay on TCP.
        """
        left = Inheritance()
        areas: dict[int, Area] = {}
        records = sorted(records, key=lambda record: _ORDER.index(record.what["kind"]))
        self._top = max((record.number + 1 for record in records), default=0)
        self._free = list(set(range(self._top)) - {record.number for record in records})
        for record in records:
            try:
                name = self._take(left, areas, record)
            except (OSError, KeyError) as error:
                syslog.syslog(syslog.LOG_WARNING, f"of the supervisor before us: {record.what}: {error!r}")
                name = ("useless", record.number)
                record.close()
            self._numbers[name] = record.number
            if name[0] == "useless":
                self._drop(*name)
        return left

    def _take(self, left: Inheritance, areas: dict[int, Area], record: Record) -> tuple[str, int]:
        """Add one to what is left; by which name we shall know it."""
        what = record.what
        if what["kind"] == "area":
            area = Area.of_before(record.fd, what["index"], what["exe"], what["uid"])
            area.host_pids = what["host_pids"]
            areas[area.inode] = area
            left.areas.append(area)
            return "area", area.serial
        if what["kind"] == "segment":
            key = Key(areas[what["area"]], what["block"], what["generation"])
            key.area.sockets[key.block] = (key.generation, what["socket"])
            memory = counts_as(record.fd, far=what["far"])
            held = Held(len(left.segments) + 1, Origin(**_tuples(what["origin"])), record.fd, paired=True,
                        bytes=memory, at_least=memory, side=what["side"], far=what["far"])  # fmt: skip
            held.attached = key.area.block_state(key.block) == abi.const.SD_BLOCK_ATTACHED
            left.segments.append((key, held))
            return "segment", held.name
        if procfs.start_time(what["pid"]) == what["started"]:
            carry = None if what["carry"] is None else [(fd, block) for fd, block in what["carry"]]
            left.carries.append((what["pid"], carry, [areas[inode] for inode in what["areas"]]))
            return "carry", what["pid"]
        raise ProcessLookupError(f"process {what['pid']} has ended")


def _tuples(origin: dict[str, Any]) -> dict[str, Any]:
    """JSON knows only lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in origin.items()}
