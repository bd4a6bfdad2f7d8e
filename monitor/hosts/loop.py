# SPDX-License-Identifier: Apache-2.0
"""RDMA by the C loop over libibverbs (sdlib/include/sd_verbs.h). verbs.py says how queue pairs are used.

Bytes of connections that are linked never come here: C posts their writes, publishes what has arrived, asks for
doorbells, and sends those that it is asked for.  Once `start`ed it does so in threads, whenever we are `away`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from monitor import journal
from monitor.hosts import frames
from monitor.hosts.batch import Batch
from monitor.hosts.contact import Contact
from monitor.hosts.discover import Found, counters
from monitor.hosts.events import Said
from monitor.hosts.frames import BadPeer, Record
from monitor.hosts.link import Link
from monitor.hosts.mirror import Mirror, Transport
from sdlib import abi

_CQ_ENTRIES: Final = 8192
_EVENTS: Final = 32
_SPIN_NS: Final = 300_000
_SPARE: Final = 4
"""Requests left for records."""


class VerbsError(OSError):
    """The device or a queue pair has failed."""


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise VerbsError(-result, f"{what}: {os.strerror(-result)}")
    return result


class Device:
    """The device that is used, with its completion queue."""

    def __init__(self, found: Found, library: str = "libibverbs.so.1") -> None:
        """OSError."""
        self.found = found
        path: abi.CData = abi.ffi.new("char[]", library.encode())
        name: abi.CData = abi.ffi.new("char[]", found.device.encode())
        self._device = abi.lib.sd_device_open(path, name, found.port, found.pkey_index, _CQ_ENTRIES)
        if not self._device:
            number = abi.lib.sd_device_errno()
            raise VerbsError(number, f"{found.device}: {os.strerror(number)} (it takes libibverbs)")
        if not found.mtu:
            self.found = found._replace(mtu=_checked(abi.lib.sd_device_mtu(self._device), "the port's MTU"))
        self._taken: abi.CData = abi.ffi.new("struct sd_loop_event[]", _EVENTS)
        self._said: abi.CData = abi.ffi.new("struct sd_device_said *")
        self._busy: abi.CData = abi.ffi.new("bool *")
        self.ports: dict[int, QueuePair] = {}
        self.events = self.turns = 0
        self.threads = False

    @property
    def handle(self) -> abi.CData:
        """For C."""
        return self._device

    def fileno(self) -> int:
        """Readable when the threads have something to tell; without them, when a completion has come after `arm`."""
        return abi.lib.sd_device_news(self._device) if self.threads else abi.lib.sd_device_fd(self._device)

    def async_fileno(self) -> int:
        """Readable when the device has something to say by itself."""
        return abi.lib.sd_device_async_fd(self._device)

    def said(self) -> Iterator[Said]:
        """What it has said; OSError: it is gone."""
        said = self._said
        while _checked(abi.lib.sd_device_said(self._device, said), "the device"):
            yield Said(int(said.event), int(said.queue), int(said.port))

    def start(self, spin_s: float) -> None:
        """C has threads of its own from here on, and runs while we are `away`. OSError."""
        _checked(abi.lib.sd_device_start(self._device, int(spin_s * 1e9)), "threads")
        self.threads = True

    def stop(self) -> None:
        """No more."""
        if self.threads:
            abi.lib.sd_device_stop(self._device)
            self.threads = False

    def close(self) -> None:
        """It has no queue pairs any more, nor threads."""
        abi.lib.sd_device_close(self._device)

    @contextmanager
    def away(self) -> Iterator[None]:
        """While we sleep."""
        abi.lib.sd_device_release(self._device)
        try:
            yield
        finally:
            abi.lib.sd_device_hold(self._device)

    def port(self, contact: Contact) -> QueuePair:
        """A queue pair for a new conversation; OSError."""
        made = QueuePair(self, contact)
        self.ports[made.number] = made
        return made

    def arm(self) -> None:
        """Have the channel tell of the next completion."""
        self.events += _checked(abi.lib.sd_device_arm(self._device), "arming")

    def poll(self) -> bool:
        """Take completions and give them to whom they are for. True: there were some."""
        return self._turn(0)

    def spin(self) -> bool:
        """Carry bytes for a while. True: there were some."""
        return self._turn(_SPIN_NS)

    def _turn(self, nanoseconds: int) -> bool:
        self.turns += 1
        count = abi.lib.sd_device_turn(self._device, self._taken, _EVENTS, nanoseconds, self._busy)
        for event in self._taken[0:count]:
            port = self.ports.get(int(event.queue))
            if port is not None:
                port.happened(event)
        return bool(self._busy[0])

    def status(self) -> dict[str, Any]:
        """For sdctl."""
        found = {**self.found._asdict(), "gid": self.found.gid.hex(), "counters": counters(self.found)}
        looks = int(abi.lib.sd_device_looks(self._device))
        counted = {"turns": self.turns, "events": self.events, "looks": looks}
        return {**found, "queue_pairs": len(self.ports), "threads": self.threads, **counted}


class QueuePair:
    """Our half of one conversation."""

    def __init__(self, device: Device, contact: Contact) -> None:
        found = device.found
        self._device, self._contact = device, contact
        self._queue = abi.lib.sd_queue_open(device.handle, found.depth, found.inline)
        if not self._queue:
            raise VerbsError(abi.lib.sd_device_errno(), f"queue pair: {os.strerror(abi.lib.sd_device_errno())}")
        self.number = abi.lib.sd_queue_number(self._queue)
        self._sequence = secrets.randbits(24)
        self._regions: dict[int, tuple[abi.CData, abi.CData]] = {}
        self._batch = Batch()
        self._short = False
        """Somebody has found no room."""
        self._counts: abi.CData = abi.ffi.new("struct sd_queue_counts *")

    # -------------------------------------------------------------------- connecting

    def describe(self) -> frames.Port:
        """For the other side."""
        found = self._device.found
        return frames.Port(self.number, self._sequence, found.mtu, self.status()["depth"], found.gid, found.lid)

    def connect(self, far: frames.Port) -> None:
        """To the other side's. Raises BadPeer, OSError."""
        if not far.depth > 0 or not 1 <= far.mtu <= 5:
            raise BadPeer("a queue pair that cannot be")
        found = self._device.found
        route: abi.CData = abi.ffi.new("struct sd_route *")
        abi.ffi.memmove(route.gid, far.gid, 16)
        route.number, route.far_sequence, route.own_sequence = far.number, far.sequence & 0xFFFFFF, self._sequence
        route.mtu, route.gid_index = min(far.mtu, found.mtu), found.gid_index
        route.timeout, route.retries, route.lid = found.timeout, found.retries, far.lid
        route.traffic_class, route.service_level = found.traffic_class, found.service_level
        _checked(abi.lib.sd_queue_connect(self._queue, route), "queue pair")
        journal.detail("queue-pair", host=self._contact.peer.name, number=self.number, far=far.number)

    def live(self) -> None:
        """Both directions go by it."""
        abi.lib.sd_queue_live(self._queue)

    def region(self, mirror: Mirror) -> tuple[int, int]:
        """Where the other side writes: address and key. OSError."""
        copy = mirror.copy
        address = copy.address + copy.ring_at(False)
        if mirror.slot not in self._regions:
            into = self._register(address, copy.ring_bytes, remote=True)
            try:
                out = self._register(copy.address + copy.ring_at(True), copy.ring_bytes, remote=False)
            except OSError:
                abi.lib.sd_region_close(into)
                raise
            self._regions[mirror.slot] = (into, out)
            mirror.state.lkey = out.lkey
            _checked(abi.lib.sd_queue_carry(self._queue, mirror.state), "carrying")
        return address, int(self._regions[mirror.slot][0].rkey)

    def _register(self, address: int, size: int, *, remote: bool) -> abi.CData:
        region: abi.CData = abi.ffi.new("struct sd_region *")
        at = abi.ffi.cast("void *", address)
        _checked(abi.lib.sd_queue_register(self._queue, at, size, remote, region), "registering a ring")
        return region

    # ------------------------------------------------------------------------ sending

    def transport(self) -> Transport:
        """Ourselves."""
        return self

    def room(self) -> bool:
        """Whether one more write may be posted: one for what waits, one for itself."""
        found = not self._batch.behind and abi.lib.sd_queue_room(self._queue, _SPARE)
        self._short = self._short or not found
        return found

    def write(self, mirror: Mirror, at: int, base: int, size: int) -> None:
        """Bytes of our program's ring into the other copy. OSError."""
        self.flush()
        _checked(abi.lib.sd_queue_write(self._queue, mirror.state, at, base, size), "posting")

    def queued(self) -> int:
        """Bytes of records that wait for room."""
        return self._batch.queued

    def send(self, record: Record) -> None:
        """A record, behind the writes before it; with others that are said at the same time."""
        self._batch.add(record)

    def flush(self) -> bool:
        """Post the records that wait. True: there were some."""
        busy = self._batch.flush(lambda: abi.lib.sd_queue_room(self._queue, 2), self._post)
        abi.lib.sd_queue_behind(self._queue, self._batch.behind or self._short)
        self._short = False
        return busy

    def _post(self, body: bytes) -> None:
        _checked(abi.lib.sd_queue_send(self._queue, body, len(body)), "posting")

    # ---------------------------------------------------------------------- receiving

    def happened(self, event: abi.CData) -> None:
        """One event of ours. What is wrong with it is the end of the link."""
        self._contact.guard(lambda link: self._take(link, event))

    def _take(self, link: Link, event: abi.CData) -> None:
        lib, slot = abi.lib, int(event.slot)
        match int(event.kind):
            case lib.SD_LOOP_MESSAGE:
                link.on_message(bytes(abi.ffi.buffer(event.body, event.size)))
            case lib.SD_LOOP_WRITTEN:
                link.on_written(slot, int(event.size))
            case lib.SD_LOOP_SLEEPS:
                link.on_sleeper(slot)
            case lib.SD_LOOP_WOKE | lib.SD_LOOP_NEWS:
                link.on_woken(slot)
            case lib.SD_LOOP_BROKEN:
                link.on_broken(slot)
            case lib.SD_LOOP_LIES:
                raise BadPeer("more bytes than the ring holds")
            case lib.SD_LOOP_MISSING:
                raise VerbsError("a request is missing")
            case lib.SD_LOOP_FAILED:
                raise VerbsError(f"completion status {event.status}, {self.status()['under_way']} under way")

    # ---------------------------------------------------------------------------- end

    def forget(self, mirror: Mirror) -> None:
        """A connection is over."""
        abi.lib.sd_queue_drop(self._queue, mirror.slot)
        for region in self._regions.pop(mirror.slot, ()):
            abi.lib.sd_region_close(region)

    def close(self) -> None:
        """Nothing more arrives. What waits in the completion queue is of nobody then."""
        self._device.ports.pop(self.number, None)
        for regions in self._regions.values():
            for region in regions:
                abi.lib.sd_region_close(region)
        self._regions.clear()
        abi.lib.sd_queue_close(self._queue)

    def status(self) -> dict[str, Any]:
        """For sdctl."""
        counts = self._counts
        abi.lib.sd_queue_count(self._queue, counts)
        return {
            "number": self.number, "depth": int(counts.depth), "under_way": int(counts.posted - counts.done),
            "writes": int(counts.writes), "sends": int(counts.sends), "received": int(counts.received),
            "inline": int(counts.inline_bytes), "bells": int(counts.bells),
            "rings": int(counts.rings), "credits": int(counts.credits), "strays": int(counts.strays),
        }  # fmt: skip
