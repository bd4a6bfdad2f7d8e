# SPDX-License-Identifier: Apache-2.0
"""`other.py CELL STATE`: rows of the matrix as a Python program makes them; CELL is the C program, for peers."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable

CELL, STATE = sys.argv[1:3]
BEFORE = {"unread": 10000, "half-closed": 10000, "full": 1 << 20}.get(STATE, 0)
TURNS, MESSAGE, MASK = 40, 64, (1 << 64) - 1


class Random:
    """xorshift64*, as guest.h has it."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def bytes(self, count: int) -> bytes:
        """The next ones."""
        out, state = bytearray(count), self.state
        for i in range(count):
            state ^= state >> 12
            state ^= state << 25 & MASK
            state ^= state >> 27
            out[i] = (state * 0x2545F4914F6CDD1D & MASK) >> 32 & 255
        self.state = state
        return bytes(out)


def get(conn: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    parts = []
    while count:
        part = conn.recv(count)
        assert part, "the end"
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def set_state(conn: socket.socket) -> None:
    """Until the connection is in it."""
    for _ in range(0 if STATE == "offered" else 60):
        get(conn, 1)
        if STATE != "switching":
            conn.sendall(b"\0")
    while STATE in ("unread", "half-closed"):
        if struct.unpack("i", fcntl.ioctl(conn, termios.FIONREAD, b"\0\0\0\0"))[0] == BEFORE:
            break
        time.sleep(0.001)
    if STATE == "full":
        time.sleep(0.02)


def actor(conn: socket.socket) -> int:
    """As in cell.c."""
    incoming, outgoing = Random(1), Random(2)
    assert get(conn, BEFORE) == incoming.bytes(BEFORE)
    for _ in range(TURNS):
        conn.sendall(outgoing.bytes(MESSAGE))
        if STATE != "half-closed":
            assert get(conn, MESSAGE) == incoming.bytes(MESSAGE)
    conn.shutdown(socket.SHUT_WR)
    return int(conn.recv(1) != b"")


def after_fork(conn: socket.socket) -> int:
    """os.fork."""
    child = os.fork()
    if child == 0:
        os._exit(actor(conn))
    conn.close()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def spawned(conn: socket.socket) -> int:
    """os.posix_spawn with file actions."""
    child = os.posix_spawn(CELL, [CELL, "actor", "9", STATE], dict(os.environ), file_actions=[
        (os.POSIX_SPAWN_DUP2, conn.fileno(), 9), (os.POSIX_SPAWN_CLOSE, conn.fileno())])
    conn.close()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def inetd(conn: socket.socket) -> int:
    """subprocess (vfork and exec) with the connection as its standard input."""
    with subprocess.Popen([CELL, "actor", "0", STATE], stdin=conn.fileno()) as child:
        conn.close()
        return child.wait()


def in_thread(conn: socket.socket) -> int:
    """A thread."""
    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(actor(conn)))
    thread.start()
    thread.join()
    return result[0]


def executed(conn: socket.socket) -> int:
    """os.execv in a forked child, which keeps the connection."""
    child = os.fork()
    if child == 0:
        conn.set_inheritable(True)
        os.execv(CELL, [CELL, "actor", str(conn.fileno()), STATE])
    conn.close()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


ROWS: dict[str, Callable[[socket.socket], int]] = {
    "nothing": actor, "fork": after_fork, "posix_spawn with file actions": spawned, "inetd": inetd,
    "pthread": in_thread, "execve": executed,
}


def main() -> None:
    """One line for each row."""
    for name, row in ROWS.items():
        with subprocess.Popen([CELL, "peer", "listen", STATE], stdout=subprocess.PIPE) as peer:
            assert peer.stdout
            conn = socket.create_connection(("127.0.0.1", int(peer.stdout.readline())))
            set_state(conn)
            status = row(conn)
            conn.close()
            there = peer.wait()
        print(name, peer.pid, status, there, flush=True)


main()
