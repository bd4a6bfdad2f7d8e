# SPDX-License-Identifier: Apache-2.0
"""When the monitor's loop looks by itself for what programs and the device have, and when it has to be woken.

While it looks by itself, nobody needs to say anything: that is what a stream wants.  But to look without being asked
takes a processor from whoever has the next byte; with fewer than SPIN_CPUS, that is the program, its supervisor or the
other monitor.  There we are to be woken from the first message on, unless news come several times in a row, and
elsewhere we look for `spin_s` longer than there is news.  While many bytes go by there, we do not have to be woken for
each piece: that takes its program, its supervisor and us longer than the piece itself, and the next sleeper is woken
for one piece instead of for many.  So we *doze*: asleep for a millisecond, and nobody needs to say anything.

To be woken: each copy is armed, as a reader arms its ring ([W1]: membarrier, look once more); programs nudge, and the
completion channel and the other monitors' TCP connections are descriptors.

Only those connections are looked at that may have news, the *active* ones (conns.py): whatever happens to another one,
its program, a completion or a record of the other host says so, and makes it active.  One that has been so for QUIET
looks in vain is armed by itself, looked at once more, and left alone.  So what a pass costs follows the connections
that do something, however many are open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from typing import Final, Protocol

from monitor.hosts.mirror import Mirror
from sdlib import abi

SPIN_S: Final = 0.001
SPIN_CPUS: Final = 4
DOZE_S: Final = 0.001
QUIET: Final = 32
_STREAM: Final = 3
"""News so many times in a row are a stream."""
_MUCH: Final = 16384
"""So are so many bytes at once, after which we doze DOZES times before we have to be woken."""
DOZES: Final = 4


class Device(Protocol):
    """The RDMA device."""

    def spin(self) -> bool: ...
    def arm(self) -> None: ...


def spin_s(wanted_us: float | None) -> float:
    """How long to look: what hosts.yaml says, or what the number of processors suggests; seconds."""
    if wanted_us is not None:
        return wanted_us / 1e6
    return SPIN_S if len(os.sched_getaffinity(0)) >= SPIN_CPUS else 0.0


class Threads:
    """In the place of a Vigil where the loop in C has threads: they arm and look, and say what there is for us."""

    armed = False

    def joined(self) -> None:
        """They see it."""

    def stirred(self) -> None:
        """We look anyhow."""

    def looked(self, found: bool, moved: int, mirrors: Collection[Mirror]) -> float | None:
        """As a Vigil's: as long as there is something."""
        if found:
            return 0.0
        late = False
        for mirror in mirrors:
            mirror.armed = True
            if not mirror.carried and not mirror.tells:  # our TCP connection carries it: they do not see it
                mirror.sleep()
                late = True
        if late:
            abi.lib.sd_py_membarrier()  # [W1]
        return 0.0 if late else None


class Vigil:
    """See above. `armed`: whoever has something says so."""

    def __init__(self, device: Device | None, seconds: float) -> None:
        self._device, self._spin_s = device, seconds
        self._until = 0.0
        self._row = self._dozes = 0
        self.armed = False

    def joined(self) -> None:
        """There is a connection that is not armed yet."""
        self.armed = False

    def stirred(self) -> None:
        """Somebody says that there is news."""
        self._until = max(self._until, time.monotonic() + self._spin_s)

    def looked(self, found: bool, moved: int, mirrors: Collection[Mirror]) -> float | None:
        """In how many seconds to look again; None: when we are woken.

        `found`: there was something this time; `moved`: bytes, among others; `mirrors`: the active ones.
        """
        if found:
            self._until = time.monotonic() + self._spin_s
            self._row += 1
            if moved >= _MUCH and not self._spin_s:
                self._dozes = DOZES
            if self._spin_s or self._dozes or self._row >= _STREAM:
                self._attend(mirrors)
            else:
                self._arm(mirrors)  # so that the next look may be the last
            return 0.0
        if self._spin_s and time.monotonic() < self._until:
            if self._device is not None and self._device.spin():
                self.stirred()
            return 0.0
        self._row = 0
        if self._dozes:
            self._dozes -= 1
            return DOZE_S
        if self.armed:
            return None
        self._arm(mirrors)
        return 0.0

    def _arm(self, mirrors: Collection[Mirror]) -> None:
        self.armed = True
        for mirror in mirrors:
            mirror.sleep()
        abi.lib.sd_py_membarrier()  # [W1]
        if self._device is not None:
            self._device.arm()

    def _attend(self, mirrors: Collection[Mirror]) -> None:
        """Look by ourselves, but at those that are quiet for long only once more."""
        self.armed = False
        late = False
        for mirror in mirrors:
            if mirror.quiet < QUIET:
                if mirror.armed:
                    mirror.awake()
            elif not mirror.armed:
                mirror.sleep()
                late = True
        if late:
            abi.lib.sd_py_membarrier()  # [W1]
