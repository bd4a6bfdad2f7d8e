# SPDX-License-Identifier: Apache-2.0
"""Where a monitor's socket lives, and which places can be trusted.

    SOCKSDIRECT_MONITOR=PATH          exactly this one, nothing else is tried
    /run/socksdirect/monitor.sock     the system-wide monitor, when it exists
    RUNTIME/socksdirect/monitor.sock  the user's own; RUNTIME is $XDG_RUNTIME_DIR, else /run/user/UID,
                                      else the directory is /tmp/socksdirect-UID

Whoever can put a socket at one of these names is asked to pair connections, so a directory that is not the user's
own, or that others may write, is refused rather than used. /tmp is the only place where somebody else could have
been first; there the name must be a real directory (lstat: no symbolic link), ours, mode 0700.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SYSTEM_SOCKET: Final = "/run/socksdirect/monitor.sock"
SOCKET_NAME: Final = "monitor.sock"
ENV_SOCKET: Final = "SOCKSDIRECT_MONITOR"
MAX_PATH: Final = 107
"""sun_path minus its NUL."""


class UnsafePath(Exception):
    """No place for the socket can be trusted or made; str() is one line that says which and what to do."""


def _is_own_dir(path: str, uid: int) -> bool:
    """A real directory of this user."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid


def _make_private(path: str, uid: int) -> str:
    """Make `path` a directory that only `uid` can enter, or find it like that; raises UnsafePath."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise UnsafePath(f"{path}: {error.strerror}; set XDG_RUNTIME_DIR to a directory of yours") from None
    try:
        found = os.lstat(path)
    except OSError as error:
        raise UnsafePath(f"{path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafePath(f"{path}: is not a directory; remove it or set XDG_RUNTIME_DIR")
    if found.st_uid != uid:
        raise UnsafePath(f"{path}: belongs to uid {found.st_uid}, not to {uid}; set XDG_RUNTIME_DIR")
    if found.st_mode & 0o077:
        raise UnsafePath(f"{path}: is open to others (mode {stat.S_IMODE(found.st_mode):o}); chmod 700 {path}")
    return path


def runtime_dir(env: Mapping[str, str], uid: int, run_user: str = "/run/user", tmp: str = "/tmp") -> str:
    """The user's own directory for the monitor's socket, made if need be; raises UnsafePath."""
    xdg = env.get("XDG_RUNTIME_DIR", "")
    for base in (xdg, f"{run_user}/{uid}"):
        if base.startswith("/") and _is_own_dir(base, uid):
            return _make_private(f"{base}/socksdirect", uid)
    return _make_private(f"{tmp}/socksdirect-{uid}", uid)


def user_socket(env: Mapping[str, str], uid: int) -> str:
    """Where the user's own monitor listens; raises UnsafePath."""
    return checked(f"{runtime_dir(env, uid)}/{SOCKET_NAME}")


def checked(path: str) -> str:
    """`path`, if a unix socket can have that name; raises UnsafePath."""
    if not path.startswith("/") or len(os.fsencode(path)) > MAX_PATH:
        raise UnsafePath(f"{path}: a socket's path must be absolute and have at most {MAX_PATH} bytes")
    return path
