# SPDX-License-Identifier: Apache-2.0
"""JSON in sealed memfds: what monitor, supervisors and sdctl tell each other that is longer than a message.

A reader trusts neither size nor content: it reads at most MAX_BYTES, and what is no JSON object is nothing.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

MAX_BYTES: Final = 8 << 20
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def write(content: dict[str, Any]) -> int:
    """A sealed memfd with the JSON of `content`; the caller closes it. OSError."""
    import json  # a question comes late, and a program waits for our start

    data = json.dumps(content).encode()
    fd = os.memfd_create("socksdirect-paper", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(fd: int, most: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a memfd that somebody else has made; {} for anything that is none, or longer. Closes `fd`."""
    import json

    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            return {}  # only a memfd has seals: nothing that could block is read from
        content = json.loads(os.pread(fd, most, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(fd)
    return content if isinstance(content, dict) else {}
