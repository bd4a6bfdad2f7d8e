# SPDX-License-Identifier: Apache-2.0
"""`sdctl`: ask the monitor and the supervisors what they do, and why; have policies read again; end the monitor."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import policies
from policies import PolicyError, Settings, values
from policies.__main__ import explain as explain_settings
from policies.model import Dir
from policies.rules import pattern
from sdlib.wire import Answered, MonitorClient, MonitorUnavailable, Part, papers
from sdlib.wire.messages import Code, Query
from sdlib.wire.ready import readable
from tools.observe import view
from tools.observe.sockets import Address
from tools.observe.view import Row

LIMIT_S: Final = 5.0
WHY: Final = {
    "": "nothing keeps it there: it is waiting for its turn, or for the other end",
    "few-operations": "it has not done as many operations as the policy wants first (upgrade)",
    "short-lived": "those before it on this port ended too soon to be worth it; it moves if it gets older",
    "no-accel": "started with --no-accel",
    "policy": "a rule of the policy keeps it on TCP",
    "peer-not-under-sdrun": "the other end is not under sdrun, or has not been offered (its policy, few operations)",
    "supervisor-gone": "the supervisor of its program has ended",
    "monitor-unreachable": "no monitor answers; it is offered again when one does",
    "monitor-refused": "the monitor refuses it: other user, other network namespace, or no plain TCP connection",
    "quota-exhausted": "ring memory or the number of connections is used up (limits of the policy, of the monitor)",
    "no-socket-call": "its program has made no socket since it was started",
    "made-before-injection": "it was made before the library came into its program",
    "closed-before-switch": "it has ended before both ends had switched",
    "shared-before-switch": "processes share it (fork) since before it could switch: it waits until one has it alone",
    "not-switched-yet": "both ends are paired, and switch with their next operations",
    "moved-back": "it was on shared memory and has gone back to TCP",
    "peer-closed-its-side": "the other end has shut its sending side",
    "survived-exec": "it has gone along through execve, to a program that could not take its ring",
    "mapping-failed": "there was no memory for its ring, or, between hosts, none to register it (LimitMEMLOCK)",
    "unsupported-call": "its program, or the other end's (its report says which), does what rings cannot carry",
    "stream-position-unknown": "the kernel could not tell how far its stream was",
    "stopped-while-sending": "a signal handler has sent in the middle of a message of its own thread",
    "peer-broke-ring": "the other end has written into its ring what no honest one does, and it was reset",
    "detached": "its program was given back (sdrun --detach)",
    "host-link-lost": "the link to the other host was lost, and it has gone back to TCP",
    "host-link-unsteady": "the link to the other host breaks too often (sdss --hosts), and it has gone back to TCP",
    "unread-lost": "it was given to another program with bytes unread that could not go along, and was reset",
    "fault-inside": "a call of its program has ended in a mistake of the library: what it opens then stays on TCP",
    "unsupported-flag": "a flag of send or recv that rings cannot carry",
    "own-seccomp-filter": "its program has a seccomp filter of its own",
    "not-dumpable": "its program may not be traced",
    "already-traced": "its program is under a debugger",
    "socket-option": "a socket option that rings cannot honour",
    "descriptor-passed": "its socket, or the other end's, was passed to another program",
}


class Failed(Exception):
    """One line for a person; the exit status is 1."""


@dataclass
class Reply:
    """What came back."""

    code: int
    missing: int
    monitor: dict[str, Any]
    parts: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)

    def connections(self) -> Iterable[dict[str, Any]]:
        """The rows of all supervisors, as far as they are such."""
        for pid, uid, content in self.parts:
            rows = content.get("connections")
            for row in rows if isinstance(rows, list) else ():
                if isinstance(row, dict):
                    yield {**row, "supervisor": pid, "uid": uid}


def ask(what: Query, socket_path: str | None) -> Reply:
    """One question; Failed."""
    try:
        client = MonitorClient.open(socket_path, spawn=False, timeout_s=LIMIT_S)
    except MonitorUnavailable as error:
        raise Failed(f"{error}; is a program running under sdrun?") from None
    try:
        return _collect(client, what)
    finally:
        client.close()


def _collect(client: MonitorClient, what: Query) -> Reply:
    client.query(what)
    parts = []
    deadline = time.monotonic() + LIMIT_S
    while (left := deadline - time.monotonic()) > 0:
        readable(client.fileno(), left)
        for event in client.events():
            if isinstance(event, Part):
                parts.append((event.pid, event.uid, papers.read(event.memfd)))
            elif isinstance(event, Answered):
                return Reply(event.code, event.missing, papers.read(event.memfd), parts)
        if not client.alive:
            raise Failed("the monitor hung up")
    raise Failed("the monitor does not answer")


def _allowed(reply: Reply) -> Reply:
    if reply.code == Code.FORBIDDEN:
        raise Failed("only root and the monitor's own user may do that")
    if reply.code:
        raise Failed("the monitor has too many questions open; try again")
    return reply


def _plain(value: object) -> str:
    """Other programs' words on a terminal: printable, short."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _end(pair: object) -> str:
    host, port = pair if isinstance(pair, list) and len(pair) == 2 else ("?", "?")
    return f"[{_plain(host)}]:{_plain(port)}" if ":" in str(host) else f"{_plain(host)}:{_plain(port)}"


