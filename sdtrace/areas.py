# SPDX-License-Identifier: Apache-2.0
"""Areas: the memory that a family of forked processes shares with us (sd_area.h, struct sd_area).

Made here, mapped here and there, and read for the report when the last process that can see it is gone.  Which
process has which area is the kernel's word (its memory map), not the process's.

When nobody maps an area any more, its memfd can be sealed against writing; while somebody does, the kernel
says EBUSY.  So no counting of processes, most of whose forks we never hear of.  That is also why it is not sealed at
once, and why we give up our own mapping before asking.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Iterator

from policies import Settings
from sdlib import abi
from sdtrace.sealed import last_look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Self

BYTES: Final = abi.sizeof("struct sd_area")
_BLOCK_BYTES: Final = abi.sizeof("struct sd_block")
_serials: Final = itertools.count()
_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_UPGRADES: Final = {
    "never": abi.const.SD_UPGRADE_NEVER, "eager": abi.const.SD_UPGRADE_EAGER,
    "after_ops": abi.const.SD_UPGRADE_AFTER_OPS, "after_bytes": abi.const.SD_UPGRADE_AFTER_BYTES,
}  # fmt: skip

_atomic: Final = ctypes.CDLL("libatomic.so.1").__atomic_compare_exchange_4
_atomic.restype = ctypes.c_bool
_atomic.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint32, ctypes.c_int, ctypes.c_int]
_ACQ_REL, _RELAXED = 4, 0
_NOBODY: Final = 0xFFFFFFFF


class Area:
    """One area, mapped."""

    @classmethod
    def make(cls, index: int, exe: str, uid: int, settings: Settings, *, accelerate: bool) -> Self:
        """Make area number `index` of a process of user `uid` that runs `exe`; OSError: no memory, no descriptor."""
        fd = os.memfd_create(f"sd-area-{index}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS)
            area = cls(fd, index, exe, uid)
        except OSError:
            os.close(fd)
            raise
        area._fill(settings, accelerate)
        return area

    @classmethod
    def of_before(cls, fd: int, index: int, exe: str, uid: int) -> Self:
        """One that a supervisor before us has made; OSError, also if that was of another version."""
        if os.fstat(fd).st_size != BYTES:
            raise OSError(errno.EPROTO, "another version's area")
        area = cls(fd, index, exe, uid)
        if (area.view.magic, area.view.version) != (abi.const.SD_AREA_MAGIC, abi.const.SD_ABI_VERSION):
            raise OSError(errno.EPROTO, "another version's area")
        return area

    def __init__(self, fd: int, index: int, exe: str, uid: int) -> None:
        """Take over the descriptor of an area that is there; OSError: it stays the caller's."""
        self.fd = fd
        self.index = index
        self.exe = exe
        self.uid = uid
        self.serial = next(_serials)
        """Tells areas apart in the report, also after they were closed."""
        self.host_pids = True
        """Pids in it are of our own PID namespace."""
        self.sockets: dict[int, tuple[int, int]] = {}
        """Generation and socket's inode of blocks that were offered: what sdss finds the addresses by."""
        self._map()
        self.inode = os.fstat(self.fd).st_ino

    def _map(self) -> None:
        self._memory = mmap.mmap(self.fd, BYTES)
        self.view = abi.view("struct sd_area", self._memory)

    def _fill(self, settings: Settings, accelerate: bool) -> None:
        view = self.view
        view.magic, view.version = abi.const.SD_AREA_MAGIC, abi.const.SD_ABI_VERSION
        view.index, view.bytes = self.index, BYTES
        view.cfg.patch = int(settings.patch)
        view.cfg.without = sum(int(getattr(abi.const, f"SD_WITHOUT_{name}")) for name in settings.without)
        self.configure(settings, accelerate=accelerate)

    def perform(self) -> None:
        """From now on calls that a policy may deny are sent to us."""
        self.view.cfg.perform = 1

    def configure(self, settings: Settings, *, accelerate: bool) -> None:
        """Say what holds for connections that are not offered yet; at any time."""
        config, upgrade = self.view.cfg, settings.upgrade
        self.ring_bytes = settings.ring_bytes
        kind, count = upgrade if isinstance(upgrade, tuple) else (upgrade, 0)
        config.upgrade, config.upgrade_n = _UPGRADES[kind], count
        config.patient = int(settings.upgrade_comes_with_us)
        config.spin_us = settings.spin_us
        config.accel = int(accelerate and settings.accelerate)
        if not config.accel:
            config.reason = abi.const.SD_REASON_policy if accelerate else abi.const.SD_REASON_no_accel

    def block_state(self, block: int) -> int:
        """`enum sd_block_state` as it is at this moment."""
        return int(self.view.block[block].state)

    def block_generation(self, block: int) -> int:
        """Generation: the upper half of a block id that is not stale."""
        return int(self.view.block[block].gen)

    def set_side(self, block: int, side: int, *, far: bool = False, tree: int = 0) -> None:
        """Which side of the segment this end is, and where the other is; written before the state is."""
        self.view.block[block].side = side
        self.view.block[block].peer_tree = tree
        self.view.block[block].far = int(far)

    def offer_again(self) -> None:
        """Offers that were open with a supervisor that is no more: the library makes them anew."""
        for block in self.used():
            self.exchange_state(block, abi.const.SD_BLOCK_OFFERED, abi.const.SD_BLOCK_TCP)

    def exchange_state(self, block: int, expected: int, desired: int) -> bool:
        """Compare and swap; release, so that the side is visible to whom acquires the state."""
        address = int(abi.ffi.cast("uintptr_t", abi.ffi.addressof(self.view.block[block], "state")))
        return bool(_atomic(address, ctypes.byref(ctypes.c_uint32(expected)), desired, _ACQ_REL, _RELAXED))

    def slots(self) -> Iterator[abi.CData]:
        """Counters of every process that has claimed a slot."""
        top = min(int(self.view.procs_top), abi.const.SD_AREA_PROCS)
        return (slot for slot in self.view.proc[0:top] if slot.pid)

    @staticmethod
    def take_slot(slot: abi.CData, pid: int) -> bool:
        """False: it has just been given back by `pid`, which is gone, and may be another process's by now."""
        address = int(abi.ffi.cast("uintptr_t", abi.ffi.addressof(slot, "pid")))
        return bool(_atomic(address, ctypes.byref(ctypes.c_uint32(pid)), _NOBODY, _ACQ_REL, _RELAXED))

    @staticmethod
    def free_slot(slot: abi.CData) -> None:
        """Make a slot that was taken free for the next fork. The pid goes last: it gives the slot away."""
        pid_bytes = abi.sizeof("uint32_t")
        abi.ffi.buffer(abi.ffi.addressof(slot))[pid_bytes:] = bytes(abi.sizeof("struct sd_proc") - pid_bytes)
        slot.pid = 0

    def parts(self) -> Iterator[abi.CData]:
        """Participants of shared connections (sock/token.h) that somebody has claimed."""
        top = min(int(self.view.parts_top), abi.const.SD_AREA_PARTS)
        return (part for part in self.view.part[0:top] if part.tid)

    def used(self) -> list[int]:
        """Places of blocks that are in use; one look at four thousand words, not as many at blocks."""
        first = abi.offsetof("struct sd_area", "block")
        with (memoryview(self._memory) as whole, whole[first:first + abi.const.SD_AREA_BLOCKS * _BLOCK_BYTES] as part,
              part.cast("I") as words, words[::_BLOCK_BYTES // 4] as states):
            return [place for place, state in enumerate(states) if state != abi.const.SD_BLOCK_FREE]

    def blocks(self) -> Iterator[abi.CData]:
        """Socket blocks that are in use."""
        return (block for block in self.view.block if block.state != abi.const.SD_BLOCK_FREE)

    def fold(self) -> bool:
        """If no process maps it any more, nobody can ever again: note that, and return True."""
        private = None
        try:
            private = last_look(self.fd, BYTES, self._unmap)
        finally:
            if private is None:
                self._map()
        if private is None:
            return False
        self._memory = private
        self.view = abi.view("struct sd_area", self._memory)
        return True

    def _unmap(self) -> None:
        self.view = None
        self._memory.close()

    def close(self) -> None:
        """Forget it."""
        self._unmap()
        os.close(self.fd)
