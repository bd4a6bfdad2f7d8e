# SPDX-License-Identifier: Apache-2.0
"""`sdmonitor`: options, and becoming the one monitor of a socket path.

The lock file (PATH.lock, flock) decides who serves a path: the lock is taken before the socket's name is touched and
held for life, so a name that is found under the lock is stale and may be replaced, and the kernel frees the lock
however the monitor dies. The lock file itself is never removed: a second process could then lock a file without a name.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import os
import pwd
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

from monitor import journal, segment
from monitor.server import Server
from monitor.session import Limits, Name
from sdlib import abi
from sdlib.wire import messages, paths
from sdlib.wire.segment import ring_size_ok

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from monitor.hosts.config import Config
    from monitor.hosts.hub import Hub

_BACKLOG: Final = 256
_COMM: Final = "sdmonitor"
_UCRED: Final = struct.Struct("3i")
_LOCK_WAIT_S: Final = 5.0
_LOCK_RETRY_S: Final = 0.005
EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 1


class StartError(Exception):
    """The monitor cannot start; str() is one line."""


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError
    return value


def _ring(text: str) -> int:
    value = int(text)
    if not ring_size_ok(value):
        raise ValueError
    return value


def _pair(text: str) -> frozenset[int]:
    """Two users by name or number."""
    found = []
    for user in text.split(":"):
        try:
            found.append(int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid)
        except KeyError:
            raise argparse.ArgumentTypeError(f"no user {user!r} on this host") from None
    if len(set(found)) != 2 or len(found) != 2:
        raise argparse.ArgumentTypeError("two different users, as in www-data:redis")
    return frozenset(found)


def _networks(text: str) -> tuple[str, str]:
    """Two network namespaces by path."""
    one, colon, other = text.partition(":")
    if not colon or not one.startswith("/") or not other.startswith("/") or one == other:
        raise argparse.ArgumentTypeError("two paths, as in /run/netns/web:/run/netns/db")
    return one, other


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="sdmonitor",
        description="Pairs the two ends of TCP connections between programs under sdrun and gives them shared memory. "
        "sdrun starts one per user when it needs it; run it yourself for one per host (--system).",
        allow_abbrev=False,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", help="listen there (default: the user's runtime directory)")
    where.add_argument("--system", action="store_true", help=f"listen at {paths.SYSTEM_SOCKET}, for all users")
    parser.add_argument("--idle-exit", type=_seconds, metavar="SECONDS", help="leave after so long without a client")
    parser.add_argument(
        "--check-interval",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="how often to look whether the socket still has its name (default: 30)",
    )
    parser.add_argument("--detach", action="store_true", help="go to the background once it listens")
    parser.add_argument("--take-over", action="store_true",
                        help="if a monitor serves there, of whatever version, have it leave and take its place")
    default = Limits()
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-clients", type=_positive, default=default.clients, metavar="N",
                        help="conversations at a time")
    limits.add_argument("--max-clients-per-user", type=_positive, default=default.clients_per_uid, metavar="N",
                        help="of them by one user")
    limits.add_argument("--max-offers-per-client", type=_positive, default=default.offers_per_client, metavar="N",
                        help="open offers of one")
    limits.add_argument("--max-offers-per-user", type=_positive, default=default.offers_per_uid, metavar="N",
                        help="of one user")
    limits.add_argument("--max-ring", type=_ring, default=default.ring_bytes, metavar="BYTES", help="a power of two")
    limits.add_argument("--max-memory", type=_positive, default=default.memory, metavar="BYTES", help="of all rings")
    limits.add_argument(
        "--max-memory-per-user", type=_positive, default=default.memory_per_uid, metavar="BYTES", help="of one user's"
    )
    parser.add_argument(
        "--pair-users", type=_pair, action="append", default=[], metavar="USER:USER",
        help="pair ends of these two users with each other as well; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--hosts", metavar="FILE", help="other hosts (default: $SOCKSDIRECT_HOSTS, or the user's or host's hosts.yaml)"
    )
    parser.add_argument("--metrics", metavar="[HOST:]PORT|/PATH",
                        help="serve Prometheus metrics over HTTP there (HOST: 127.0.0.1), or on a unix socket")
    parser.add_argument(
        "--pair-networks", type=_networks, action="append", default=[], metavar="NETNS:NETNS",
        help="pair ends in these two network namespaces, named by files such as /run/netns/web or /proc/PID/ns/net, "
        "with each other as well; only for those that share no address, with none translated between them; may be "
        "repeated",
    )  # fmt: skip
    parser.add_argument("--log", choices=("text", "json"), default="text", help="form of the log lines (default: text)")
    parser.add_argument("--verbose", action="store_true", help="also log every offer")
    parser.add_argument("--version", action="store_true", help="print the versions and leave")
    return parser


def _print_version() -> None:
    from importlib import metadata

    try:
        version = metadata.version("sdrun")
    except metadata.PackageNotFoundError:
        version = "from source"
    print(f"sdmonitor {version} (protocol {messages.PROTOCOL_VERSION}, ABI {abi.const.SD_ABI_VERSION})")


def _socket_path(options: argparse.Namespace) -> str:
    """Where to listen; raises UnsafePath or StartError."""
    if options.system:
        directory = os.path.dirname(paths.SYSTEM_SOCKET)
        try:
            os.makedirs(directory, 0o755, exist_ok=True)
        except OSError as error:
            raise StartError(f"{directory}: {error.strerror}; --system needs root") from None
        return paths.SYSTEM_SOCKET
    return paths.checked(options.socket) if options.socket else paths.user_socket(os.environ, os.geteuid())


def _somebody_listens(path: str) -> bool:
    """Whether a connection to `path` is accepted by a live listener."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its backlog is full: very much alive
        except OSError:
            return False
    return True


