# SPDX-License-Identifier: Apache-2.0
"""Offers of our processes with the monitor, and the segments that came of them.

A segment's descriptor is kept from the pairing until the process attaches, withdraws or loses its area.  A socket of
the program is never kept: holding it would keep its connection open.

Starting a monitor takes as long as starting Python, so it is begun in a thread when the first process is injected, and
waited for at the first offer.  A monitor that is gone is looked for again at a later offer, with back-off; until then
offers are refused.
"""

from __future__ import annotations

import itertools
import os
import syslog
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sdlib import abi
from sdlib.wire import Lost, MonitorClient, MonitorUnavailable, Paired, Pending
from sdtrace.areas import Area

OFFER_TIMEOUT_S: Final = 0.05
_OPEN_TIMEOUT_S: Final = 5.0
_BACK_OFF_S: Final = (0.2, 1.0, 5.0, 15.0)

SWEEP_EVERY = 64  # attaches between two looks for segments whose block is free again


@dataclass(frozen=True)
class Key:
    """A block, by area and place; `generation` tells its successors apart."""

    area: Area
    block: int
    generation: int

    def __hash__(self) -> int:
        """Areas are compared by identity."""
        return hash((id(self.area), self.block, self.generation))


class Broker:
    """All offers of one supervisor."""

    def __init__(self, watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        """`watch` and `unwatch` take the monitor's descriptor in and out of the event loop."""
        self._watch, self._unwatch = watch, unwatch
        self._client: MonitorClient | None = None
        self._opening: Future[MonitorClient] | None = None
        self._ids = itertools.count(1)
        self._open: dict[int, Key] = {}
        self._by_key: dict[Key, int] = {}
        self._segments: dict[Key, int] = {}
        self._attached: dict[Key, int] = {}
        self._attaches = 0
        self._failures = 0
        self._retry_at = 0.0

    # --------------------------------------------------------------- monitor

    def prepare(self) -> None:
        """An offer is likely soon: begin to open the monitor."""
        if self._client is None and self._opening is None and time.monotonic() >= self._retry_at:
            pool = ThreadPoolExecutor(1, thread_name_prefix="open-monitor")
            self._opening = pool.submit(MonitorClient.open, spawn=True, timeout_s=_OPEN_TIMEOUT_S)
            pool.shutdown(wait=False)

    def _monitor(self) -> MonitorClient | None:
        """The client, opened if it is time to try."""
        self.prepare()
        if self._client is None and self._opening is not None:
            opening, self._opening = self._opening, None
            try:
                self._client = opening.result()
            except (MonitorUnavailable, OSError) as error:
                self._give_up(str(error))
            else:
                self._watch(self._client.fileno())
        return self._client

    def _give_up(self, why: str) -> None:
        self._retry_at = time.monotonic() + _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
        self._failures += 1
        syslog.syslog(syslog.LOG_WARNING, f"monitor: {why}")

    def _drop_client(self, why: str) -> None:
        if self._client is not None:
            self._unwatch(self._client.fileno())
            self._client.close()
            self._client = None
            self._open.clear()
            self._by_key.clear()
            self._give_up(why)

    # ----------------------------------------------------------------- offers

    def offer(self, key: Key, sock: int) -> tuple[int, int]:
        """Offer the connection of descriptor `sock` for `key`.

        Returns `enum sd_offer_result` and, when refused, the `enum sd_reason`.
        """
        refused = abi.const.SD_OFFER_REFUSED
        self.withdraw(key)
        client = self._monitor()
        if client is None:
            return refused, abi.const.SD_REASON_no_monitor
        offer_id = next(self._ids)
        try:
            answer = client.offer(sock, offer_id, key.area.ring_bytes, OFFER_TIMEOUT_S)
        except MonitorUnavailable as error:
            self.events()
            self._drop_client(str(error))
            return refused, abi.const.SD_REASON_no_monitor
        self._failures = 0
        if isinstance(answer, Paired):
            self._segments[key] = answer.memfd
            key.area.set_side(key.block, answer.side)
            return abi.const.SD_OFFER_PAIRED, 0
        if isinstance(answer, Pending):
            self._open[offer_id] = key
            self._by_key[key] = offer_id
            return abi.const.SD_OFFER_PENDING, 0
        return refused, abi.const.SD_REASON_refused

    def fileno(self) -> int:
        """Descriptor of the monitor's client, -1 without one."""
        return -1 if self._client is None else self._client.fileno()

    def events(self) -> None:
        """Take in what the monitor says about earlier offers."""
        if self._client is None:
            return
        lost = ""
        for event in self._client.events():
            if isinstance(event, Paired):
                self._paired(event)
            elif isinstance(event, Lost):
                lost = event.reason
                for offer_id in event.offer_ids:
                    self._by_key.pop(self._open.pop(offer_id, None), None)  # type: ignore[arg-type]
        if not self._client.alive:
            self._drop_client(lost)

    def _paired(self, event: Paired) -> None:
        key = self._open.pop(event.offer_id, None)
        if key is None:
            os.close(event.memfd)
            return
        del self._by_key[key]
        area = key.area
        if area.block_generation(key.block) == key.generation:
            area.set_side(key.block, event.side)
            if area.exchange_state(key.block, abi.const.SD_BLOCK_OFFERED, abi.const.SD_BLOCK_PAIRED):
                self._segments[key] = event.memfd
                return
        os.close(event.memfd)

    def attach(self, key: Key) -> int | None:
        """The segment's descriptor, now the caller's to close; None when there is none for this block.

        A copy is kept while the block lives, for the program that gets the connection through execve.
        """
        segment = self._segments.pop(key, None)
        if segment is None:
            kept = self._attached.get(key)
            return None if kept is None else os.dup(kept)
        self._sweep()
        with suppress(OSError):  # out of descriptors: the connection cannot live through execve, nothing else
            self._attached[key] = os.dup(segment)
        return segment

    def _sweep(self) -> None:
        """Give up segments of blocks that were freed since; every so often, since it looks at all."""
        self._attaches += 1
        if self._attaches % SWEEP_EVERY:
            return
        for key in list(self._attached):
            if key.area.block_generation(key.block) != key.generation:
                os.close(self._attached.pop(key))

    def withdraw(self, key: Key) -> None:
        """Forget an open offer or a segment that was not attached."""
        offer_id = self._by_key.pop(key, None)
        if offer_id is not None:
            self._open.pop(offer_id, None)
            if self._client is not None:
                self._client.withdraw(offer_id)
        segment = self._segments.pop(key, None)
        if segment is not None:
            os.close(segment)

    def forget_area(self, area: Area) -> None:
        """Nobody sees this area any more."""
        for key in [key for key in self._attached if key.area is area]:
            os.close(self._attached.pop(key))
        for key in [key for key in (*self._by_key, *self._segments) if key.area is area]:
            self.withdraw(key)

    def close(self) -> None:
        """Hang up."""
        for segment in self._segments.values():
            os.close(segment)
        self._segments.clear()
        for segment in self._attached.values():
            os.close(segment)
        self._attached.clear()
        if self._opening is not None:
            with suppress(MonitorUnavailable, OSError):
                self._opening.result().close()
        if self._client is not None:
            self._client.close()
            self._client = None
