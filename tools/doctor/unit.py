# SPDX-License-Identifier: Apache-2.0
"""`sddoctor --unit NAME`: which settings of a systemd unit stop sdrun under it, and the drop-in that mends them.

A unit's hardening holds for the supervisor as well: it is a process of the service, and injects into others of it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from typing import Final

from sdlib.wire import paths
from tools.doctor.findings import Finding, ok, stops, without
from tools.doctor.kernel import yama
from tools.doctor.setup import launcher_path

_NEEDED: Final = ("seccomp", "ptrace", "pidfd_getfd", "pidfd_open", "process_vm_readv", "process_vm_writev",
                  "memfd_create", "membarrier", "prlimit64", "close_range")
"""Calls of the launcher and the supervisor that some group of systemd's has."""
_SHOWN: Final = ("LoadState", "ExecStart", "SystemCallFilter", "NoExecPaths", "ExecPaths", "MemoryDenyWriteExecute",
                 "PrivateTmp", "PrivateNetwork", "User", "CapabilityBoundingSet")
_DENY_INSTEAD: Final = ("SystemCallFilter=\nSystemCallFilter=~@clock @cpu-emulation @module @mount @obsolete @raw-io "
                        "@reboot @swap")

Properties = Mapping[str, str]


def ask(name: str) -> Properties:
    """What systemd says of the unit; OSError, subprocess.SubprocessError."""
    done = subprocess.run(["systemctl", "show", name, *(f"--property={one}" for one in _SHOWN)], capture_output=True,
                          text=True, timeout=30, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _yes(unit: Properties, name: str) -> bool:
    return unit.get(name) == "yes"


def starts(unit: Properties) -> Finding:
    """Is it put under sdrun?"""
    command = unit.get("ExecStart", "").partition("argv[]=")[2].partition(" ;")[0]
    if not command:
        return stops("ExecStart", "the unit starts nothing")
    if os.path.basename(command.split()[0]) == "sdrun":
        return ok("ExecStart", command)
    return without("ExecStart", "not under sdrun", f"ExecStart=\nExecStart={_sdrun()} -- {command}")


def _sdrun() -> str:
    return "/usr/bin/sdrun" if os.path.exists("/usr/bin/sdrun") else str(launcher_path())


def calls(unit: Properties) -> Finding:
    """System calls: a list of what is allowed has no name for the library's own, and kills who makes another."""
    said = unit.get("SystemCallFilter", "")
    if not said:
        return ok("SystemCallFilter", "none")
    if not said.startswith("~"):
        return stops("SystemCallFilter", "it lists what is allowed, and no such list can have the library's own call "
                     "in it: sdrun says 125", _DENY_INSTEAD)
    denied = sorted(set(_NEEDED) & set(said[1:].split()))
    if denied:
        return stops("SystemCallFilter", f"it denies {', '.join(denied)}", f"SystemCallFilter={' '.join(denied)}")
    return ok("SystemCallFilter", "denies nothing that sdrun needs")


def _within(path: str, roots: list[str]) -> int:
    """Length of the longest of them that `path` is in; -1: none."""
    return max((len(root) for root in roots if path == root or path.startswith(root.rstrip("/") + "/")), default=-1)


def files(unit: Properties) -> Finding:
    """Programs that may be executed: sdrun's Python among them."""
    forbidden = unit.get("NoExecPaths", "").split()
    allowed = [path.lstrip("-+") for path in unit.get("ExecPaths", "").split()]
    needed = sorted({os.path.realpath(launcher_path()), os.path.realpath(launcher_path().parent / "python3")})
    missing = [path for path in needed if _within(path, forbidden) > _within(path, allowed)]
    if missing:
        return stops("NoExecPaths", f"{' and '.join(missing)} cannot be executed", f"ExecPaths={' '.join(missing)}")
    return ok("NoExecPaths", "sdrun and its Python may be executed")


def writing(unit: Properties) -> Finding:
    """Patching call sites."""
    if _yes(unit, "MemoryDenyWriteExecute"):
        return without("MemoryDenyWriteExecute", "call sites cannot be patched: each call traps, which takes a "
                       "microsecond instead of nanoseconds", "MemoryDenyWriteExecute=no")
    return ok("MemoryDenyWriteExecute", "no: call sites can be patched")


def tracing(unit: Properties) -> Finding:
    """Yama, and a user without capabilities."""
    user, scope = unit.get("User", "") or "root", yama()
    if scope in (None, "0", "1"):
        return ok("User", f"{user}; ptrace is not restricted" + (" for who is named" if scope == "1" else ""))
    if user == "root" and "cap_sys_ptrace" in unit.get("CapabilityBoundingSet", ""):
        return ok("User", "root, with CAP_SYS_PTRACE")
    return stops("User", f"{user} may not trace programs (Yama scope {scope})", "")


def meeting(unit: Properties) -> Finding:
    """Where it finds a monitor that the other end's supervisor asks, too."""
    if _yes(unit, "PrivateNetwork"):
        return without("monitor", "the service has a network of its own: what it talks to there only",
                       "PrivateNetwork=no")
    user = unit.get("User", "") or "root"
    if not os.path.exists(paths.SYSTEM_SOCKET):
        apart = " that nobody else can reach, in a /tmp of its own" if _yes(unit, "PrivateTmp") else ""
        return without("monitor", f"none of the host: it gets one of its user{apart}",
                       "systemctl enable --now sdmonitor")
    return ok("monitor", f"the host's; programs of others than {user} need its --pair-users {user}:USER")


CHECKS: Final[tuple[Callable[[Properties], Finding], ...]] = (starts, calls, files, writing, tracing, meeting)


def examine(name: str) -> list[Finding]:
    """All findings."""
    try:
        unit = ask(name)
    except (OSError, subprocess.SubprocessError) as error:
        return [stops("systemd", f"cannot be asked: {error}")]
    if unit.get("LoadState") != "loaded":
        return [stops("unit", f"{name}: {unit.get('LoadState', 'unknown')}", f"systemctl status {shlex.quote(name)}")]
    return [check(unit) for check in CHECKS]


def drop_in(found: list[Finding]) -> str:
    """The settings that mend what systemd can mend."""
    lines = [finding.mend for finding in found if finding.name[0].isupper() and finding.mend]
    return "\n".join(["[Service]", *lines]) if lines else ""
