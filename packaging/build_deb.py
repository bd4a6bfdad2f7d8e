# SPDX-License-Identifier: Apache-2.0
"""A Debian package from a wheel: `python packaging/build_deb.py WHEEL OUTPUT_DIRECTORY`. Needs dpkg-deb.

Everything lies in /usr/lib/sdrun, which is a virtual environment that sees Debian's own Python packages: so the
launcher finds its Python beside itself, and our packages with plain names meet nobody else's. /usr/bin has links.
Bytecode is shipped, unchecked, so that nothing is ever written there and dpkg can remove all.
"""

from __future__ import annotations

import argparse
import compileall
import gzip
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
PYTHON: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
NEXT: Final = f"{sys.version_info.major}.{sys.version_info.minor + 1}"
HOME: Final = "usr/lib/sdrun"

CONTROL: Final = """\
Package: sdrun
Version: {version}
Architecture: amd64
Maintainer: sdrun developers <sdrun@localhost>
Section: net
Priority: optional
Depends: python3 (>= {this}), python3 (<< {next}), {python}, python3-cffi-backend, python3-dpkt,
 python3-jsonschema, python3-yaml, python3-rich, python3-prometheus-client, libc6, libatomic1
Description: unmodified TCP programs over shared memory
 sdrun -- CMD runs an unmodified program. When both ends of one of its TCP
 connections run under sdrun on the same host, the bytes move from the kernel's
 TCP to shared memory, without either end noticing.
"""

# The host's monitor is started only by who wants one: `systemctl enable --now sdmonitor`.
POSTINST: Final = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
"""
PRERM: Final = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now sdmonitor.service || true; fi
"""


def unpack(wheel: Path, home: Path) -> str:
    """Put a wheel's files where pip would, into the environment `home`; returns the version."""
    packages = home / "lib" / PYTHON / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    [data] = packages.glob("*.data")
    shutil.move(data / "scripts", home / "bin")
    shutil.move(data / "data" / "share", home / "share")
    shutil.rmtree(data)
    [info] = packages.glob("*.dist-info")
    entries = ConfigParser()
    entries.read(info / "entry_points.txt")
    for name, place in entries["console_scripts"].items():
        module, _, function = place.partition(":")
        (home / "bin" / name).write_text(
            f"#!/{HOME}/bin/python3 -I\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    for path in (home / "bin").iterdir():
        path.chmod(0o755)
    return info.name.split("-")[1].removesuffix(".dist")


def environment(home: Path) -> None:
    """What makes a directory a virtual environment."""
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = true\nversion = {PYTHON[6:]}\n")
    (home / "bin" / "python3").symlink_to(f"/usr/bin/{PYTHON}")


def around(root: Path, home: Path) -> None:
    """Links, units, manual pages, completion, licence."""
    (root / "usr/bin").mkdir(parents=True)
    pages = _made(root / "usr/share/man/man1")
    for page in sorted((home / "share/man/man1").iterdir()):
        (pages / f"{page.name}.gz").write_bytes(gzip.compress(page.read_bytes(), mtime=0))
    shutil.rmtree(home / "share/man")
    shutil.move(home / "share/bash-completion", root / "usr/share/bash-completion")
    shutil.move(home / "share/fish", root / "usr/share/fish")
    (root / "usr/share/zsh").mkdir()
    shutil.move(home / "share/zsh/site-functions", root / "usr/share/zsh/vendor-completions")  # Debian's name for it
    (home / "share/zsh").rmdir()
    for path in sorted((home / "bin").iterdir()):
        if path.name != "python3":
            (root / "usr/bin" / path.name).symlink_to(f"../lib/sdrun/bin/{path.name}")
    for unit, place in (("sdmonitor.service", "system/sdmonitor.service"),
                        ("sdmonitor-user.service", "user/sdmonitor.service")):
        text = (HERE.parent / "monitor" / "systemd" / unit).read_text()
        target = root / "usr/lib/systemd" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace("/opt/sdrun/.venv/bin", f"/{HOME}/bin"))
    documents = _made(root / "usr/share/doc/sdrun")
    shutil.copy(HERE.parent / "LICENSE", documents / "copyright")
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(HERE.parent / name, documents)
    for name in ("docs", "examples"):
        shutil.copytree(HERE.parent / name, documents / name, ignore=shutil.ignore_patterns("__pycache__"))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build(wheel: Path, output: Path) -> Path:
    """The package's path."""
    with tempfile.TemporaryDirectory(prefix="sdrun-deb-") as folder:
        root = Path(folder) / "root"
        home = _made(root / HOME)
        version = unpack(wheel, home)
        environment(home)
        around(root, home)
        shutil.rmtree(home / "__pycache__", ignore_errors=True)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(home / "lib", stripdir=root, prependdir="/", quiet=1, invalidation_mode=mode, force=True)
        control = _made(root / "DEBIAN")
        (control / "control").write_text(CONTROL.format(version=version, this=PYTHON[6:], next=NEXT, python=PYTHON))
        for name, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTINST)):
            (control / name).write_text(text)
            (control / name).chmod(0o755)
        for path in (root, *root.rglob("*")):
            if path.is_dir():
                os.chmod(path, 0o755)
            elif not (path.is_symlink() or path.parent.name == "bin" or path.parent == control or path.suffix == ".sh"):
                os.chmod(path, 0o644)
        target = output / f"sdrun_{version}_amd64.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, target], check=True, stdout=sys.stderr)
        return target


def main() -> int:
    """Entry point; prints the path."""
    parser = argparse.ArgumentParser(description="Build a Debian package from a wheel.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    print(build(options.wheel, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
