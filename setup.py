# SPDX-License-Identifier: Apache-2.0
"""What a wheel holds that is not Python: launcher, filters, the library's image, cffi module, man pages, completion.

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
MANUAL = HERE / "build" / "wheel" / "manual"


def make_flags(name: str) -> list[str]:
    """A variable of the Makefile, which is the one place that says how the launcher is compiled, and why."""
    found = re.search(rf"^{name} := ((?:.*\\\n)*.*)$", (HERE / "Makefile").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"setup.py: no {name} in the Makefile")
    return found[1].replace("\\\n", " ").split()


def compile_launcher(target: Path) -> None:
    """sdrun itself."""
    sources = sorted(str(path) for path in (HERE / "sdtrace" / "launch").glob("*.c"))
    flags, libraries = make_flags("LAUNCH_CFLAGS"), make_flags("LAUNCH_LDFLAGS")
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", *flags, "-o", str(target), *sources, *libraries], cwd=HERE, check=True)


def build_native() -> None:
    """The package's generated files, in place; then the filters, which need the image's addresses, and the manual,
    which asks every command for its options."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    launcher = MANUAL.parent / "sdrun"
    compile_launcher(launcher)
    for module, *arguments in (("sdlib.build_ffi",), ("sdlib.build_image",), ("policies.build_packaged",),
                               ("sdtrace.build_filter", "--output", str(FILTERS)),
                               ("tools.manual", str(MANUAL), "--sdrun", str(launcher))):
        subprocess.run([sys.executable, "-m", module, *arguments], cwd=HERE, env={**os.environ, "PYTHONPATH": path},
                       check=True)


class BuildPy(build_py):
    """Generates before it collects."""

    def run(self) -> None:
        """Data files: the launcher looks for its filters in ../share/sdrun, man(1) for pages in ../share/man of what
        is in PATH; the shells' are all in share, too."""
        if not self.editable_mode:
            build_native()
            made = [("share/sdrun", sorted(FILTERS.glob("*.bpf")))]
            for folder in sorted({path.parent for path in (MANUAL / "share").rglob("*") if path.is_file()}):
                made.append((str(folder.relative_to(MANUAL)), sorted(folder.iterdir())))
            self.distribution.data_files = [(place, [str(path) for path in paths]) for place, paths in made]
        super().run()


class BuildScripts(build_scripts):
    """The one script is a C program, which setuptools would try to read as text."""

    editable_mode = False

    def run(self) -> None:
        """Compile it to where scripts are taken from."""
        self.mkpath(self.build_dir)
        if self.editable_mode:
            return
        compile_launcher(Path(self.build_dir).resolve() / "sdrun")


class Compiled(Distribution):
    """Of one architecture and one version of Python."""

    def has_ext_modules(self) -> bool:
        """The cffi module and the launcher."""
        return True


setup(distclass=Compiled, scripts=["sdtrace/launch/sdrun.c"],
      cmdclass={"build_py": BuildPy, "build_scripts": BuildScripts})
