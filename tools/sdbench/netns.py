# SPDX-License-Identifier: Apache-2.0
"""python -m tools.sdbench.netns CMD...: run a command in a network namespace of its own, with loopback up.

For benchmarks that open and close many connections: what they leave in TIME_WAIT goes away with the namespace instead
of slowing down the next run.  Without the right to make one the command runs where it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def main() -> int:
    """Becomes the command."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
