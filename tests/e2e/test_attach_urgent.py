# SPDX-License-Identifier: Apache-2.0
"""sdrun --attach of a program that has urgent data unread, or the mark of what it has read, in front of what moves to
shared memory afterwards."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.e2e.test_attach import Attached
from tests.harness import Program, Runner

URGENT = """
import array, fcntl, select, signal, socket, sys, time
inline, looked, front = (int(word) for word in sys.argv[1:])
signal.alarm(30)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with socket.create_server(("127.0.0.1", 0)) as listener:
    near, (far, _) = socket.create_connection(listener.getsockname()), listener.accept()
far.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
near.send(b"ab"[:front])
near.send(b"!", socket.MSG_OOB)
near.send(b"cd")
time.sleep(0.02)
if looked and not inline:
    assert far.recv(1, socket.MSG_OOB) == b"!"
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
for number in range(100):
    near.send(b"m")
    far.send(b"r")
    assert near.recv(1) == b"r"
    time.sleep(0.001 if number % 10 == 0 else 0)

def asked(request):
    value = array.array("i", [-1])
    fcntl.ioctl(far, request, value)
    return value[0]

poll = select.poll()
poll.register(far, select.POLLIN | select.POLLPRI)
far.setblocking(False)
while True:
    seen = [asked(0x8905), min(asked(0x541b), 3), [hex(events) for _, events in poll.poll(0)]]
    try:
        data = far.recv(1)
    except BlockingIOError:
        break
    print(data, *seen)
near.send(b"?", socket.MSG_OOB)
near.send(b"more")
time.sleep(0.02)
for _ in range(4):
    try:
        print(far.recv(10), asked(0x8905))
    except BlockingIOError:
        print("nothing", asked(0x8905))
"""


def start(runner: Runner, words: tuple[str, ...]) -> Program:
    """Both ends in one program, which waits."""
    program = runner.start(sys.executable, "-c", URGENT, *words)
    program.until(lambda: b"ready" in program.stdout, "ready")
    return program


@pytest.mark.parametrize("front", ["0", "2"], ids=["at the mark", "in front of it"])
@pytest.mark.parametrize(("inline", "looked"), [("0", "0"), ("0", "1"), ("1", "0")], ids=["unread", "read", "inline"])
def test_a_mark_from_before(native: Runner, tmp_path: Path, inline: str, looked: str, front: str) -> None:
    """The same is read, piece by piece, as without us."""
    words = (inline, looked, front)
    wanted = start(native, words)
    wanted.send(signal.SIGUSR1)
    assert wanted.wait(60) == 0, wanted.describe()
    program = start(native, words)
    Attached(program.pid, tmp_path, native.env).ok()
    program.send(signal.SIGUSR1)
    assert program.wait(60) == 0, program.describe()
    assert program.stdout == wanted.stdout


SENDER = """
import signal, socket, sys, time
signal.alarm(30)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    near, _ = listener.accept()
signal.sigwait({signal.SIGUSR1})
near.send(b"ab")
near.send(b"!", socket.MSG_OOB)
near.send(b"cd")
print("sent", flush=True)
signal.sigwait({signal.SIGUSR1})
for number in range(100):
    near.send(b"m")
    assert near.recv(1) == b"r"
    time.sleep(0.001 if number % 10 == 0 else 0)
near.close()
print("ok")
"""

RECEIVER = """
import signal, socket, sys, time
signal.alarm(30)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
assert far.recv(1, socket.MSG_OOB) == b"!"
print("looked", flush=True)
signal.sigwait({signal.SIGUSR1})
for number in range(100):
    far.send(b"r")
    time.sleep(0.001 if number % 10 == 0 else 0)  # the connection moves meanwhile
while data := far.recv(3):
    print(data.hex())
"""


@pytest.mark.parametrize("first", ["native", "attached", "born"])
def test_a_mark_that_comes_between(native: Runner, shm: Runner, tmp_path: Path, first: str) -> None:
    """The receiver is ours already when it comes, and its sender is not yet."""
    sender = native.start(sys.executable, "-c", SENDER)
    sender.until(lambda: b"\n" in sender.stdout, "its port")
    runner = shm if first == "born" else native
    receiver = runner.start(sys.executable, "-c", RECEIVER, sender.stdout.split()[0].decode())
    receiver.until(lambda: b"ready" in receiver.stdout, "ready")
    if first == "attached":
        Attached(receiver.pid, tmp_path, native.env).ok()
    sender.send(signal.SIGUSR1)
    sender.until(lambda: b"sent" in sender.stdout, "urgent data")
    receiver.send(signal.SIGUSR1)
    receiver.until(lambda: b"looked" in receiver.stdout, "it is read")
    if first != "native":
        Attached(sender.pid, tmp_path, native.env).ok()
    for each in (sender, receiver):
        each.send(signal.SIGUSR1)
    assert (sender.wait(60), receiver.wait(60)) == (0, 0), (sender.describe(), receiver.describe())
    said = [bytes.fromhex(line.decode()) for line in receiver.stdout.splitlines()[2:]]
    assert b"".join(said) == b"abcd" + 100 * b"m" and said[0] == b"ab"
