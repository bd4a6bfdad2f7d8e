# SPDX-License-Identifier: Apache-2.0
"""This installation: launcher, filters, library, policies, monitor."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import policies
from sdlib import abi
from sdlib.wire import MonitorClient, MonitorUnavailable, paths
from sdtrace.image import ImageError
from sdtrace.image import load as load_image
from tools.doctor.findings import Finding, ok, stops, without

REINSTALL: Final = "make build   (or install the package again)"


def launcher_path() -> Path:
    """Where `sdrun` belongs: beside the Python that runs us."""
    return Path(sys.executable).parent / "sdrun"


def launcher() -> Finding:
    """The C program, and the filters that it loads from ../share/sdrun."""
    path = launcher_path()
    if not os.access(path, os.X_OK):
        return stops("sdrun", f"{path} is not there", REINSTALL)
    filters = sorted((path.parent.parent / "share" / "sdrun").glob("*.bpf"))
    if not filters:
        return stops("sdrun", f"no filters in {path.parent.parent / 'share' / 'sdrun'}", REINSTALL)
    return ok("sdrun", f"{path}, {len(filters)} filters")


def library() -> Finding:
    """The image that is mapped into programs."""
    try:
        image = load_image(abi.const.SD_ABI_VERSION)
    except ImageError as error:
        return stops("library", str(error), REINSTALL)
    os.close(image.fd)
    return ok("library", f"ABI {abi.const.SD_ABI_VERSION}, {len(image.segments)} segments")


def policy() -> Finding:
    """Can all policy files be read? A wrong one makes sdrun refuse to start anything."""
    try:
        policies.load(None)
    except policies.PolicyError as error:
        return stops("policies", str(error).replace("\n", "; "), "sdrun --check   (says where)")
    return ok("policies", "all files are well-formed")


def monitor() -> Finding:
    """Who would pair connections? None is needed: sdrun starts one."""
    try:
        client = MonitorClient.open(spawn=False, timeout_s=1.0)
    except MonitorUnavailable as unavailable:
        return _no_monitor(str(unavailable))
    try:
        return ok("monitor", f"answers at {client.path}")
    finally:
        client.close()


def _no_monitor(why: str) -> Finding:
    try:
        place = os.environ.get(paths.ENV_SOCKET) or paths.user_socket(os.environ, os.geteuid())
    except paths.UnsafePath as error:
        return stops("monitor", str(error))
    if not os.path.exists(place):
        return ok("monitor", "none runs; sdrun starts one when it needs it")
    if "refused" in why.lower():
        return ok("monitor", "none runs (its last socket is still there); sdrun starts one when it needs it")
    return stops("monitor", why, f"end the process that listens at {place}")


def versions() -> Finding:
    """For bug reports."""
    from importlib import metadata

    try:
        own = metadata.version("sdrun")
    except metadata.PackageNotFoundError:
        return without("version", "sdrun is not installed as a package", REINSTALL)
    return ok("version", f"sdrun {own}, Python {sys.version.split()[0]}")


CHECKS: Final = (versions, launcher, library, policy, monitor)