def status(options: argparse.Namespace) -> None:
    """`sdctl status`."""
    monitor = _allowed(ask(Query.STATUS, options.socket)).monitor
    if options.json:
        print(json.dumps(monitor, indent=1))
        return
    up = time.time() - float(monitor.get("started", time.time()))
    print(f"monitor {monitor.get('pid')} of uid {monitor.get('uid')} at {_plain(monitor.get('socket'))}, up {up:.0f} s")
    print(f"protocol {monitor.get('protocol')}, ABI {monitor.get('abi')}")
    limits = monitor.get("limits", {})
    print(f"clients: {len(monitor.get('clients', []))}, open offers: {monitor.get('offers_open')}")
    print(f"segments: {monitor.get('segments')}, {monitor.get('memory')} of {limits.get('memory')} bytes")
    for uid, size in sorted(monitor.get("memory_by_user", {}).items()):
        print(f"  uid {uid}: {size} of {limits.get('memory_per_uid')} bytes")
    for name, number in sorted(monitor.get("counts", {}).items()):
        print(f"{_plain(name)}: {number}")


def connections(options: argparse.Namespace) -> None:
    """`sdctl connections`: what has been offered, and what carries it."""
    reply = _allowed(ask(Query.CONNECTIONS, options.socket))
    rows = list(reply.connections())
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        ends = f"{_end(row.get('local'))} {'->' if row.get('dir') == 'out' else '<-'} {_end(row.get('peer'))}"
        moved = f"shm {row.get('shm_tx')}/{row.get('shm_rx')} tcp {row.get('tcp')}"
        who = f"{_plain(row.get('exe'))} {_plain(row.get('reason'))}"
        print(f"{_plain(row.get('state')):8} {ends:48} {moved:32} {who}".rstrip())
    if reply.missing:
        print(f"{reply.missing} supervisors did not answer", file=sys.stderr)


def reload(options: argparse.Namespace) -> None:
    """`sdctl reload`."""
    monitor = _allowed(ask(Query.RELOAD, options.socket)).monitor
    print(f"{len(monitor.get('clients', [])) - 1} supervisors read their policies again")


def drain(options: argparse.Namespace) -> None:
    """`sdctl drain`."""
    _allowed(ask(Query.DRAIN, options.socket))
    print("the monitor leaves; attached connections go on")


def policy_explain(options: argparse.Namespace) -> None:
    """`sdctl policy explain`: the settings of a program, the rule for an address, and live connections to it.

    With an address alone: the live connections that have it as an end, whosever they are.
    """
    if options.address is None and ":" in options.program and "/" not in options.program:
        _explain_live(options)
        return
    try:
        settings = _settings(options, options.program)
        boxes = pattern(options.address) if options.address else ()
    except (PolicyError, ValueError) as error:
        raise Failed(str(error)) from None
    print(explain_settings(settings, options.program))
    if not boxes:
        return
    for dir_ in (options.dir,) if options.dir else ("out", "in"):
        verdict = policies.judge(settings, dir_, "tcp", *_one(options.address))
        print(f"{dir_} tcp {options.address}: {verdict.action}, by {verdict.where}")
    for row in _rows(options.address):
        exe = _exe(row)
        if not exe or os.path.realpath(exe) == os.path.realpath(options.program):
            print(f"now: {_line(row)}")


def _settings(options: argparse.Namespace, exe: str) -> Settings:
    policy = policies.load(options.policy)
    return policies.effective(policy, exe, options.set, options.uid, options.rule)


