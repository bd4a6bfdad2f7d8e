# SPDX-License-Identifier: Apache-2.0
"""RDMA by pyverbs: one completion queue for all, one queue pair per host, one-sided writes into the other's copies.

    bytes     RDMA WRITE WITH IMMEDIATE: the receiver's slot; the length is told by its completion
    records   SEND WITH IMMEDIATE, as many as are there at the time

The low byte of an immediate numbers what is sent, so that what a device brings twice counts once ([V1] of
sdlib/src/verbs/loop.c).

Of a copy, the other host may write the ring that our program reads, and nothing else: neither the words nor the ring
that our program writes are in the region that it has the key of; and each conversation has a protection domain of its
own, so a key is worth nothing to a third host.

Requests that may be under way are bounded (`depth`); every SIGNAL_EVERYth, and each that fills half of what bytes may
fill, has a completion, which tells of all before it.  Receives are posted anew when their completion has been taken;
who sends faster waits in the queue pair (RNR), for how long is told by the silence of the TCP connection (contact.py).

This is what `loop: python` uses; loop.py does the same in C.

Nothing here is tuned to the soft device of the tests: port, GID, MTU, inline size and depth are found out
(discover.py).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from monitor import journal
from monitor.hosts import frames
from monitor.hosts.batch import MESSAGE_BYTES, Batch
from monitor.hosts.config import DEPTH_MIN
from monitor.hosts.contact import Contact
from monitor.hosts.discover import Found, counters, pyverbs
from monitor.hosts.events import Said
from monitor.hosts.frames import BadPeer, Record
from monitor.hosts.link import Link
from monitor.hosts.mirror import Mirror, Transport
from sdlib import abi
from sdlib.wire.ready import readable

SIGNAL_EVERY: Final = 16
SPARE: Final = 4
"""Requests left for records."""
_NUMBER_BITS: Final = int(abi.const.SD_NUMBER_BITS)
_NUMBERS: Final = 1 << _NUMBER_BITS
_CQ_ENTRIES: Final = 8192
_RECEIVE: Final = 1 << 62
_POLL: Final = 64


class VerbsError(OSError):
    """The device or a queue pair has failed."""


class Device:
    """The device that is used, with its completion queue."""

    def __init__(self, found: Found) -> None:
        """OSError."""
        self.found = found
        self.v = pyverbs()
        before = _event_fds()
        try:
            self.context = self.v.device.Context(name=found.device)
            opened = _event_fds()
            self.channel = self.v.cq.CompChannel(self.context)
            self.cq = self.v.cq.CQ(self.context, _CQ_ENTRIES, None, self.channel, 0)
        except Exception as error:
            raise VerbsError(f"{found.device}: {error}") from None
        (self._async_fd,) = opened - before
        (self._fd,) = _event_fds() - opened
        os.set_blocking(self._fd, False)
        if not found.mtu:
            self.found = found._replace(mtu=int(self.context.query_port(found.port).active_mtu))
        self.ports: dict[int, QueuePair] = {}
        self.entries = _CQ_ENTRIES
        """Of the completion queue that no queue pair may fill yet: its overflow is the end of all of them."""
        self.polled = self.events = 0

    threads = False

    def away(self) -> AbstractContextManager[None]:
        """Nothing happens while we sleep."""
        return nullcontext()

    def stop(self) -> None:
        """Nothing did."""

    def fileno(self) -> int:
        """Readable when a completion has come after `arm`."""
        return self._fd

    def async_fileno(self) -> int:
        """Readable when the device has something to say by itself."""
        return self._async_fd

    def said(self) -> Iterator[Said]:
        """What it has said. pyverbs does not tell which queue pair or port that is about. OSError: it is gone."""
        while readable(self._async_fd, 0):
            try:
                event = self.context.get_async_event()
            except Exception as error:
                raise VerbsError(f"the device: {error}") from None
            event.ack()
            yield Said(int(event.event_type))

    def close(self) -> None:
        """It has no queue pairs any more."""
        for one in (self.cq, self.channel, self.context):
            try:
                one.close()
            except Exception as error:  # of a device that has failed
                journal.detail("closing", device=self.found.device, why=str(error))

    def port(self, contact: Contact) -> QueuePair:
        """A queue pair for a new conversation; OSError."""
        try:
            made = QueuePair(self, contact)
        except Exception as error:
            raise VerbsError(str(error)) from None
        self.ports[made.number] = made
        return made

    def arm(self) -> None:
        """Have the channel tell of the next completion."""
        self._drain_events()
        self.cq.req_notify(False)

    def _drain_events(self) -> None:
        while readable(self._fd, 0):
            self.channel.get_cq_event(self.cq)
            self.events += 1

    def poll(self) -> bool:
        """Take completions and give them to whom they are for. True: there were some."""
        busy = False
        while True:
            count, completions = self.cq.poll(_POLL)
            for completion in completions[:count]:
                port = self.ports.get(completion.qp_num)
                if port is not None:
                    port.completed(completion)
            self.polled += count
            busy = busy or bool(count)
            if count < _POLL:
                return busy

    def spin(self) -> bool:
        """`poll` does it all."""
        return False

    def status(self) -> dict[str, Any]:
        """For sdctl."""
        found = {**self.found._asdict(), "gid": self.found.gid.hex(), "counters": counters(self.found)}
        return {**found, "queue_pairs": len(self.ports), "completions": self.polled, "events": self.events}


class QueuePair:
    """Our half of one conversation."""

    def __init__(self, device: Device, contact: Contact) -> None:
        v, found = device.v, device.found
        self._device, self._contact, self._v = device, contact, v
        self._pd = v.pd.PD(device.context)
        self._depth: int = min(found.depth, device.entries // 2)
        if self._depth < min(found.depth, DEPTH_MIN):
            raise VerbsError("the completion queue has no room for one more queue pair")
        device.entries -= 2 * self._depth
        self._buffers = bytearray(2 * self._depth * MESSAGE_BYTES)
        self._view = memoryview(self._buffers)
        address = _address(self._buffers)
        access = v.enums.IBV_ACCESS_LOCAL_WRITE
        self._pool = v.mr.MR(self._pd, len(self._buffers), access, address=address)
        self._base = address
        cap = v.qp.QPCap(max_send_wr=self._depth, max_recv_wr=self._depth, max_send_sge=1, max_recv_sge=1,
                         max_inline_data=found.inline)
        init = v.qp.QPInitAttr(qp_type=v.enums.IBV_QPT_RC, scq=device.cq, rcq=device.cq, cap=cap, sq_sig_all=0)
        self._qp = v.qp.QP(self._pd, init)
        self._inline = min(init.cap.max_inline_data if hasattr(init, "cap") else found.inline, found.inline)
        self.number = int(self._qp.qp_num)
        self._sequence = secrets.randbits(24)
        self._regions: dict[int, tuple[Any, Any]] = {}
        self._posted: int = 0
        self._done: int = 0
        self._batch = Batch()
        self.failed = ""
        self.writes = self.sends = self.received = self.strays = 0
        self._sge = v.wr.SGE(0, 0, 0)
        self._receives = [self._receive(index) for index in range(self._depth)]
        attr = v.qp.QPAttr(port_num=found.port)
        attr.pkey_index = found.pkey_index
        attr.qp_access_flags = access | v.enums.IBV_ACCESS_REMOTE_WRITE
        self._qp.to_init(attr)
        for request, _ in self._receives:
            self._qp.post_recv(request)

    def _receive(self, index: int) -> tuple[Any, Any]:
        """The receive request of one buffer, which is used again and again."""
        sge = self._v.wr.SGE(self._base + index * MESSAGE_BYTES, MESSAGE_BYTES, self._pool.lkey)
        return self._v.wr.RecvWR(wr_id=_RECEIVE | index, num_sge=1, sg=[sge]), sge

    # -------------------------------------------------------------------- connecting

    def describe(self) -> frames.Port:
        """For the other side."""
        found = self._device.found
        return frames.Port(self.number, self._sequence, found.mtu, self._depth, found.gid, found.lid)

    def connect(self, far: frames.Port) -> None:
        """To the other side's. Raises BadPeer, OSError."""
        if not far.depth > 0 or not 1 <= far.mtu <= 5:
            raise BadPeer("a queue pair that cannot be")
        found, v = self._device.found, self._v
        try:
            route = v.addr.GlobalRoute(dgid=v.addr.GID(_gid_text(far.gid)), sgid_index=found.gid_index, hop_limit=64,
                                       traffic_class=found.traffic_class)
            attr = v.qp.QPAttr(port_num=found.port)
            attr.dest_qp_num, attr.path_mtu = far.number, min(far.mtu, found.mtu)
            attr.rq_psn, attr.sq_psn = far.sequence & 0xFFFFFF, self._sequence
            attr.max_dest_rd_atomic = attr.max_rd_atomic = 1
            attr.min_rnr_timer, attr.rnr_retry = 1, 7
            attr.timeout, attr.retry_cnt = found.timeout, found.retries
            attr.ah_attr = v.addr.AHAttr(port_num=found.port, is_global=1, gr=route, dlid=far.lid,
                                       sl=found.service_level)
            self._qp.to_rts(attr)
        except Exception as error:
            raise VerbsError(f"queue pair: {error}") from None
        journal.detail("queue-pair", host=self._contact.peer.name, number=self.number, far=far.number)

    def live(self) -> None:
        """Both directions go by it."""

    def region(self, mirror: Mirror) -> tuple[int, int]:
        """Where the other side writes: address and key. OSError."""
        copy, v = mirror.copy, self._v
        if mirror.slot not in self._regions:
            ring, local = copy.ring_bytes, v.enums.IBV_ACCESS_LOCAL_WRITE
            into = None
            try:
                into = v.mr.MR(self._pd, ring, local | v.enums.IBV_ACCESS_REMOTE_WRITE,
                               address=copy.address + copy.ring_at(False))
                out = v.mr.MR(self._pd, ring, local, address=copy.address + copy.ring_at(True))
            except Exception as error:
                if into is not None:
                    into.close()
                raise VerbsError(f"registering a ring: {error}") from None
            self._regions[mirror.slot] = (into, out)
        return copy.address + copy.ring_at(False), int(self._regions[mirror.slot][0].rkey)

    # ------------------------------------------------------------------------ sending

    def transport(self) -> Transport:
        """Ourselves."""
        return self

    def room(self) -> bool:
        """Whether one more write may be posted: one for what waits, one for itself."""
        return not self._batch.behind and self._under_way < self._depth - SPARE

    @property
    def _under_way(self) -> int:
        return self._posted - self._done

    def write(self, mirror: Mirror, at: int, base: int, size: int) -> None:
        """Bytes of our program's ring into the other copy. OSError."""
        self.flush()
        copy = mirror.copy
        source = copy.address + copy.ring_at(True) + ((at - base) & (copy.ring_bytes - 1))
        v, e = self._v, self._v.enums
        sge = v.wr.SGE(source, size, self._regions[mirror.slot][1].lkey)
        flags = self._flags(size)
        request = v.wr.SendWR(wr_id=self._posted, opcode=e.IBV_WR_RDMA_WRITE_WITH_IMM, num_sge=1, sg=[sge],
                              send_flags=flags, imm_data=self._immediate(mirror.far_slot))
        request.set_wr_rdma(mirror.far_rkey, mirror.far_address + (at & (copy.ring_bytes - 1)))
        self._post(request)
        self.writes += 1

    def queued(self) -> int:
        """Bytes of records that wait for room."""
        return self._batch.queued

    def send(self, record: Record) -> None:
        """A record, behind the writes before it; with others that are said at the same time."""
        self._batch.add(record)

    def flush(self) -> bool:
        """Post the records that wait. True: there were some."""
        return self._batch.flush(lambda: self._under_way < self._depth - 2, self._send)

    def _send(self, body: bytes) -> None:
        v, e = self._v, self._v.enums
        place = (self._depth + self._posted % self._depth) * MESSAGE_BYTES
        self._view[place:place + len(body)] = body
        sge = v.wr.SGE(self._base + place, len(body), self._pool.lkey)
        self._post(v.wr.SendWR(wr_id=self._posted, opcode=e.IBV_WR_SEND_WITH_IMM, num_sge=1, sg=[sge],
                               send_flags=self._flags(len(body)), imm_data=self._immediate(0)))
        self.sends += 1

    def _immediate(self, slot: int) -> int:
        return _swap(slot << _NUMBER_BITS | self._posted % _NUMBERS)

    def _flags(self, size: int) -> int:
        e, ahead = self._v.enums, self._posted - self._done
        signal = self._posted % SIGNAL_EVERY == 0 or ahead >= (self._depth - SPARE) // 2
        return (e.IBV_SEND_SIGNALED if signal else 0) | (e.IBV_SEND_INLINE if size <= self._inline else 0)

    def _post(self, request: Any) -> None:
        try:
            self._qp.post_send(request)
        except Exception as error:
            raise VerbsError(f"posting: {error}") from None
        self._posted += 1

    # ---------------------------------------------------------------------- receiving

    def completed(self, completion: Any) -> None:
        """One completion of ours. What is wrong with it is the end of the link."""
        self._contact.guard(lambda link: self._take(link, completion))

    def _take(self, link: Link, completion: Any) -> None:
        e = self._v.enums
        if completion.status != e.IBV_WC_SUCCESS:
            raise VerbsError(f"completion status {completion.status}, {self._posted - self._done} under way")
        if not completion.wr_id & _RECEIVE:
            self._done = max(self._done, int(completion.wr_id) + 1)
            return
        index, size = completion.wr_id & 0xFFFF, int(completion.byte_len)
        immediate = _swap(int(completion.imm_data))
        ahead = (immediate - (self.received - self.strays)) % _NUMBERS
        self.received += 1
        if 0 < ahead < _NUMBERS // 2:
            raise VerbsError("a request is missing")
        if ahead:
            self.strays += 1
            self._qp.post_recv(self._receives[index][0])
            return
        if completion.opcode == e.IBV_WC_RECV_RDMA_WITH_IMM:
            self._qp.post_recv(self._receives[index][0])
            link.on_written(immediate >> _NUMBER_BITS, size)
            return
        body = bytes(self._view[index * MESSAGE_BYTES:index * MESSAGE_BYTES + size])
        self._qp.post_recv(self._receives[index][0])
        link.on_message(body)

    # ---------------------------------------------------------------------------- end

    def forget(self, mirror: Mirror) -> None:
        """A connection is over."""
        for region in self._regions.pop(mirror.slot, ()):
            region.close()

    def close(self) -> None:
        """Nothing more arrives. What waits in the completion queue is of nobody then."""
        self._device.ports.pop(self.number, None)
        self._device.entries += 2 * self._depth
        self._qp.close()
        for into, out in self._regions.values():
            into.close()
            out.close()
        self._regions.clear()
        self._pool.close()
        self._pd.close()

    def status(self) -> dict[str, Any]:
        """For sdctl."""
        return {
            "number": self.number, "depth": self._depth, "under_way": self._posted - self._done, "writes": self.writes,
            "sends": self.sends, "received": self.received, "inline": self._inline, "strays": self.strays,
        }  # fmt: skip


def _swap(number: int) -> int:
    """Immediate data is in network order."""
    return int.from_bytes(number.to_bytes(4, "little"), "big")


def _gid_text(gid: bytes) -> str:
    return ":".join(gid[at:at + 2].hex() for at in range(0, 16, 2))


def _address(buffer: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _event_fds() -> set[int]:
    """Descriptors of RDMA events. pyverbs does not tell the completion channel's."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{entry}"):
                found.add(int(entry))
        except OSError:
            continue
    return found
