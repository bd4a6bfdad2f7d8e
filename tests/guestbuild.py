# SPDX-License-Identifier: Apache-2.0
"""Compile the guest programs of tests/guests: dynamically and statically, with glibc, musl and Go."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.harness import GUESTS
from tests.once import once

C_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")
CXX_FLAGS = ("-std=gnu++17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-rdynamic",
             "-fnon-call-exceptions", "-fasynchronous-unwind-tables")

# How each flavour is compiled. The guests know nothing of sdrun; only the libc and the linking differ.
C_COMPILERS = {
    "glibc": ("gcc",),
    "glibc-static": ("gcc", "-static"),
    "musl-static": ("musl-gcc", "-static"),
    "asan": ("gcc", "-fsanitize=address"),
    "tsan": ("gcc", "-fsanitize=thread"),
    "ubsan": ("gcc", "-fsanitize=undefined"),
}


class Guests:
    """Builds each (program, flavour) once and hands out the path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str, flavour: str = "glibc") -> Path:
        """Path of the compiled guest; `name` without suffix, flavour one of C_COMPILERS, "c++" or "go"."""
        def make(target: Path) -> None:
            if flavour == "go":
                self._go(name, target)
            elif flavour == "c++":
                subprocess.run(["g++", *CXX_FLAGS, "-o", target, GUESTS / f"{name}.cpp"], check=True)
            else:
                self._c(name, flavour, target)

        return once(self._folder / f"{name}-{flavour}", make)

    @staticmethod
    def _c(name: str, flavour: str, target: Path) -> None:
        """Compile one C file."""
        subprocess.run([*C_COMPILERS[flavour], *C_FLAGS, "-o", target, GUESTS / f"{name}.c"], check=True)

    def _go(self, name: str, target: Path) -> None:
        """Compile one Go file, offline, with a cache of this session; without cgo the result is static."""
        env = {**os.environ, "GOCACHE": str(self._folder / "gocache"), "GOPATH": str(self._folder / "gopath"),
               "GO111MODULE": "off", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
        subprocess.run(["go", "build", "-o", target, GUESTS / f"{name}.go"], check=True, env=env, cwd=GUESTS)