def _one(address: str) -> tuple[bytes, int]:
    """One address and one port; Failed."""
    try:
        (box, *_) = pattern(address)
    except (PolicyError, ValueError) as error:
        raise Failed(str(error)) from None
    if (box.low, box.first) != (box.high, box.last):
        raise Failed(f"{address}: one address and one port")
    return box.low.to_bytes(4 if box.family == 4 else 16, "big"), box.first


def _rows(address: str) -> list[Row]:
    """Live connections of programs under sdrun that have this end."""
    return [row for row in view.look().rows
            if row.state not in ("LISTEN", "UNCONN") and address in (_shown(row.local), _shown(row.peer))]


def _shown(end: Address) -> str:
    return _end([end.host, end.port])


def _exe(row: Row) -> str:
    """Path of its program, "" when that is not ours to see."""
    for user in row.users:
        with suppress(OSError):
            return os.readlink(f"/proc/{user.pid}/exe")
    return ""


def _line(row: Row) -> str:
    """A connection, what carries it, and why."""
    reason = "" if row.path == "shm" else row.reason
    why = [WHY.get(word, _plain(word)) for word in reason.split("/")] if row.path != "shm" or reason else []
    who = ", ".join(f"{_plain(user.name)} ({user.pid})" for user in row.users) or "?"
    note = f" ({_plain(row.reason)})" if row.path == "shm" and row.reason else ""
    return f"{_shown(row.local)} - {_shown(row.peer)} of {who} is on {row.path}{note}" + "".join(f": {w}" for w in why)


def _explain_live(options: argparse.Namespace) -> None:
    """Each connection of an end: what carries it, why, and the rule that speaks of it in the policy as it is now."""
    _one(options.program)
    rows = _rows(options.program)
    if not rows:
        raise Failed(f"{options.program}: no connection of a program of yours under sdrun has this end")
    for row in rows:
        print(_line(row))
        exe = _exe(row)
        if not exe:
            continue
        try:
            settings = _settings(options, exe)
        except PolicyError as error:
            raise Failed(str(error)) from None
        role = (row.connection or {}).get("role")
        dirs: tuple[Dir, ...] = ("out",) if role == "connected" else ("in",) if role == "accepted" else ("out", "in")
        upgrade = values.show("upgrade", settings.upgrade)
        for dir_ in dirs:
            port = row.peer.port if dir_ == "out" else row.local.port
            verdict = policies.judge(settings, dir_, "tcp", _packed(row.peer.host), port)
            print(f"  policy, {dir_}: {verdict.action}, by {verdict.where}; upgrade {upgrade}")


def _packed(host: str) -> bytes:
    return ipaddress.ip_address(host.partition("%")[0]).packed


def parser() -> argparse.ArgumentParser:
    """All options."""
    what = "Ask the monitor and the supervisors what they do, and why; have policies read again; end the monitor."
    parser = argparse.ArgumentParser(prog="sdctl", description=what, allow_abbrev=False)
    parser.add_argument("--socket", metavar="PATH", help="the monitor's socket (default: where sdrun looks)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, action, text in (
        ("status", status, "clients, memory and counts of the monitor"),
        ("connections", connections, "connections that were offered, and what carries them"),
        ("reload", reload, "have all supervisors read their policy files again, for existing connections, too"),
        ("drain", drain, "end the monitor in order; the next one takes over"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        if name in ("status", "connections"):
            command.add_argument("--json", action="store_true", help="one JSON document")
    about = commands.add_parser("policy", help="what policies say").add_subparsers(required=True, metavar="COMMAND")
    why = about.add_parser("explain", help="what holds for a program, and why a connection is carried as it is")
    why.set_defaults(action=policy_explain)
    why.add_argument("program", help="path of the program, or ADDRESS:PORT: an end of live connections")
    why.add_argument("address", nargs="?", help="ADDRESS:PORT: connected to, or (in) of the peer and our port")
    why.add_argument("--dir", choices=("in", "out"), help="who connects: out, this program")
    why.add_argument("--uid", type=int, default=os.geteuid(), help="as this user")
    why.add_argument("--policy", help="with this policy file")
    why.add_argument("--set", action="append", default=[], help="as for sdrun")
    why.add_argument("-r", "--rule", action="append", default=[], help="as for sdrun")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit status 0, 1 (one line says why), 2 (usage)."""
    options = parser().parse_args(argv)
    try:
        options.action(options)
    except Failed as error:
        print(f"sdctl: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
