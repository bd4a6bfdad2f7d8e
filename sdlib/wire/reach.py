# SPDX-License-Identifier: Apache-2.0
"""How a client comes to a monitor: which one, started if need be, believed if it is root's or our own, and greeted."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

from sdlib import abi
from sdlib.records import NamedTuple
from sdlib.wire import messages, paths, spawn
from sdlib.wire.channel import Channel
from sdlib.wire.events import MonitorUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_RETRY_S: Final = 0.005
HOST_AWAY_S: Final = 0.5
"""How long to look for the host's monitor where there is nothing but its directory: it may be restarting."""
HOST_RESTARTS_S: Final = 3.0
"""The same for who has had it: systemd's 100 ms, and the start of Python on a busy host."""
_LOOK_S: Final = 0.02


class Reached(NamedTuple):
    """A conversation that has begun, and what the monitor has said of itself."""

    channel: Channel
    path: str
    pid: int
    max_offers: int
    max_ring_bytes: int


class _Retry(Exception):
    """Nobody serves at this path at this moment; a new monitor may."""


def reach(path: str | None, may_spawn: bool, deadline: float, away_s: float, env: Mapping[str, str]) -> Reached:
    """MonitorUnavailable; the arguments are those of MonitorClient.open()."""
    chosen = path or env.get(paths.ENV_SOCKET)
    reached = _of_the_host(deadline, away_s) if chosen is None else None
    if reached is not None:
        return reached
    try:
        return _connect_or_spawn(paths.checked(chosen or paths.user_socket(env, os.geteuid())), may_spawn, deadline)
    except paths.UnsafePath as error:
        raise MonitorUnavailable(str(error)) from None


def _of_the_host(deadline: float, away_s: float) -> Reached | None:
    """The host's monitor; None: there is none, or one of another version, so the user's own has to do.

    Its directory says that there is one, even while it is restarted (the unit preserves it then). Whoever went
    to the user's own in such a moment would stay there, and meet nobody who came before or after.
    """
    patience = min(deadline, time.monotonic() + away_s)
    while os.path.isdir(os.path.dirname(paths.SYSTEM_SOCKET)):
        try:
            return _connect(paths.SYSTEM_SOCKET, deadline)
        except MonitorUnavailable:
            return None
        except _Retry:
            if time.monotonic() >= patience:
                return None
        time.sleep(_LOOK_S)
    return None


def _connect_or_spawn(path: str, may_spawn: bool, deadline: float) -> Reached:
    """Connect; start a monitor if none answers; and so on until the deadline."""
    while True:
        try:
            return _connect(path, deadline)
        except _Retry as error:
            remaining = deadline - time.monotonic()
            if not may_spawn or remaining <= 0:
                raise MonitorUnavailable(f"no monitor at {path}: {error}") from None
        try:
            spawn.spawn_monitor(path, remaining)
        except spawn.SpawnFailed as error:
            raise MonitorUnavailable(str(error)) from None
        time.sleep(_RETRY_S)


def _connect(path: str, deadline: float) -> Reached:
    """One attempt; raises _Retry when nobody serves there, MonitorUnavailable when asking again is no use."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(left(deadline))
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionError) as error:
            raise _Retry(error.strerror) from None
        except OSError as error:
            raise MonitorUnavailable(f"{path}: {error.strerror or error}") from None
        channel = Channel(sock)
        pid = _checked_owner(channel, path)
        welcome = _greet(channel, path, deadline)
    except BaseException:
        sock.close()
        raise
    return Reached(channel, path, pid, welcome.max_offers, welcome.max_ring_bytes)


def _checked_owner(channel: Channel, path: str) -> int:
    """Only root's or the user's own process is believed to be a monitor."""
    pid, uid = channel.owner()
    if uid not in (0, os.geteuid()):
        raise MonitorUnavailable(f"{path}: served by uid {uid}, which is neither root nor you")
    return pid


def _greet(channel: Channel, path: str, deadline: float) -> messages.Welcome:
    """HELLO, WELCOME."""
    with suppress(OSError):  # a monitor that is full or leaving has said REJECT and hung up: hear it
        channel.send(messages.Hello(messages.PROTOCOL_VERSION, abi.const.SD_ABI_VERSION))
    try:
        channel.sock.settimeout(left(deadline))
        answer, _ = channel.receive()
    except (ConnectionError, EOFError) as error:
        raise _Retry(str(error)) from None  # it left as we came
    except TimeoutError:
        raise MonitorUnavailable(f"the monitor at {path} does not answer") from None
    except (OSError, messages.ProtocolError) as error:
        raise MonitorUnavailable(f"{path}: {error}") from None
    if isinstance(answer, messages.Reject):
        if answer.code == messages.Code.CLOSING:
            raise _Retry(answer.text)
        raise MonitorUnavailable(f"the monitor at {path} refuses us: {answer.text}")
    assert isinstance(answer, messages.Welcome)  # the table of states lets nothing else through
    return answer


def left(deadline: float) -> float:
    """Seconds until `deadline`, but never 0, which would mean non-blocking to a Python socket."""
    return max(deadline - time.monotonic(), 0.001)
