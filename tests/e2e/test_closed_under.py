# SPDX-License-Identifier: Apache-2.0
"""A descriptor is closed while another thread waits in a call on it, and the next connection gets its number.

Without fd/kept.c the one who waits takes a byte of the next connection, or rings in it (tests/guests/closed_under.c).
"""

from __future__ import annotations

import json

import pytest

from tests.guestbuild import Guests
from tests.harness import Runner, assert_shm


@pytest.mark.parametrize("what", ["receive", "send", "wait"])
def test_the_call_goes_on_with_its_connection(native: Runner, shm: Runner, guests: Guests, what: str) -> None:
    guest = guests("closed_under")
    expected = native.run(guest, what).ok()
    assert b"the same number" in expected.stdout
    program = shm.run(guest, what).ok()
    assert program.stdout == expected.stdout
    assert_shm(program.report(), at_least=2, of_bytes=60)


@pytest.mark.parametrize("how", ["jumped", "cancelled"])
def test_who_has_left_his_call_holds_nothing(native: Runner, shm: Runner, guests: Guests, how: str) -> None:
    guest = guests("closed_under")
    assert native.run(guest, how).ok().stdout == shm.run(guest, how).ok().stdout == b"its end 0\n"


@pytest.mark.parametrize("what", ["send", "receive", "replace", "range", "duplicate", "poll"])
def test_a_call_comes_before_the_close_or_after_it(native: Runner, shm: Runner, guests: Guests, what: str) -> None:
    """One thread closes what another one uses all the time: without fd/closing.c what is sent in between is lost."""
    guest = guests("closing")
    assert native.run(guest, what).ok().stdout == b"done\n"
    program = shm.run(guest, what).ok()
    assert program.stdout == b"done\n"
    report = program.report()
    assert_shm(report, at_least=100, of_bytes=5000)
    assert "peer-broke-ring" not in json.dumps(report.raw)


LEFT = """
import os, socket, threading, time
with socket.create_server(("127.0.0.1", 0)) as listener:
    near, far = socket.create_connection(listener.getsockname()), listener.accept()[0]
for _ in range(40):
    near.send(b"x"); far.recv(1); far.send(b"y"); near.recv(1); time.sleep(0.01)
thread = threading.Thread(target=lambda: print(near.recv(10)))
thread.start()
time.sleep(0.2)
near.close()
pid = os.fork()
if not pid:
    far.close(); time.sleep(2); os._exit(0)
far.send(b"late")
thread.join()
begun = time.monotonic()
print(far.recv(10), time.monotonic() - begun < 1)
os.waitpid(pid, 0)
"""


def test_a_forked_child_does_not_have_it(native: Runner, shm: Runner) -> None:
    """The end comes when the last call is over, though a child that was forked meanwhile lives on."""
    for runner in (native, shm):
        program = runner.run("python3", "-c", LEFT).ok()
        assert program.stdout == b"b'late'\nb'' True\n"
