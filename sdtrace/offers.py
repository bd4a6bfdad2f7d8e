# SPDX-License-Identifier: Apache-2.0
"""Offers of our processes with the monitor, and the segments that came of them.

Starting a monitor takes as long as starting Python, so it is begun in a thread when the first process is injected, and
waited for at the first offer.  While there has been none, offers are refused, with back-off.  A monitor that goes
(restart, upgrade) is looked for again, is told what we hold, and gets the offers that were open: no connection notices.
"""

from __future__ import annotations

import itertools
import os
import syslog
import time
from collections.abc import Callable

from policies import Settings
from sdlib import abi
from sdlib.wire.events import Asked, Lost, MonitorUnavailable, Paired, Pending, Refused, Reload, Ring
from sdtrace import far
from sdtrace.areas import Area
from sdtrace.errands import Errands
from sdtrace.held import Held, Key, Origin, forbidden, reason_of, ring_wanted
from sdtrace.holdings import Holdings
from sdtrace.meter import Meter
from sdtrace.opener import Opener
from sdtrace.segments import forsake, same_socket, send_back
from sdtrace.stuck import Stuck
from sdtrace.vault import Vault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sdlib.wire.client import MonitorClient

OFFER_TIMEOUT_S: Final = 0.05
RETRY_S: Final = 0.2
"""How often to look for a new monitor while offers wait for one."""
_SWEEP_S: Final = 1.0


