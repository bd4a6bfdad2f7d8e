# SPDX-License-Identifier: Apache-2.0
"""The connections of one supervisor that were offered or paired: their segments, names and quotas, and who is told.

A segment's descriptor is kept from the pairing until the connection is over: for the process that attaches, for the
program that gets the connection through execve, to tell a new monitor of it, and to move it back to TCP.  A socket
of the program is never kept: holding it would keep its connection open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from policies import Settings
from sdlib.wire import Paired
from sdlib.wire.segment import counts_as
from sdtrace.held import Held, Key, Origin, Quotas
from sdtrace.vault import Vault


class Holdings:
    """By block; those that are paired also by the name that the monitor knows."""

    def __init__(self, settings: Callable[[str, int], Settings], vault: Vault) -> None:
        """`settings`: of a program, by path and user."""
        self.all: dict[Key, Held] = {}
        self.named: dict[int, Key] = {}
        self._settings, self._vault = settings, vault
        self._quotas = Quotas()

    def over_quota(self, key: Key, origin: Origin) -> bool:
        """Whether one more would be too many for the program."""
        settings = self._settings(origin.exe, origin.uid)
        return self._quotas.exceeded(origin.exe, origin.uid, settings, key.area.ring_bytes)

    def keep(self, key: Key, held: Held, pair: Paired) -> None:
        """It is paired; owns the descriptor."""
        held.segment, held.paired = pair.memfd, True
        held.side, held.far = pair.side, pair.far
        held.bytes = held.at_least = counts_as(pair.memfd, far=pair.far)
        key.area.set_side(key.block, pair.side, far=pair.far, tree=pair.tree)
        self.all[key] = held
        self.named[held.name] = key
        self._quotas.add(held)
        self._vault.segment(key, held)

    def inherit(self, key: Key, held: Held) -> None:
        """One of the supervisor before us."""
        self.all[key] = held
        self._quotas.add(held)

    def measured(self, key: Key, memory: int) -> None:
        """So many bytes of memory a pair's rings were seen to use."""
        held = self.all.get(key)
        if held is not None and held.paired:
            self._quotas.measured(held, memory)

    def let_go(self, key: Key) -> Held:
        """It is over."""
        held = self.all.pop(key)
        if held.paired:
            self.named.pop(held.name, None)
            self._quotas.remove(held)
            self._vault.drop_segment(held)
            os.close(held.segment)
        return held

    def segment_of(self, key: Key) -> int:
        """The segment's descriptor, ours; -1 without one."""
        held = self.all.get(key)
        return -1 if held is None else held.segment

    def attach(self, key: Key) -> int | None:
        """A duplicate of the segment's descriptor, the caller's to close; None when there is none for this block."""
        held = self.all.get(key)
        if held is None or held.segment < 0:
            return None
        held.attached = True
        return os.dup(held.segment)

    def current(self) -> list[tuple[Key, Held]]:
        """All connections that still are what they were."""
        return [(key, held) for key, held in self.all.items() if key.current]

    def outdated(self) -> list[Key]:
        """Pairs whose blocks were freed since."""
        return [key for key, held in self.all.items() if held.paired and not key.current]

    def to_tell(self) -> Iterator[tuple[Key, Held]]:
        """What a new monitor has to know of."""
        return ((key, held) for key, held in self.all.items() if held.paired and held.segment >= 0 and not held.left)

    def mirrored(self) -> bool:
        """Whether a monitor carries bytes of any."""
        return any(held.far and not held.left for held in self.all.values())

    def close(self) -> None:
        """All of them."""
        for held in self.all.values():
            if held.segment >= 0:
                os.close(held.segment)
        self.all.clear()
