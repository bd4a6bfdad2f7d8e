# SPDX-License-Identifier: Apache-2.0
"""The library's image as `make build` left it (sdlib/build_image.py), held in a sealed memfd."""

from __future__ import annotations

import fcntl
import os

import sdlib
from sdlib import compact
from sdlib.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PAGE: Final = 4096
DIRECTORY: Final = os.path.join(os.path.dirname(sdlib.__file__), "_image")
IMAGE_NAME: Final = "sdlib.img"
_SLOT_BYTES: Final = 128
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_SYMBOLS: Final = ("sd_gate_start", "sd_gate_end", "sd_init", "sd_boot", "sd_boot_stack_top",
           "sd_adopt", "sd_unhook", "sd_slot_ret", "sd_undo", "sd_nundo", "sd_stubs", "sd_sys_ret", "sd_restorer",
           "sd_nobody", "sd_give", "sd_give_what")


class ImageError(Exception):
    """There is no usable image; the text says what to do."""


@dataclass(frozen=True)
class Segment:
    """One mapping: `filesz` bytes from the file at `offset`, zeroes up to `memsz`; all page aligned. `prot`: PROT_*."""

    vaddr: int
    offset: int
    filesz: int
    memsz: int
    prot: int


@dataclass(frozen=True)
class Image:
    """A read-only descriptor of the image, and where its parts belong."""

    fd: int
    base: int
    segments: tuple[Segment, ...]
    symbols: dict[str, int]
    code: tuple[tuple[int, bytes], ...]
    """The gate's first slot, which all are like, and what is behind the gate; where they are."""

    def thread_block(self, gs_base: int) -> int:
        """Where a thread's `struct sd_tcb` is, which gs names by its distance from `sd_nobody`; 0: it has none."""
        return (gs_base + self.symbols["sd_nobody"]) % (1 << 64) if gs_base else 0


def _sealed_copy(data: bytes) -> int:
    """A memfd that nobody can change, opened for reading: every program gets a duplicate of it."""
    fd = os.memfd_create(IMAGE_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def load(abi_version: int, directory: str = DIRECTORY) -> Image:
    """Read `sdlib.img` and `sdlib.json`. ImageError when they are missing, of another ABI or do not fit together."""
    try:
        with open(f"{directory}/sdlib.json", "rb") as file:
            description = compact.loads(file.read())
        with open(f"{directory}/sdlib.img", "rb") as file:
            data = file.read()
        segments = tuple(Segment(**{name: int(entry[name]) for name in Segment.__match_args__})
                         for entry in description["segments"])
        symbols = {name: int(description["symbols"][name]) for name in _SYMBOLS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"no library image in {directory} ({error}); run `make build`") from error
    if description["abi"] != abi_version:
        raise ImageError(f"the library image speaks ABI {description['abi']}, we {abi_version}; run `make build`")
    for segment in segments:
        if segment.vaddr % PAGE or segment.offset % PAGE or segment.offset + segment.filesz > len(data):
            raise ImageError(f"segment at {segment.vaddr:#x} does not fit the image; run `make build`")
    return Image(_sealed_copy(data), int(description["base"]), segments, symbols, _code(data, segments, symbols))


def _code(data: bytes, segments: tuple[Segment, ...], symbols: dict[str, int]) -> tuple[tuple[int, bytes], ...]:
    code = segments[0]
    start, gate = code.vaddr - code.offset, symbols["sd_gate_end"]
    return (start, data[:_SLOT_BYTES]), (gate, data[gate - start:code.offset + code.filesz])