def _send_away(path: str) -> None:
    """Have the monitor that serves `path` leave; StartError. By a signal, which versions of any kind understand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
            pid, uid, _ = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            pidfd = os.pidfd_open(pid)
        except OSError:
            return  # it is leaving
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii", errors="replace") as comm:
            name = comm.read().strip()
        if uid != os.geteuid() or name != _COMM:
            raise StartError(f"{path}: served by process {pid} (`{name}`) of uid {uid}, no monitor of yours; end it")
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except OSError as error:
        raise StartError(f"{path}: process {pid}, which serves it: {error.strerror}") from None
    finally:
        os.close(pidfd)


def take_lock(path: str, take_over: bool = False) -> int | None:
    """The lock of `path`, or None when another monitor serves it and is not to be replaced; raises StartError.

    A holder that does not listen is just starting or just leaving: wait for one or the other. Who takes over looks
    for the lock so often that no monitor which a client starts meanwhile is there first.
    """
    name = path + ".lock"
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"{name}: {error.strerror}") from None
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        if _somebody_listens(path):
            if not take_over:
                os.close(fd)
                return None
            _send_away(path)
        if time.monotonic() >= deadline:
            os.close(fd)
            raise StartError(f"{name}: held by a process that does not listen at {path}; end it or wait")
        time.sleep(_LOCK_RETRY_S)


def listen(path: str, for_all: bool) -> tuple[socket.socket, int]:
    """The listening socket and the inode of its name; the lock of `path` must be held. Raises StartError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # stale: its owner would hold the lock
        before = os.umask(0o111 if for_all else 0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        inode = os.stat(path).st_ino  # before anybody can connect, and so know that it is there to be taken away
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"{path}: {error.strerror}") from None
    return listener, inode


def _raise_descriptor_limit() -> None:
    """A descriptor per client and per answer in flight: use all that the hard limit gives."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _detach(path: str, listener: socket.socket) -> None:
    """Let the starter go (exit 0: it listens) and live on in an own session, with a log file instead of a terminal."""
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    listener.listen(_BACKLOG)  # again: SO_PEERCRED names the process that did so last
    os.close(theirs)
    with contextlib.suppress(OSError):
        os.setsid()  # fails when the starter was a session leader's only process already
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(path + ".log", flags, 0o600)
    except OSError:
        log = null
    for target, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, target)


def _hosts(file: str | None) -> Callable[[Server], Hub | None] | None:
    """What makes the hub, if there are other hosts. A file that cannot be used is no reason not to serve this one."""
    from monitor.hosts import config

    path = file or config.path_of(os.environ, os.geteuid())
    if path is None:
        return None
    try:
        read = config.load(path)
    except config.BadConfig as error:
        journal.warn("no-hosts", why=str(error))
        return None
    return lambda server: _hub(read, server)


def _hub(read: Config, server: Server) -> Hub | None:
    from monitor.hosts import config, hub

    try:
        make = None if read.transport == config.FOR_TESTS else functools.partial(hub.open_device, read)
        return hub.Hub(read, server.selector, server.pairing, make)
    except OSError as error:
        journal.warn("no-hosts", why=str(error))
        return None


def _serve_metrics(where: str, server: Server) -> None:
    """A monitor without its metrics is better than none."""
    from monitor import metrics

    try:
        listener = metrics.listen(where)
        server.metrics = metrics.Metrics(listener, server.selector, lambda: server.status(None), server.gather)
    except (OSError, ValueError) as error:
        journal.warn("no-metrics", why=str(error))
    else:
        journal.event("metrics", where=server.metrics.where)


def _serve(options: argparse.Namespace) -> int:
    """Become the monitor of the path, or find that there is one."""
    path = _socket_path(options)
    lock = take_lock(path, options.take_over)
    if lock is None:
        return 0  # quietly: whoever asked for a monitor has one
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(_COMM)
    listener, inode = listen(path, options.system)
    _raise_descriptor_limit()
    if options.detach:
        _detach(path, listener)
    journal.start(options.verbose, options.log == "json")
    limits = Limits(
        options.max_clients,
        options.max_clients_per_user,
        options.max_offers_per_client,
        options.max_offers_per_user,
        segment.largest_ring(options.max_ring),
        options.max_memory,
        options.max_memory_per_user,
    )
    journal.event("listening", socket=path, protocol=messages.PROTOCOL_VERSION, abi=abi.const.SD_ABI_VERSION)
    name = Name(path, inode, options.check_interval)
    pairs = frozenset(options.pair_users)
    networks = options.pair_networks
    server = Server(listener, name, limits, options.idle_exit, pairs, networks, _hosts(options.hosts))
    if options.metrics:
        _serve_metrics(options.metrics, server)
    why = server.run()
    journal.event("leaving", why=why)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status (0, 1: cannot start, 2: usage)."""
    options = parser().parse_args(argv)
    if options.version:
        _print_version()
        return 0
    try:
        return _serve(options)
    except (StartError, paths.UnsafePath) as error:
        print(f"sdmonitor: {error}", file=sys.stderr)
        return EXIT_FAILED
