# SPDX-License-Identifier: Apache-2.0
"""What a supervisor does with sockets and segments of its programs, beside passing them on."""

from __future__ import annotations

import mmap
import os
import socket
import struct

from sdlib import abi
from sdtrace import procfs
from sdtrace.held import Origin


def same_socket(origin: Origin) -> int:
    """A duplicate of the descriptor, if it still is that socket; OSError."""
    pidfd = procfs.pidfd_open_thread(origin.tid)
    try:
        fd = procfs.get_fd(pidfd, origin.fd)
    finally:
        os.close(pidfd)
    with socket.socket(fileno=fd) as sock:
        if cookie_of(sock) != origin.cookie:
            raise OSError("another socket")
        return os.dup(fd)


def cookie_of(sock: socket.socket) -> int:
    """SO_COOKIE."""
    value: int = struct.unpack("=Q", sock.getsockopt(1, 57, 8))[0]
    return value


def send_back(segment: int) -> bool:
    """Ask both senders to go on by TCP: what they have put into their rings is read first."""
    try:
        memory = mmap.mmap(segment, abi.sizeof("struct sd_seg"))
    except OSError:
        return False
    view = abi.view("struct sd_seg", memory)
    for direction in view.dir:
        direction.go_back = abi.const.SD_GO_BACK_POLICY
    return True
