# SPDX-License-Identifier: Apache-2.0
"""The RDMA device while there is one, and looking for it while there is none.

    there      its port is active: queue pairs are made
    port down  the device stays open; no queue pair until the port is active again (PORT_ACTIVE, or what /sys says)
    none       it has not come yet, was taken away, or has failed: it is looked for every LOOK_S, from its address on

What the device says by itself (events.py) ends links at once, long before requests have been sent again for the last
time.  Each such end is counted under its reason.  A device that is taken away need not say so: soft ones are kept from
going until we close them.  So we look whether it still has its name.
"""

from __future__ import annotations

import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from monitor import journal
from monitor.hosts import discover
from monitor.hosts.contact import Contact, NotYet
from monitor.hosts.discover import Found
from monitor.hosts.events import OF_ADDRESS, OF_DEVICE, OF_QUEUE, Event, Said
from monitor.hosts.link import Port

LOOK_S: Final = 2.0


class Device(Protocol):
    """One that is open (loop.py, verbs.py)."""

    found: Found
    threads: bool
    """It carries bytes while we are `away`."""

    def port(self, contact: Contact) -> Port: ...
    def poll(self) -> bool: ...
    def spin(self) -> bool: ...
    def arm(self) -> None: ...
    def fileno(self) -> int: ...
    def async_fileno(self) -> int: ...
    def said(self) -> Iterator[Said]: ...
    def away(self) -> AbstractContextManager[None]: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def status(self) -> dict[str, Any]: ...


class Adapter:
    """See above."""

    def __init__(self, selector: selectors.BaseSelector, make: Callable[[], Device],
                 again: Callable[[], Found], lost: Callable[[str, int], int], came: Callable[[], None]) -> None:
        """`make` finds and opens it, `again` only finds it (OSError); `lost`: end the links of a queue pair, or of all
        (0), for that reason, and say how many; `came`: links may have queue pairs from here on."""
        self._selector, self._make, self._again, self._lost, self._came = selector, make, again, lost, came
        self.device: Device | None = None
        self.why = ""
        """What it waits for; "": there is RDMA."""
        self._watched: list[int] = []
        self._looked: float | None = None
        self.said: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()

    @property
    def threads(self) -> bool:
        """The device looks by itself."""
        return self.device is not None and self.device.threads

    # ------------------------------------------------------------------- coming, going

    def look(self, now: float) -> None:
        """To be called now and then."""
        if self.device is not None:
            self._check(self.device)
        elif self._looked is None or now - self._looked >= LOOK_S:
            self._looked = now
            self._open()

    def _open(self) -> None:
        try:
            device = self._make()
        except OSError as error:
            self._wait(error.strerror or str(error))
            return
        self.device = device
        for fd, heed in ((device.fileno(), lambda _mask: None), (device.async_fileno(), self._heed)):
            self._selector.register(fd, selectors.EVENT_READ, heed)
            self._watched.append(fd)
        journal.event("rdma-device", device=device.found.device, port=device.found.port)
        self._up() if discover.is_active(device.found) else self._wait(self._down_text(device))

    def _check(self, device: Device) -> None:
        if not discover.exists(device.found):
            self._close("device-gone", f"{device.found.device} is gone")
        elif self.why and discover.is_active(device.found):
            self._up()

    def _up(self) -> None:
        self.why = ""
        self._came()

    def _wait(self, why: str) -> None:
        if why != self.why:
            journal.warn("no-rdma-yet", why=why)
        self.why = why

    @staticmethod
    def _down_text(device: Device) -> str:
        return f"port {device.found.port} of {device.found.device} is down"

    def _close(self, reason: str, why: str) -> None:
        """All links end, and then the device."""
        device = self.device
        assert device is not None
        self._end(reason, why)
        self._wait(why)
        self._looked = time.monotonic()  # one that fails again and again is not opened all the time
        self._forget()
        device.stop()
        device.close()

    def _end(self, reason: str, why: str, queue: int = 0) -> None:
        self.losses[reason] += self._lost(why, queue)

    def _forget(self) -> None:
        self.device = None
        for fd in self._watched:
            self._selector.unregister(fd)
        self._watched.clear()

    # --------------------------------------------------------------- what the device says

    def _heed(self, _mask: int) -> None:
        device = self.device
        assert device is not None
        try:
            for said in device.said():
                self.said[said.name] += 1
                journal.warn("rdma-event", device=device.found.device, event=said.name, port=said.port)
                self._act(device, said)
                if self.device is not device:
                    return
        except OSError as error:
            self._close("device-gone", f"{device.found.device}: {error.strerror or error}")

    def _act(self, device: Device, said: Said) -> None:
        ours = said.port in (0, device.found.port)
        if said.event in OF_DEVICE:
            self._close(said.name, f"{device.found.device} has failed ({said.name})")
        elif said.event in OF_QUEUE:
            self._end(said.name, f"the device has ended the queue pair ({said.name})", said.queue)
        elif said.event == Event.PORT_ERR and ours:
            if said.port or not discover.is_active(device.found):
                self._end(said.name, self._down_text(device))
                self._wait(self._down_text(device))
        elif said.event == Event.PORT_ACTIVE and ours and (said.port or discover.is_active(device.found)):
            if self.why:
                self._up()
        elif said.event in OF_ADDRESS and ours:
            self._check_address(device, said)

    def _check_address(self, device: Device, said: Said) -> None:
        """Links with an address that we have no more are over; the other hosts know us by it."""
        try:
            found = self._again()
        except OSError as error:
            self._close(said.name, error.strerror or str(error))
            return
        have = device.found
        if found._replace(mtu=0) != have._replace(mtu=0):
            self._close(said.name, f"{have.device} has another address")
            self._open()

    # ------------------------------------------------------------------------- as a device

    def port(self, contact: Contact) -> Port:
        """A queue pair; OSError, NotYet as long as there can be none."""
        if self.device is None or self.why:
            raise NotYet(self.why)
        return self.device.port(contact)

    def poll(self) -> bool:
        """As all of these: nothing happens without a device."""
        return self.device is not None and self.device.poll()

    def spin(self) -> bool:
        """See loop.py."""
        return self.device is not None and self.device.spin()

    def arm(self) -> None:
        """See loop.py."""
        if self.device is not None:
            self.device.arm()

    def away(self) -> AbstractContextManager[None]:
        """While the monitor's loop waits."""
        return nullcontext() if self.device is None else self.device.away()

    def stop(self) -> None:
        """We leave."""
        if self.device is not None:
            self.device.stop()

    def status(self) -> dict[str, Any] | None:
        """For sdctl: of the device."""
        return None if self.device is None else self.device.status()

    def status_beside(self) -> dict[str, Any]:
        """Whether or not there is one: what it waits for, what it has said, links that ended so."""
        return {"waits": self.why, "said": dict(self.said), "lost": dict(self.losses)}
