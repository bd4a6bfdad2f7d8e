# SPDX-License-Identifier: Apache-2.0
"""What a wheel holds that is not Python: the launcher, the filters, the library's image, the cffi module.

All of it is compiled from the sources of the sdist. An editable install leaves that to the Makefile, which knows what
is stale.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

from distutils.command.build_scripts import build_scripts  # isort: skip  setuptools' own, under this name only

HERE = Path(__file__).resolve().parent
FILTERS = HERE / "build" / "wheel" / "filters"


def make_flags(name: str) -> list[str]:
    """A variable of the Makefile, which is the one place that says how the launcher is compiled, and why."""
    found = re.search(rf"^{name} := ((?:.*\\\n)*.*)$", (HERE / "Makefile").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"setup.py: no {name} in the Makefile")
    return found[1].replace("\\\n", " ").split()


def build_native() -> None:
    """The package's generated files, in place; then the filters, which need the image's addresses."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    for module, *arguments in (("sdlib.build_ffi",), ("sdlib.build_image",),
                               ("sdtrace.build_filter", "--output", str(FILTERS))):
        subprocess.run([sys.executable, "-m", module, *arguments], cwd=HERE, env={**os.environ, "PYTHONPATH": path},
                       check=True)


class BuildPy(build_py):
    """Generates before it collects."""

    def run(self) -> None:
        """The filters become data files of the distribution: the launcher looks for them in ../share/sdrun."""
        if not self.editable_mode:
            build_native()
            self.distribution.data_files = [("share/sdrun", [str(path) for path in sorted(FILTERS.glob("*.bpf"))])]
        super().run()


class BuildScripts(build_scripts):
    """The one script is a C program, which setuptools would try to read as text."""

    editable_mode = False

    def run(self) -> None:
        """Compile it to where scripts are taken from."""
        self.mkpath(self.build_dir)
        if self.editable_mode:
            return
        sources = sorted(str(path) for path in (HERE / "sdtrace" / "launch").glob("*.c"))
        target = str(Path(self.build_dir).resolve() / "sdrun")
        flags, libraries = make_flags("LAUNCH_CFLAGS"), make_flags("LAUNCH_LDFLAGS")
        subprocess.run(["gcc", *flags, "-o", target, *sources, *libraries], cwd=HERE, check=True)


class Compiled(Distribution):
    """Of one architecture and one version of Python."""

    def has_ext_modules(self) -> bool:
        """The cffi module and the launcher."""
        return True


setup(distclass=Compiled, scripts=["sdtrace/launch/sdrun.c"],
      cmdclass={"build_py": BuildPy, "build_scripts": BuildScripts})
