# SPDX-License-Identifier: Apache-2.0
"""The supervisor dies in the middle of an injection, and what the keeper receives before it hears of that is what the
half injected thread does next.

The keeper's own functions, called one by one, since in a whole keeper this order is a matter of microseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdtrace.keepsake import SIZE
from tests.harness import ROOT, SDRUN
from tests.sdtrace.support import keeper_library

LIMIT_S = 20

PROGRAM = """
import ctypes, os, socket, sys
keeper, libc = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
channel = socket.socket(fileno=int(sys.argv[2]))
listener = keeper.come_under_the_filter(sys.argv[3].encode())
assert listener >= 0, os.strerror(-listener)
socket.send_fds(channel, [b"."], [listener])
os.close(listener)
fd = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
print("made" if fd >= 0 else os.strerror(ctypes.get_errno()))
"""

SUPERVISOR = """
import os, sys
from sdlib import abi
from sdtrace import notify, procfs, ptrace, remote
from sdtrace.keepsake import Keepsake
from sdtrace.notify import Listener, Notification

pid, moment, keepsake = int(sys.argv[1]), sys.argv[2], Keepsake(int(sys.argv[3]))
listener = Listener(int(sys.argv[4]), keepsake)
notif = Notification.parse(keepsake.notification(0))
listener.owes(notif)
keepsake.begin_with(0)

def die(*_):
    os._exit(0)

def die_behind(action):
    def both(*args):
        action(*args)
        die()
    return both

class Stopped(remote.Stopped):
    pass

if moment == "remembered":
    keepsake.remember_thread = die_behind(keepsake.remember_thread)
elif moment == "landing in place":
    Stopped._set_mask = die
elif moment == "everything given back":
    keepsake.forget_thread = die
with Stopped(pid, notif, keepsake) as stopped:
    stopped.prepare_calls()
    if moment == "in the landing":
        registers = stopped._leader.registers.copy()
        registers.rip, registers.rbx, registers.orig_rax = notif.ip + 2, remote.MARK, ptrace.ALL_SIGNALS
        keepsake.in_start(True)
        ptrace.set_registers(notif.tid, registers)
        ptrace.ask(ptrace.CONT, notif.tid)
        while not procfs.blocked_in(notif.tid, abi.const.SD_HC_NR):
            os.sched_yield()
        die()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keeper_library(tmp_path_factory.mktemp("keeper"))


@pytest.fixture
def memory() -> Iterator[int]:
    """The keepsake's descriptor."""
    fd = os.memfd_create("keepsake", 0)
    os.ftruncate(fd, SIZE)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


def come(listener: int) -> None:
    """Wait until there is a notification that nobody has received."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    assert waiting.poll(LIMIT_S * 1000) == [(listener, select.POLLIN)], "no call came"


@pytest.mark.parametrize("moment", ["remembered", "landing in place", "in the landing", "everything given back"])
def test_what_the_keeper_has_received_already(moment: str, library: Path, memory: int) -> None:
    """Whether that is the thread's own call, made anew, or the landing's: the successor gets the thread's own."""
    keeper = ctypes.CDLL(str(library))
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(
        [sys.executable, "-c", PROGRAM, library, str(theirs.fileno()), SDRUN.parent], stdout=subprocess.PIPE,
        pass_fds=[theirs.fileno()]) as program:
        try:
            ours.settimeout(LIMIT_S)
            listener = socket.recv_fds(ours, 1, 1)[1][0]
            keeper.serve_with(listener, memory)
            come(listener)
            keeper.receive_for_supervisor(listener)
            subprocess.run([sys.executable, "-c", SUPERVISOR, str(program.pid), moment, str(memory), str(listener)],
                           check=True, cwd=ROOT, pass_fds=[memory, listener], timeout=LIMIT_S)
            come(listener)
            keeper.receive_for_supervisor(listener)
            keeper.rescue()
            come(listener)  # for who comes after the dead one
            keeper.go_alone()
            answering = threading.Thread(target=answer, args=(keeper, listener))
            answering.start()
            assert program.communicate(timeout=LIMIT_S)[0] == b"made\n"
            answering.join(LIMIT_S)
        finally:
            program.kill()
            os.close(listener)


def answer(keeper: ctypes.CDLL, listener: int) -> None:
    """As the keeper alone does, until the program has ended."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    while not any(events & select.POLLHUP for _, events in waiting.poll()):
        keeper.receive_notification(listener)
