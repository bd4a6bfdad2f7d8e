# SPDX-License-Identifier: Apache-2.0
"""A part of the tree is given back: `sdrun --detach PID`, where others go on.

The named process, and those that it has started unless only itself is meant.  As in detach.py all of them are stopped
at once, again and again until each thread can be taken out (release.py).  Beside them stand still, outside of any
operation, those of the tree that hold one of their connections, too: it goes back to TCP for all who have it, and
stays there; their sleepers look again (rouse.py).  All other connections are left as they are.

Of what was given back nothing is offered and nothing gets the library again, the programs that it starts included: the
mark is on its record (processes.py), and children inherit it.  The filter holds what it held, and we let it through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Final

from sdlib import abi
from sdtrace import procfs
from sdtrace.areas import Area
from sdtrace.attempts import Attempts
from sdtrace.detach import below, everybody
from sdtrace.giveback import WARNED_S, give_back, warn
from sdtrace.halted import Halted
from sdtrace.held import Key
from sdtrace.image import Image
from sdtrace.inject import is_hooked
from sdtrace.keepsake import Keepsake
from sdtrace.offers import Broker
from sdtrace.processes import Process, Processes
from sdtrace.ptrace import RemoteError
from sdtrace.release import Release
from sdtrace.rouse import rouse
from sdtrace.seized import Seized
from sdtrace.shrink import is_quiet

_REASON: Final = abi.const.SD_REASON_detached


class Parting(Attempts):
    """One request."""

    def __init__(self, image: Image, keepsake: Keepsake, processes: Processes, broker: Broker, areas: list[Area],
                 filters: int, pid: int, *, children: bool, taken: Callable[[int], None],
                 answer: Callable[[str], None]) -> None:
        """`taken` notes the inode of a socket that shall not be offered; `answer` is told why it failed, or ""."""
        super().__init__(answer)
        self._image, self._keepsake, self._processes = image, keepsake, processes
        self._broker, self._areas, self._filters = broker, areas, filters
        self._pid, self._children, self._taken = pid, children, taken
        self._marked: list[Process] = []

    def remain(self) -> bool:
        """Would anybody go on? Else the whole tree is meant (detach.py)."""
        return bool(everybody(self._processes, self._areas, self._filters) - self._members())

    def _members(self) -> set[int]:
        return {self._pid, *below(self._pid, self._filters)} if self._children else {self._pid}

    def _mark(self) -> None:
        """Of these nothing is offered from now on; what they start shows up with the mark."""
        for pid in self._members():
            with contextlib.suppress(OSError):
                process = self._processes.find(procfs.status(pid))
                if process not in self._marked:
                    self._processes.give_back(process)
                    self._marked.append(process)

    def attempt(self) -> str | None:
        """See Attempts."""
        self._mark()
        keys = self._keys(self._members())
        unsettled = [key for key in keys if warn(self._broker, key)]
        if unsettled and self.tried_s < WARNED_S:
            return None
        self._try(keys)
        return ""

    def give_up(self, why: str) -> None:
        """They stay as they are."""
        for process in self._marked:
            process.given_back = False
        super().give_up(why)

    def _keys(self, members: Collection[int]) -> dict[Key, int]:
        """Their connections that are offered or attached, with the inodes of their sockets."""
        inodes = _sockets(members)
        keys = {}
        for area in self._areas:
            for block, (generation, inode) in list(area.sockets.items()):
                key = Key(area, block, generation)
                if inode in inodes and key.current:
                    keys[key] = inode
        return keys

    def _try(self, keys: dict[Key, int]) -> None:
        with contextlib.ExitStack() as stack:
            parted: dict[int, Seized] = {}
            while new := [pid for pid in self._members() - parted.keys() if is_hooked(pid, self._image)]:
                for pid in new:
                    parted[pid] = stack.enter_context(Seized(pid, self._keepsake))
            if self._keys(parted).keys() - keys.keys():
                raise RemoteError("a connection has come in", transient=True)
            others = [stack.enter_context(Halted(pid)) for pid in self._sharers(parted, set(keys.values()))]
            plans = [(seized, release, release.plan())
                     for seized, release in ((each, Release(each, self._image)) for each in parted.values())]
            for halted in others:
                if not is_quiet(self._image, halted):
                    raise RemoteError(f"process {halted.pid} is in the middle of a call", transient=True)
            self._connections_back(keys, [*parted, *(halted.pid for halted in others)], others)
            for seized, release, plan in plans:
                release.run(plan)
                seized.commit()
            self._mark()  # those that were born meanwhile
        for process in self._marked:
            process.program.refused = True

    def _sharers(self, parted: Collection[int], inodes: set[int]) -> list[int]:
        rest = everybody(self._processes, self._areas, self._filters) - set(parted)
        return [pid for pid in rest if _sockets([pid]) & inodes and is_hooked(pid, self._image)]

    def _connections_back(self, keys: dict[Key, int], pids: list[int], others: list[Halted]) -> None:
        for key, inode in keys.items():
            self._taken(inode)
            if key.area.block_state(key.block) != abi.const.SD_BLOCK_ATTACHED:
                self._broker.keep_off(key, _REASON)
        try:
            give_back(self._broker, pids, only=set(keys), reason=_REASON)
        finally:  # also if only some have moved
            for area in {key.area for key in keys}:
                for halted in others:
                    rouse(self._image, area, halted)


def _sockets(pids: Collection[int]) -> set[int]:
    """Inodes of all sockets that these processes have."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found |= {int(name[8:-1]) for name in procfs.files(pid).values() if name.startswith("socket:[")}
    return found
