# SPDX-License-Identifier: Apache-2.0
"""The C view (with _Atomic words, as the library is compiled) and the cffi view of sd_abi.h are the same layout."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdlib import abi

INCLUDE = Path(__file__).resolve().parents[2] / "sdlib" / "include"


def struct_names() -> list[str]:
    """Every struct of ours whose members cffi knows."""
    _typedefs, structs, _unions = abi.ffi.list_types()
    opaque = {"sd_py_end", "sd_device", "sd_queue"}
    return [name for name in structs if name.startswith("sd_") and name not in opaque]


def members(struct: str) -> Iterator[tuple[str, int, int]]:
    """(member, offset, size) as cffi has them, the counterpart of offsetof and sizeof in C."""
    fields = abi.ffi.typeof(f"struct {struct}").fields
    assert fields is not None
    for name, field in fields:
        yield name, field.offset, abi.ffi.sizeof(field.type)


@pytest.fixture(scope="module")
def c_layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the C compiler says: sizes of structs, offsets and sizes of members, and the limits of the enums."""
    lines = [f'P("{struct}", sizeof(struct {struct}))' for struct in struct_names()]
    for struct in struct_names():
        for name, _offset, _size in members(struct):
            lines.append(f'P("{struct}.{name}", offsetof(struct {struct}, {name}))')
            lines.append(f'P("{struct}.{name} size", sizeof(((struct {struct} *)0)->{name}))')
    names = [f"SD_CTR_{name}" for name in abi.COUNTERS] + [f"SD_REASON_{name}" for name in abi.REASON_NAMES]
    names += ["SD_CTR_COUNT", "SD_REASON_COUNT", "SD_SEG_MAGIC", "SD_HC_NR"]
    lines += [f'P("{name}", {name})' for name in names]
    folder = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    source.write_text('#include <stdio.h>\n#include "sd_abi.h"\n#include "sd_py.h"\n'
                      '#define P(what, value) printf("%s=%llu\\n", what, (unsigned long long)(value));\n'
                      "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    subprocess.run(["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}", "-o", folder / "layout", source],
                   check=True)
    printed = subprocess.run([folder / "layout"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {key: int(value) for key, value in (line.rsplit("=", 1) for line in printed.splitlines())}


def test_every_struct_is_known() -> None:
    wanted = {"sd_area", "sd_block", "sd_boot", "sd_carry", "sd_config", "sd_dir", "sd_proc", "sd_seg"}
    assert wanted <= set(struct_names())


@pytest.mark.parametrize("struct", struct_names())
def test_layout(struct: str, c_layout: dict[str, int]) -> None:
    python = {struct: abi.sizeof(f"struct {struct}")}
    for name, offset, size in members(struct):
        python |= {f"{struct}.{name}": offset, f"{struct}.{name} size": size}
    assert python == {key: c_layout[key] for key in python}


def test_numbers_of_counters_and_reasons(c_layout: dict[str, int]) -> None:
    for index, name in enumerate(abi.COUNTERS):
        assert c_layout[f"SD_CTR_{name}"] == index == getattr(abi.const, f"SD_CTR_{name}")
    for index, name in enumerate(abi.REASON_NAMES):
        assert c_layout[f"SD_REASON_{name}"] == index == getattr(abi.const, f"SD_REASON_{name}")
    assert c_layout["SD_CTR_COUNT"] == len(abi.COUNTERS)
    assert c_layout["SD_REASON_COUNT"] == len(abi.REASONS) == len(set(abi.REASONS))


def test_macros_have_the_compilers_value(c_layout: dict[str, int]) -> None:
    assert c_layout["SD_SEG_MAGIC"] == abi.const.SD_SEG_MAGIC
    assert c_layout["SD_HC_NR"] == abi.const.SD_HC_NR


def test_view_refuses_memory_that_is_too_small() -> None:
    memory = bytearray(abi.sizeof("struct sd_seg"))
    abi.view("struct sd_seg", memory).version = 7
    at = abi.offsetof("struct sd_seg", "version")
    assert memory[at] == 7
    with pytest.raises(ValueError, match="cannot hold"):
        abi.view("struct sd_seg", memory[:-1])
