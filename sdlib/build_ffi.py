# SPDX-License-Identifier: Apache-2.0
"""Build `sdlib._sdffi`, the C view of the shared layouts and of the testable C functions, for Python.

Nothing about a layout is written by hand here.  One small C prelude includes the headers; the preprocessor turns
it into what cffi parses, the C compiler gives every constant its value and every struct its offsets (cffi's API
mode compiles the module against the same prelude), and the X-macro lists give the names of counters and reasons.

    python -m sdlib.build_ffi          # writes sdlib/_sdffi.<abi>.so and sdlib/_sdffi.pyi next to this file

The prelude is read with SD_CFFI defined on both sides: the Python side sees plain words where the library sees
`_Atomic` ones.  That the two views have the same sizes and offsets is what tests/sdlib/test_abi.py asks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"
SRC = HERE / "src"
ABI_HEADER = INCLUDE / "sd_abi.h"
PY_HEADER = INCLUDE / "sd_py.h"

# The C functions that Python tests call live in the ring sources and in their Python shims; the rest of the
# library (gate, start, arch assembly) makes no sense outside an injected process and is not compiled here.
HOSTED_SOURCES = ("ring", "py", "verbs")

# As in the image (build_image.py): ring memory is looked at as several types.
CFLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", "-DSD_HOSTED=1")

PRELUDE = """\
#ifndef SD_CFFI
#define SD_CFFI 1
#endif
#include "sd_abi.h"
%(py_include)s
#define SD_X(name) SD_CTR_##name,
enum sd_counter { SD_COUNTERS(SD_X) SD_CTR_COUNT };
#undef SD_X
#define SD_X(name, text) SD_REASON_##name,
enum sd_reason { SD_REASONS(SD_X) SD_REASON_COUNT };
#undef SD_X
"""

NAMES_CDEF = """
extern const char *const sd_counter_names[];
extern const char *const sd_reason_names[];
extern const char *const sd_reason_texts[];
"""

NAMES_SOURCE = """
#define SD_X(name) #name,
static const char *const sd_counter_names[] = { SD_COUNTERS(SD_X) };
#undef SD_X
#define SD_X(name, text) #name,
static const char *const sd_reason_names[] = { SD_REASONS(SD_X) };
#undef SD_X
#define SD_X(name, text) text,
static const char *const sd_reason_texts[] = { SD_REASONS(SD_X) };
#undef SD_X
"""

_DEFINE = re.compile(r"#define (SD_[A-Z0-9_]+) (\S.*)$", re.MULTILINE)
_INTEGER_EXPRESSION = re.compile(r"^[\w\s()+\-*/<>|&~]+$")
_FUNCTION = re.compile(r"^([a-z][\w ]*?[\s*]+)(sd_\w+)\s*\(([^;{}()]*)\)\s*;", re.MULTILINE)
_ENUMERATOR = re.compile(r"\b(SD_\w+)\s*(?:=|,|\})")


class Function(NamedTuple):
    """One C function: its result and parameters as the stub writes them."""

    name: str
    result: str
    parameters: tuple[tuple[str, str], ...]


class Interface(NamedTuple):
    """What cffi is told and what the generated stub offers."""

    cdef: str
    source: str
    constants: list[str]
    functions: list[Function]


def _preprocess(text: str, *options: str) -> str:
    """Run the C preprocessor over `text`; raises CalledProcessError (gcc has then said why on stderr)."""
    command = ["gcc", "-E", "-P", "-x", "c", f"-I{INCLUDE}", *options, "-"]
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def _macros(prelude: str) -> Iterator[str]:
    """Names of the object-like SD_ macros that stand for an integer; the compiler finds out which integer."""
    for name, body in _DEFINE.findall(_preprocess(prelude, "-dM")):
        if _INTEGER_EXPRESSION.match(body) and re.search(r"\d|SD_", body) and name not in ("SD_CFFI", "SD_HOSTED"):
            yield name


def _python_type(declared: str) -> str:
    """What Python hands in or gets for a C type: cffi converts scalars and `bytes`; everything else it wraps."""
    words = declared.split()
    if "*" in declared:
        return "bytes | CData" if "const" in words and "uint8_t" in declared else "CData"
    return {"bool": "bool", "void": "None"}.get(words[-1], "int")


def _functions(declarations: str) -> Iterator[Function]:
    """Every declared function. A name may be declared once only: cffi would take the last, silently."""
    seen: set[str] = set()
    for result, name, arguments in _FUNCTION.findall(declarations):
        if name in seen:
            raise ValueError(f"{name} is declared twice")
        seen.add(name)
        split = [re.fullmatch(r"\s*(.*?[\s*])(\w+)\s*", argument, re.DOTALL) for argument in arguments.split(",")]
        parameters = tuple((match[2], _python_type(match[1])) for match in split if match)
        yield Function(name, _python_type(result), parameters)


def read_interface() -> Interface:
    """Derive the whole interface from the headers."""
    prelude = PRELUDE % {"py_include": f'#include "{PY_HEADER.name}"' if PY_HEADER.exists() else ""}
    declarations = _preprocess(prelude)
    macros = sorted(_macros(prelude))
    cdef = declarations + "\n".join(f"#define {name} ..." for name in macros) + NAMES_CDEF
    enumerators = [name for body in re.findall(r"enum\s+\w*\s*(\{[^}]*\})", declarations)
                   for name in _ENUMERATOR.findall(body)]
    functions = sorted(_functions(declarations))
    constants = macros + enumerators
    if len(set(constants)) != len(constants):
        raise ValueError("a constant is defined twice")
    source = "#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n" + prelude + NAMES_SOURCE
    return Interface(cdef, source, constants, functions)


def hosted_sources() -> list[Path]:
    """The C files compiled into the module: none as long as there is no header that declares their functions."""
    if not PY_HEADER.exists():
        return []
    return sorted(path for folder in HOSTED_SOURCES for path in (SRC / folder).glob("*.c"))


def stub(interface: Interface) -> str:
    """Text of `_sdffi.pyi`: each constant and function by name, so that mypy finds a misspelt one."""
    lines = ["# Generated by sdlib/build_ffi.py from sdlib/include/*.h.", "from typing import Any", "",
             "import _cffi_backend", "", "CData = Any", "", "class Lib:"]
    lines += [f"    {name}: int" for name in interface.constants]
    for function in interface.functions:
        parameters = "".join(f", {name}: {kind}" for name, kind in function.parameters)
        lines.append(f"    def {function.name}(self{parameters}, /) -> {function.result}: ...")
    lines += [f"    {name}: Any" for name in ("sd_counter_names", "sd_reason_names", "sd_reason_texts")]
    return "\n".join([*lines, "", "lib: Lib", "ffi: _cffi_backend.FFI", ""])


def inputs() -> list[Path]:
    """Every file whose change makes the module stale."""
    return sorted([Path(__file__), *INCLUDE.glob("*.h"), *SRC.rglob("*.h"), *hosted_sources()])


def build(target_dir: Path = HERE) -> Path:
    """Compile the module and its stub into `target_dir`; returns the shared object's path."""
    from cffi import FFI  # a build-time need only: `inputs` must work without it

    interface = read_interface()
    builder = FFI()
    builder.cdef(interface.cdef)
    builder.set_source("sdlib._sdffi", interface.source, sources=[str(path) for path in hosted_sources()],
                       include_dirs=[str(INCLUDE), str(SRC)], extra_compile_args=list(CFLAGS))
    with tempfile.TemporaryDirectory(prefix="sdffi-") as scratch:
        made = Path(builder.compile(tmpdir=scratch, verbose=False))
        target = target_dir / made.name
        # A running process may have the old module mapped: put a new file there instead of writing into the old one.
        fresh = target.with_name(target.name + ".new")
        shutil.copy(made, fresh)
        fresh.replace(target)
    (target_dir / "_sdffi.pyi").write_text(stub(interface))
    return target


def main() -> int:
    """Command line: build next to this file unless the module is newer than all of its inputs."""
    built = sorted(HERE.glob("_sdffi.*.so"))
    newest_input = max(path.stat().st_mtime for path in inputs())
    if built and (HERE / "_sdffi.pyi").exists() and min(path.stat().st_mtime for path in built) > newest_input:
        return 0
    print(f"built {build().relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
