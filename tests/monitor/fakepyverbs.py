# SPDX-License-Identifier: Apache-2.0
"""A pyverbs whose one device is memory of this process, for monitor/hosts/verbs.py: what tests/hosted/fakeverbs.c is
for the loop in C.

Queue pairs of RC, as far as verbs.py uses them: requests in order, read from memory when they are carried out unless
they were inline; a receive for each SEND and each WRITE WITH IMMEDIATE, without which the request waits; keys, bounds
and rights of memory regions; queues that are full.  Nothing moves but by `step`.  Closing a queue pair carries out the
writes that are under way and tells nobody.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections import deque
from types import SimpleNamespace
from typing import Any, Final

ENUMS: Final = SimpleNamespace(
    IBV_ACCESS_LOCAL_WRITE=1, IBV_ACCESS_REMOTE_WRITE=2, IBV_QPT_RC=2, IBV_WR_RDMA_WRITE_WITH_IMM=1,
    IBV_WR_SEND_WITH_IMM=3, IBV_SEND_SIGNALED=2, IBV_SEND_INLINE=8, IBV_WC_SUCCESS=0, IBV_WC_REM_ACCESS_ERR=10,
    IBV_WC_RETRY_EXC_ERR=12, IBV_WC_SEND=0, IBV_WC_RECV=128, IBV_WC_RECV_RDMA_WITH_IMM=129,
)
INLINE_MOST: Final = 96
_pairs: dict[int, QP] = {}
_regions: dict[int, MR] = {}
_numbers = itertools.count(1)
_event_fds: set[int] = set()


class Context:
    """The device, opened. What a test puts into `events` it says by itself."""

    def __init__(self, name: str) -> None:
        assert name == "fake"
        self.fd = os.eventfd(0, os.EFD_SEMAPHORE)
        self.events: deque[int] = deque()
        _event_fds.add(self.fd)

    def say(self, event: int) -> None:
        self.events.append(event)
        os.eventfd_write(self.fd, 1)

    def get_async_event(self) -> Any:
        os.eventfd_read(self.fd)
        return SimpleNamespace(event_type=self.events.popleft(), ack=lambda: None)

    def query_port(self, number: int) -> Any:
        return SimpleNamespace(active_mtu=4)

    def close(self) -> None:
        _event_fds.discard(self.fd)
        os.close(self.fd)


class CompChannel:
    """Tells of the next completion, once somebody has armed."""

    def __init__(self, context: Context) -> None:
        self.fd = os.eventfd(0, os.EFD_SEMAPHORE)
        _event_fds.add(self.fd)

    def get_cq_event(self, cq: CQ) -> None:
        os.eventfd_read(self.fd)

    def close(self) -> None:
        _event_fds.discard(self.fd)
        os.close(self.fd)


class CQ:
    """Completions, in order."""

    def __init__(self, context: Context, entries: int, own: None, channel: CompChannel, vector: int) -> None:
        self.channel = channel
        self.waiting: deque[Any] = deque()
        self.armed = False

    def complete(self, **what: int) -> None:
        self.waiting.append(SimpleNamespace(**{"status": 0, "byte_len": 0, "imm_data": 0, "freed": 0} | what))
        if self.armed:
            self.armed = False
            os.eventfd_write(self.channel.fd, 1)

    def poll(self, most: int) -> tuple[int, list[Any]]:
        found = [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]
        for one in found:
            if one.qp_num in _pairs and not one.opcode & ENUMS.IBV_WC_RECV:
                _pairs[one.qp_num].freed = one.freed  # it tells of all before it
        return len(found), found

    def close(self) -> None:
        pass

    def req_notify(self, solicited: bool) -> None:
        self.armed = True


class PD:
    """What queue pairs and regions belong to."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def close(self) -> None:
        pass


class MR:
    """Memory that requests may name."""

    def __init__(self, pd: PD, length: int, access: int, address: int) -> None:
        self.pd, self.length, self.access, self.address = pd, length, access, address
        self.lkey = self.rkey = next(_numbers)
        _regions[self.lkey] = self

    def close(self) -> None:
        del _regions[self.lkey]


def _within(key: int, at: int, size: int, access: int, pd: PD) -> bool:
    found = _regions.get(key)
    return (found is not None and found.pd is pd and found.access & access == access and found.address <= at
            and at + size <= found.address + found.length)


class SGE:
    """A piece of memory."""

    def __init__(self, at: int, length: int, lkey: int) -> None:
        self.at, self.length, self.lkey = at, length, lkey


class WR:
    """Of both kinds."""

    def __init__(self, wr_id: int, num_sge: int, sg: list[SGE], opcode: int = 0, send_flags: int = 0,
                 imm_data: int = 0) -> None:
        self.wr_id, self.opcode, self.flags, self.imm_data = wr_id, opcode, send_flags, imm_data
        (self.sge,) = sg
        self.rkey = self.remote = 0
        self.copied = b""

    def set_wr_rdma(self, rkey: int, remote: int) -> None:
        self.rkey, self.remote = rkey, remote

    @property
    def writes(self) -> bool:
        return bool(self.opcode == ENUMS.IBV_WR_RDMA_WRITE_WITH_IMM)


