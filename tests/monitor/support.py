# SPDX-License-Identifier: Apache-2.0
"""A monitor process of a test's own, TCP connections to offer, and a client that says whatever it likes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sdlib import abi
from sdlib.wire import Lost, MonitorClient, Paired, fds, messages, ready

MAIN = Path(__file__).resolve().parents[2] / "monitor" / "__main__.py"
THIS = (sys.executable, "-I", MAIN)
RING = 65536


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 10.0) -> None:
    """Poll until `condition`; fails the test with `what` after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


class MonitorProcess:
    """A foreground sdmonitor on a socket in `folder`."""

    def __init__(
        self, folder: Path, *options: str, name: str = "m.sock", before: Sequence[str | Path] = (),
        command: Sequence[str | Path] = THIS,
    ) -> None:  # fmt: skip
        """`before`: words in front of the command, such as nsenter's; `command`: another version's, say."""
        self.path = str(folder / name)
        self.log = folder / "monitor.log"
        self._options = options
        self._before = before
        self.command = command
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            command = [*self._before, *self.command, "--socket", self.path, "--verbose", *self._options]
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        wait_for(self._listens, "the monitor listens")

    def replace(self, command: Sequence[str | Path] = THIS) -> None:
        """Start another one that takes over, without a moment in which there is none."""
        before, self.command, options = self.process, command, self._options
        self._options = (*options, "--take-over")
        self.start()
        assert before.wait(10) == 0, self.log.read_text()
        self._options = options
        wait_for(self._listens, "the next monitor listens")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.connect(self.path)
            return True
        return False

    def fds(self) -> list[str]:
        """What its descriptors are, without those of clients."""
        found = []
        for fd in os.listdir(f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{self.process.pid}/fd/{fd}"))
        return sorted(found)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it; returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(10)

    def close(self) -> None:
        """End it if it is there."""
        if self.process.poll() is None:
            self.kill()

    def client(self) -> MonitorClient:
        """A well-behaved client."""
        return MonitorClient.open(self.path, spawn=False)


class Link:
    """One TCP connection; both ends."""

    def __init__(self, host: str = "127.0.0.1", *, server_host: str | None = None) -> None:
        family = socket.AF_INET6 if ":" in (server_host or host) else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            if server_host == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((server_host or host, 0))
            listener.listen(8)
            self.near = socket.create_connection((host, listener.getsockname()[1]))
            self.far, _ = listener.accept()

    def close(self) -> None:
        self.near.close()
        self.far.close()


class Raw:
    """A client without manners: any bytes, any descriptors."""

    def __init__(self, path: str, *, greet: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(10)
        self.sock.connect(path)
        if greet:
            self.say(messages.Hello(messages.PROTOCOL_VERSION, abi.const.SD_ABI_VERSION))
            assert isinstance(self.hear(), messages.Welcome)

    def say(self, message: messages.Message, *descriptors: int) -> None:
        self.say_bytes(messages.encode(message), *descriptors)

    def say_bytes(self, data: bytes, *descriptors: int) -> None:
        socket.send_fds(self.sock, [data], list(descriptors))

    def hear(self) -> messages.Message:
        """The next message; EOFError when the monitor hung up. Descriptors are closed."""
        got = fds.receive(self.sock)
        fds.close_all(got.fds)
        if not got.data:
            raise EOFError
        return messages.decode(got.data)

    def hears_reject(self) -> messages.Reject:
        """The REJECT that must come, and the end after it."""
        message = self.hear()
        assert isinstance(message, messages.Reject), message
        with contextlib.suppress(EOFError, ConnectionResetError):
            raise AssertionError(f"still speaks: {self.hear()}")
        return message

    def close(self) -> None:
        self.sock.close()


@contextlib.contextmanager
def descriptors_open(most: int) -> Iterator[None]:
    """Those below `most` are taken, so that new ones have higher numbers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most + 512, hard)), hard))
    taken = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    try:
        while taken[-1] < most - 1:
            taken.append(os.dup(taken[0]))
        yield
    finally:
        fds.close_all(tuple(taken))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def readable(client: MonitorClient, limit_s: float = 5.0) -> bool:
    """Whether the client's descriptor announces an event within the limit."""
    return ready.readable(client.fileno(), limit_s)


def events_of(client: MonitorClient, count: int = 1) -> list[Paired | Lost]:
    """The next `count` events, waited for."""
    found: list[Paired | Lost] = []
    while len(found) < count:
        assert readable(client), f"only {found} came"
        found += [event for event in client.events() if isinstance(event, Paired | Lost)]
    assert len(found) == count, found
    return found


def segment_ids(*memfds: int) -> set[tuple[int, int]]:
    """Identities of the files behind descriptors."""
    return {(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in memfds}


@contextlib.contextmanager
def still_serves(monitor: MonitorProcess) -> Iterator[None]:
    """The monitor pairs others before and after what happens inside, and ends up with the descriptors it had."""
    _pair_once(monitor)
    wait_for(lambda: _quiet(monitor), "clients are gone")
    before = monitor.fds()
    yield
    _pair_once(monitor)
    wait_for(lambda: len(monitor.fds()) == len(before), f"descriptors are back to {before}, not {monitor.fds()}")


def _quiet(monitor: MonitorProcess) -> bool:
    count = len(monitor.fds())
    time.sleep(0.02)
    return count == len(monitor.fds())


def _pair_once(monitor: MonitorProcess) -> None:
    link = Link()
    with contextlib.closing(link), contextlib.closing(monitor.client()) as one:
        assert one.offer(link.near.fileno(), 1, RING, 5) == (1,)
        answer = one.offer(link.far.fileno(), 2, RING, 5)
        assert answer[0] == 2
        os.close(answer[2])  # type: ignore[misc]
        assert readable(one)
        for event in one.events():
            os.close(event[2])  # type: ignore[misc]