class Broker:
    """All offers of one supervisor."""

    def __init__(
        self, watch: Callable[[int], None], unwatch: Callable[[int], None], settings: Callable[[str, int], Settings],
        reload: Callable[[], None], vault: Vault | None = None,
    ) -> None:  # fmt: skip
        """`watch`, `unwatch`: the monitor's descriptor in and out of the event loop; `reload`: policies changed."""
        self._watch, self._unwatch = watch, unwatch
        self._reload = reload
        self._own = Holdings(settings, vault or Vault(None))
        self.segment_of, self.attach = self._own.segment_of, self._own.attach
        self._client: MonitorClient | None = None
        self._opener = Opener()
        self._ids = itertools.count(1)
        self._open: dict[int, Key] = {}
        self._homeless: dict[Key, Held] = {}
        """Offers that were open when the monitor went."""
        self._had_one = False
        self._untold = False
        """Of what we hold, no monitor knows yet."""
        self._stuck = Stuck()
        self._far = far.Far()
        self._gone_at = time.monotonic()
        self._swept = 0.0
        self.errands = Errands(self._own, self._far, self._take_back)
        self.asked = Meter()  # how long the monitor's answers took

    # --------------------------------------------------------------- monitor

    def prepare(self) -> None:
        """An offer is likely soon: begin to open the monitor."""
        if self._client is None:
            self._opener.prepare()

    def _monitor(self, *, wait: bool = True) -> MonitorClient | None:
        """The client, opened if it is time to try; without `wait` only if that is done."""
        self.prepare()
        if self._client is None:
            self._client = self._opener.take(wait=wait, impatient=bool(self._homeless))
            if self._client is not None:
                self._had_one = True
                self._watch(self._client.fileno())
                self._introduce(self._client)
        return self._client

    def _introduce(self, client: MonitorClient) -> None:
        """Tell a new monitor what we hold, and offer again what waited."""
        self._stuck.clear()
        self._untold = False
        for key, held in self._own.to_tell():
            client.hold(held.name, held.segment, held.side, far=held.far)
            self._own.named[held.name] = key
        self._offer_homeless(client)

    def _offer_homeless(self, client: MonitorClient) -> None:
        homeless, self._homeless = self._homeless, {}
        for key, held in homeless.items():
            if client.alive and not self._stuck:
                self._offer_again(client, key, held.origin)
            else:
                self._homeless[key] = held

    def _offer_again(self, client: MonitorClient, key: Key, origin: Origin) -> None:
        """An offer of before, if the connection is still there."""
        if not key.current or key.area.block_state(key.block) != abi.const.SD_BLOCK_OFFERED:
            return
        try:
            sock = same_socket(origin)
        except OSError:
            return  # it is closing: the library will say so
        try:
            result, reason = self._offer_to(client, key, sock, origin)
        finally:
            os.close(sock)
        key.area.view.block[key.block].reason = reason
        if result == abi.const.SD_OFFER_PAIRED:
            key.area.exchange_state(key.block, abi.const.SD_BLOCK_OFFERED, abi.const.SD_BLOCK_PAIRED)
        elif result == abi.const.SD_OFFER_REFUSED and reason != abi.const.SD_REASON_no_monitor:
            key.pin(reason)

    def _drop_client(self, why: str) -> None:
        """The monitor has gone. What was open waits for the next."""
        if self._client is None:
            return
        self._unwatch(self._client.fileno())
        self._client.close()
        self._client = None
        for key in self._open.values():
            self._homeless[key] = self._own.all.pop(key)
            key.area.view.block[key.block].reason = abi.const.SD_REASON_no_monitor
        self._open.clear()
        self._stuck.clear()
        syslog.syslog(syslog.LOG_WARNING, f"monitor: {why}")
        self._gone_at = time.monotonic()
        self._opener.again()

    def tick(self) -> bool:
        """Now and then: look for a monitor if somebody waits for one. True: call again within RETRY_S."""
        if self._missed():
            self._monitor(wait=False)
        self._stuck.sweep()
        self._sweep()
        if self._client is None and time.monotonic() > self._gone_at + far.LEAVE_S:
            for key, held in self._own.all.items():
                self._far.leave(key, held, abi.const.SD_REASON_no_monitor)
        return self._far.tick() or self._missed() or bool(self._stuck)

    def _missed(self) -> bool:
        """Offers wait for a monitor, or connections to another host, whose bytes it carries."""
        return bool(self._homeless) or self._untold or (self._client is None and self._own.mirrored())

    # ----------------------------------------------------------------- offers

    def offer(self, key: Key, sock: int, origin: Origin) -> tuple[int, int]:
        """Offer the connection of descriptor `sock` for `key`.

        Returns `enum sd_offer_result` and, when refused, the `enum sd_reason`.
        """
        self._make_way(key)
        if self._over_quota(key, origin):
            return abi.const.SD_OFFER_REFUSED, abi.const.SD_REASON_quota
        client = self._monitor(wait=not self._had_one)
        if (client is None and self._had_one) or self._stuck:
            self._homeless[key] = Held(next(self._ids), origin)
            return abi.const.SD_OFFER_PENDING, abi.const.SD_REASON_no_monitor
        if client is None:
            return abi.const.SD_OFFER_REFUSED, abi.const.SD_REASON_no_monitor
        return self._offer_to(client, key, sock, origin)

    def _make_way(self, key: Key) -> None:
        """What we have of the connection is over; a block that is offered has no rings in use (sock/again.c)."""
        held = self._own.all.get(key)
        if held is not None and held.attached:
            self._let_go(key)
        self.withdraw(key)

    def _over_quota(self, key: Key, origin: Origin) -> bool:
        if not self._own.over_quota(key, origin):
            return False
        self._sweep(now=True)
        return self._own.over_quota(key, origin)

    def _offer_to(self, client: MonitorClient, key: Key, sock: int, origin: Origin) -> tuple[int, int]:
        held = Held(next(self._ids), origin)
        begin = time.perf_counter()
        try:
            answer = client.offer(sock, held.name, ring_wanted(key, origin), OFFER_TIMEOUT_S)
        except MonitorUnavailable as error:
            self.events()
            self._drop_client(str(error))
            self._homeless[key] = held
            return abi.const.SD_OFFER_PENDING, abi.const.SD_REASON_no_monitor
        self._opener.works()
        self.asked.add(time.perf_counter() - begin)
        if isinstance(answer, Paired) and forbidden(origin, answer.far):
            self._return(held, answer.memfd)
            return abi.const.SD_OFFER_REFUSED, abi.const.SD_REASON_policy
        if isinstance(answer, Paired):
            self._own.keep(key, held, answer)
            return abi.const.SD_OFFER_PAIRED, 0
        if isinstance(answer, Pending):
            self._own.all[key] = held
            self._open[held.name] = key
            if not client.answered(held.name):
                self._stuck.add(client, key, held, sock)
            return abi.const.SD_OFFER_PENDING, 0
        return abi.const.SD_OFFER_REFUSED, reason_of(answer)

    def inherit(self, key: Key, held: Held) -> None:
        """A connection of the supervisor before us, which the monitor is to be told of."""
        self._ids = itertools.count(held.name + 1)
        self._had_one = self._untold = True
        self._own.inherit(key, held)

    @property
    def untold(self) -> bool:
        """Does no monitor know yet what we have taken over from the supervisor before us?"""
        return self._untold

    @property
    def monitor_path(self) -> str | None:
        """Where the monitor in use listens."""
        return None if self._client is None else self._client.path

    def fileno(self) -> int:
        """Descriptor of the monitor's client, -1 without one."""
        return -1 if self._client is None else self._client.fileno()

    def events(self) -> None:
        """Take in what the monitor says about earlier offers, and what it wants to know."""
        client = self._client
        if client is None:
            return
        lost = "it hung up"
        for event in client.events():
            if isinstance(event, Paired):
                self._paired(event)
            elif isinstance(event, Lost):
                lost = event.reason
                self._lost(event)
            elif isinstance(event, Reload):
                self._reload()
            elif isinstance(event, Asked):
                self.errands.tell(client, event, self._homeless)
            elif isinstance(event, Ring):
                self.errands.ring(client, event, self._open.get(event.offer_id))
        if self._client is not None and not self._client.alive:
            self._drop_client(lost)
        elif self._client is not None and self._stuck and self._stuck.all_answered():
            self._stuck.clear()
            self._offer_homeless(self._client)

    def _take_back(self, key: Key, held: Held, left: int) -> bool:
        """Rings to which its program has not come: as if the connection had never been paired.

        But where rings cannot be registered (`Left`): the next ones could not be, either.
        """
        from sdlib.wire.left import Left

        paired, there = abi.const.SD_BLOCK_PAIRED, left != Left.MEMORY
        to = abi.const.SD_BLOCK_TCP if there else abi.const.SD_BLOCK_PINNED
        if held.attached or not key.area.exchange_state(key.block, paired, to):
            return False
        if not there:
            key.area.view.block[key.block].reason = abi.const.SD_REASON_no_memory
        self._let_go(key)
        return True

    def nudge(self, key: Key, leave: int = 0) -> int:
        """See Errands.nudge()."""
        return self.errands.nudge(self._client, key, leave)

    def _paired(self, event: Paired) -> None:
        key = self._open.pop(event.offer_id, None)
        held = self._own.all.pop(key, None) if key is not None else None
        if key is None or held is None:
            os.close(event.memfd)
            return
        key.hold_up(0)
        if not key.current:
            self._return(held, event.memfd)
        elif forbidden(held.origin, event.far):
            self._return(held, event.memfd)
            key.pin(abi.const.SD_REASON_policy)
        elif self._over_quota(key, held.origin):
            self._return(held, event.memfd)
            key.pin(abi.const.SD_REASON_quota)
        else:
            self._own.keep(key, held, event)
            if not key.area.exchange_state(key.block, abi.const.SD_BLOCK_OFFERED, abi.const.SD_BLOCK_PAIRED):
                self._let_go(key)

    def _return(self, held: Held, memfd: int) -> None:
        """A segment that nobody wants."""
        os.close(memfd)
        if self._client is not None:
            self._client.release(held.name)

    def _lost(self, event: Lost) -> None:
        """Offers that the monitor refuses later on; those of a monitor that has gone stay, for `_drop_client`."""
        for offer_id in event.offer_ids if event.code else ():
            key = self._open.pop(offer_id, None)
            if key is not None:
                del self._own.all[key]
                key.pin(reason_of(Refused(event.reason, event.code)))

    def keep_off(self, key: Key, reason: int) -> None:
        """A connection that is not attached shall stay on TCP (`enum sd_reason`)."""
        self.withdraw(key)
        key.pin(reason)

    def forsake(self, key: Key) -> None:
        """Our end of a segment that it has not attached goes to another program, which may offer the connection."""
        held = self._own.all.get(key)
        if held is not None and held.segment >= 0 and not held.attached and not held.far:
            forsake(held.segment, held.side)

    def withdraw(self, key: Key, *, closing: bool = False) -> None:
        """Forget an open offer or a segment that was not attached. `closing`: the program closes the connection."""
        self._homeless.pop(key, None)
        self._stuck.drop(key, closing=closing)
        held = self._own.all.get(key)
        if held is None or held.attached:
            return
        if self._open.pop(held.name, None) is not None:
            del self._own.all[key]
            if self._client is not None:
                self._client.withdraw(held.name)
        else:
            self._let_go(key)

    def _let_go(self, key: Key) -> None:
        """The connection is over: give up its segment."""
        self._far.forget(key)
        held = self._own.let_go(key)
        if held.paired and self._client is not None:
            self._client.release(held.name)

    def _sweep(self, *, now: bool = False) -> None:
        """Give up segments of blocks that were freed since."""
        if not now and time.monotonic() < self._swept + _SWEEP_S:
            return
        self._swept = time.monotonic()
        for key in self._own.outdated():
            self._let_go(key)
        for key in [key for key in self._homeless if not key.current]:
            del self._homeless[key]

    def measured(self, key: Key, memory: int) -> None:
        """So many bytes of memory its rings use."""
        self._own.measured(key, memory)

    def held(self) -> list[tuple[Key, Held]]:
        """All connections that still are what they were."""
        return self._own.current()

    def forget_area(self, area: Area) -> None:
        """Nobody sees this area any more."""
        self._stuck.sweep()
        for key in [key for key in (*self._own.all, *self._homeless) if key.area is area]:
            self.withdraw(key)
            if key in self._own.all:
                self._let_go(key)

    # ----------------------------------------------------------------- policy

    def rejudge(self, stays: Callable[[Origin], bool]) -> int:
        """Policies have changed: connections for which `stays` move back to TCP, without a reset. How many do."""
        moved = 0
        for key, held in list(self._own.all.items()):
            stay = stays(held.origin) or (held.paired and forbidden(held.origin, held.far))
            if not key.current or not stay:
                continue
            if held.paired and held.attached:
                moved += send_back(held.segment)
            else:
                self.keep_off(key, abi.const.SD_REASON_policy)
        return moved

    def close(self, *, over: bool) -> None:
        """Hang up. `over`: nobody has any connection any more, which another host has to be told, too."""
        self._stuck.sweep(over=True)
        for key in list(self._own.all) if over else ():
            self._let_go(key)
        self._far.close()
        self._own.close()
        self._opener.close()
        if self._client is not None:
            self._client.close()
            self._client = None


__all__ = ["RETRY_S", "Broker", "Held", "Key", "Origin"]