class QP:
    """One end of a queue pair, with the requests that it was ever given."""

    def __init__(self, pd: PD, init: Any) -> None:
        self.pd, self.cq, self.depth = pd, init.scq, init.cap.max_send_wr
        self.qp_num = next(_numbers)
        self.far = 0
        self.ready = self.broken = False
        self.requests: list[WR] = []
        self.receives: deque[WR] = deque()
        self.carried = self.freed = 0
        _pairs[self.qp_num] = self

    def to_init(self, attr: Any) -> None:
        pass

    def to_rts(self, attr: Any) -> None:
        self.far, self.ready = attr.dest_qp_num, True

    def post_send(self, request: WR) -> None:
        if len(self.requests) - self.freed >= self.depth:
            raise OSError("no room in the queue")
        assert request.sge.length, "some devices take that for 2 GiB"
        if request.flags & ENUMS.IBV_SEND_INLINE:
            assert request.sge.length <= INLINE_MOST
            request.copied = ctypes.string_at(request.sge.at, request.sge.length)
        self.requests.append(request)

    def post_recv(self, request: WR) -> None:
        assert len(self.receives) < self.depth
        self.receives.append(request)

    def source(self, request: WR) -> bytes | None:
        sge = request.sge
        if request.copied:
            return request.copied
        return ctypes.string_at(sge.at, sge.length) if _within(sge.lkey, sge.at, sge.length, 0, self.pd) else None

    def target(self, request: WR) -> int:
        """Where its bytes go in our memory; 0: nowhere, by the rules."""
        if request.writes:
            write = ENUMS.IBV_ACCESS_REMOTE_WRITE
            return request.remote if _within(request.rkey, request.remote, request.sge.length, write, self.pd) else 0
        place = self.receives[0].sge
        return place.at if request.sge.length <= place.length else 0

    def take(self, imm_data: int, size: int, *, written: bool) -> None:
        """One receive is used up."""
        opcode = ENUMS.IBV_WC_RECV_RDMA_WITH_IMM if written else ENUMS.IBV_WC_RECV
        self.cq.complete(wr_id=self.receives.popleft().wr_id, qp_num=self.qp_num, byte_len=size, imm_data=imm_data,
                         opcode=opcode)

    def fail(self, request: WR, status: int) -> None:
        self.broken = True
        self.cq.complete(wr_id=request.wr_id, qp_num=self.qp_num, status=status, opcode=ENUMS.IBV_WC_SEND,
                         freed=self.carried)

    def close(self) -> None:
        far = _pairs.get(self.far)
        for request in self.requests[self.carried:] if far is not None else ():
            data = self.source(request)
            at = far.target(request) if far is not None and request.writes else 0
            if data and at:
                ctypes.memmove(at, data, len(data))
        del _pairs[self.qp_num]


def _execute(near: QP, far: QP, request: WR) -> int:
    data, at = near.source(request), far.target(request)
    if data is None or not at:
        near.fail(request, ENUMS.IBV_WC_REM_ACCESS_ERR)
        far.broken = True
        return -1
    ctypes.memmove(at, data, len(data))
    far.take(request.imm_data, len(data), written=request.writes)
    return 1


def step(number: int) -> int:
    """The next request is carried out. 1; 0: there is none, or it waits; -1: it has failed."""
    near = _pairs.get(number)
    if near is None or not waiting(number):
        return 0
    request, far = near.requests[near.carried], _pairs.get(near.far)
    if far is not None and far.ready and not far.broken and not far.receives:
        return 0  # RNR
    near.carried += 1
    if far is None or not far.ready or far.broken:
        near.fail(request, ENUMS.IBV_WC_RETRY_EXC_ERR)
        return -1
    done = _execute(near, far, request)
    if done == 1 and request.flags & ENUMS.IBV_SEND_SIGNALED:
        near.cq.complete(wr_id=request.wr_id, qp_num=number, opcode=ENUMS.IBV_WC_SEND, freed=near.carried)
    return done


def waiting(number: int) -> int:
    """Requests that are under way."""
    near = _pairs.get(number)
    return 0 if near is None or near.broken or not near.ready else len(near.requests) - near.carried


def again(number: int, count: int) -> int:
    """Some of the requests that were carried out last are carried out again, in order. -1: a receive is missing."""
    near = _pairs[number]
    far = _pairs[near.far]
    for request in near.requests[near.carried - count:near.carried]:
        if not far.receives or _execute(near, far, request) < 0:
            return -1
    return 0


def stray(number: int, immediate: int) -> int:
    """At the far end arrives a WRITE without bytes that was not posted. -1: a receive is missing."""
    far = _pairs[_pairs[number].far]
    if not far.receives:
        return -1
    far.take(int.from_bytes(immediate.to_bytes(4, "little"), "big"), 0, written=True)
    return 0


def event_fds() -> set[int]:
    """Of all completion channels."""
    return set(_event_fds)


def _plain(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def modules() -> SimpleNamespace:
    """As discover.pyverbs()."""
    return SimpleNamespace(
        device=SimpleNamespace(Context=Context), cq=SimpleNamespace(CompChannel=CompChannel, CQ=CQ),
        pd=SimpleNamespace(PD=PD), mr=SimpleNamespace(MR=MR), enums=ENUMS,
        qp=SimpleNamespace(QP=QP, QPCap=_plain, QPInitAttr=_plain, QPAttr=_plain),
        wr=SimpleNamespace(SGE=SGE, SendWR=WR, RecvWR=WR),
        addr=SimpleNamespace(GlobalRoute=_plain, GID=str, AHAttr=_plain),
    )  # fmt: skip
