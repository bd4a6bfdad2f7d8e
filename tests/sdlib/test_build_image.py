# SPDX-License-Identifier: Apache-2.0
"""The image build refuses what would misbehave only inside somebody's program."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from sdlib import abi, build_image

GATE = """
.section .gate,"ax",@progbits
.globl sd_sys
sd_sys: mov %rdi, %rax
    syscall
    ret
.section .note.GNU-stack,"",@progbits
"""
LIBRARY = """
#include "sd_abi.h"
struct sd_boot sd_boot = { .version = SD_ABI_VERSION };
char stack[4096] __attribute__((aligned(16)));
unsigned sd_adopt[4];
__asm__(".globl sd_boot_stack_top\\n.set sd_boot_stack_top, stack + 4096");
static int value = 5;
int *volatile pointer = &value;
long sd_sys(long nr);
long sd_init(void);
long sd_init(void) { %s return sd_sys(39) + *pointer; }
"""
LIBRARY += "".join(f"char {name}[64];\n" for name in build_image.SYMBOLS
                   if name not in LIBRARY + GATE and not name.startswith("sd_gate_"))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small library of two files, in place of the real one."""
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "gate.S").write_text(GATE)
    (folder / "start.c").write_text(LIBRARY % "")
    monkeypatch.setattr(build_image, "SRC", folder)
    return folder


def test_description_and_bytes_agree(sources: Path, tmp_path: Path) -> None:
    assert build_image.build(tmp_path / "out")
    description = json.loads((tmp_path / "out" / "sdlib.json").read_text())
    image = (tmp_path / "out" / "sdlib.img").read_bytes()
    assert description["base"] == abi.const.SD_LIB_BASE == description["segments"][0]["vaddr"]
    assert description["abi"] == abi.const.SD_ABI_VERSION
    for segment in description["segments"]:
        assert segment["vaddr"] % 4096 == segment["offset"] % 4096 == segment["memsz"] % 4096 == 0
        assert segment["offset"] + segment["filesz"] <= len(image)
    boot = description["symbols"]["sd_boot"]
    [home] = [s for s in description["segments"] if s["vaddr"] <= boot < s["vaddr"] + s["filesz"]]
    at = home["offset"] + boot - home["vaddr"]
    assert int.from_bytes(image[at:at + 4], "little") == abi.const.SD_ABI_VERSION


def test_nothing_to_do_the_second_time(sources: Path, tmp_path: Path) -> None:
    assert build_image.build(tmp_path / "out")
    assert not build_image.build(tmp_path / "out")
    (sources / "start.c").write_text(LIBRARY % "value++;")
    assert build_image.build(tmp_path / "out")


def test_other_flags_compile_again(sources: Path, tmp_path: Path) -> None:
    assert build_image.build(tmp_path / "out")
    assert build_image.build(tmp_path / "out", ("-O1",))


@pytest.mark.parametrize(("line", "complaint"), [
    ("""__asm__ volatile("syscall");""", "outside of the gate"),
    ("""extern int elsewhere(void); value += elsewhere();""", "gcc failed"),
])
def test_refused(line: str, complaint: str, sources: Path, tmp_path: Path) -> None:
    (sources / "start.c").write_text(LIBRARY % line)
    with pytest.raises(build_image.ImageError, match=complaint):
        build_image.build(tmp_path / "out")
    assert not (tmp_path / "out" / "sdlib.json").exists()


def test_a_missing_symbol_is_named(sources: Path, tmp_path: Path) -> None:
    (sources / "start.c").write_text((LIBRARY % "").replace("sd_boot_stack_top", "other_top"))
    with pytest.raises(build_image.ImageError, match="sd_boot_stack_top"):
        build_image.build(tmp_path / "out")


def test_hot_functions_exist_and_lie_together() -> None:
    """Names that went with a change of the sources would silently order nothing."""
    text = "".join(path.read_text() for path in build_image.sources() if path.suffix == ".c")
    unknown = [name for name in build_image.hot()
               if not re.search(rf"^(SD_CALL\(|[\w *]*\b){name}\b", text, re.MULTILINE)]
    assert not unknown, f"sdlib/hot.txt names functions that are not there: {unknown}"
    symbols = subprocess.run(["nm", build_image.OUTPUT / "sdlib.elf"], stdout=subprocess.PIPE, text=True, check=True)
    lines = [line.split() for line in symbols.stdout.splitlines()]
    places = {line[2]: int(line[0], 16) for line in lines if len(line) == 3}
    passed = ("sd_dispatch", "sd_epoll_wait", "ep_scan", "sd_yield", "sd_shared_read", "sd_shared_write", "sd_rx_copy")
    warm = [places[name] for name in passed]
    assert max(warm) - min(warm) < 4 * build_image.PAGE, "what a message passes lies on more than five pages"
