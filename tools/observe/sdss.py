# SPDX-License-Identifier: Apache-2.0
"""`sdss`: ss for the connections of programs under sdrun, accelerated or not."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from tools.observe import hosts, view
from tools.observe.filters import FilterError, Test, compile_filter, speaks_of_states
from tools.observe.sockets import Address, User
from tools.observe.view import Moment, Row

_QUIET = ("LISTEN", "UNCONN")


def parser() -> argparse.ArgumentParser:
    """All options."""
    result = argparse.ArgumentParser(
        prog="sdss",
        description="ss for the TCP connections of programs under sdrun: what carries each (shm, rdma, tcp), and why "
        "those on tcp are there. Root sees those of all users.",
        epilog="FILTER as in ss(8): state, exclude, sport, dport, src, dst, and, or, not, ( ); besides: "
        "path shm|rdma|tcp, reason NAME, program NAME, pid N. Example: sdss -p 'path tcp and dport = :6379'. Bytes in "
        "the rings are part of Recv-Q and Send-Q.",
    )
    result.add_argument("-a", "--all", action="store_true", help="connections and listeners")
    result.add_argument("-l", "--listening", action="store_true", help="listeners only")
    result.add_argument("-t", "--tcp", action="store_true", help="TCP (there is nothing else)")
    result.add_argument("-n", "--numeric", action="store_true", help="no names of services")
    result.add_argument("-p", "--processes", action="store_true", help="programs and pids, of both ends")
    result.add_argument("-i", "--info", action="store_true",
                        help="bytes through shared memory and TCP, messages, doorbells, parks, spins and those that it "
                        "won, size of a ring and what is unread in it; below each connection")
    result.add_argument("-s", "--summary", action="store_true", help="only how many there are, by path and reason")
    result.add_argument("-O", "--oneline", action="store_true", help="with -i: on one line")
    result.add_argument("-4", "--ipv4", action="store_true", help="IPv4 only")
    result.add_argument("-6", "--ipv6", action="store_true", help="IPv6 only")
    result.add_argument("-H", "--no-header", action="store_true", help="no first line")
    result.add_argument("--rates", type=float, metavar="SECONDS",
                        help="look twice, so far apart, and show bytes/s, whatever carries them")
    result.add_argument("--hosts", action="store_true",
                        help="instead, links to other hosts: requests under way, bytes unread over there, credits "
                        "(bytes that may be sent), doorbells asked for again, retries and receivers that were not "
                        "ready (RNR) of the RDMA device")
    result.add_argument("--json", action="store_true", help="one JSON document")
    result.add_argument("filter", nargs="*", metavar="FILTER", help="which of them")
    return result


def _chosen(rows: list[Row], options: argparse.Namespace, test: Test, *, everything: bool) -> list[Row]:
    def wanted(row: Row) -> bool:
        if options.ipv4 != options.ipv6 and (row.family == 4) != options.ipv4:
            return False
        if not everything and (row.state in _QUIET) != options.listening:
            return False
        return test(row)

    return [row for row in rows if wanted(row)]


def _show_address(address: Address, *, numeric: bool) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    port = str(address.port) if address.port else "*"
    if not numeric:
        with suppress(OSError):
            port = socket.getservbyport(address.port, "tcp")
    return f"{host}:{port}"


def _show_users(users: list[User]) -> str:
    inside = ",".join(f'("{printable(user.name)}",pid={user.pid},fd={user.fd})' for user in users)
    return f"users:({inside})" if users else "-"


def printable(text: str) -> str:
    """Names are chosen by programs; a terminal obeys control characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """Whoever reads us may leave when he has seen enough (`| head`)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes nowhere, and nobody complains


def _rate(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f}{unit}/s"
        value /= 1000
    return f"{value:.1f}GB/s"


def table(rows: list[Row], options: argparse.Namespace) -> list[list[str]]:
    """Cells, a list a line, the heading first."""
    lines = [["State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port", "Path", "Reason"]]
    lines[0] += ["Send", "Receive"] if options.rates else []
    lines[0] += ["Process", "Peer Process"] if options.processes else []
    for row in rows:
        cells = [row.state, str(row.receive_queue), str(row.send_queue),
                 _show_address(row.local, numeric=options.numeric), _show_address(row.peer, numeric=options.numeric),
                 row.path or "-", printable(row.reason) or "-"]
        if options.rates:
            cells += [_rate(row.rates[name]) if name in row.rates else "-" for name in ("tx", "rx")]
        if options.processes:
            cells += [_show_users(row.users), _show_users(row.peer_users)]
        lines.append(cells)
    return lines[1:] if options.no_header else lines


_INFORMATION: Final = {
    "messages_sent": "messages_tx", "messages_received": "messages_rx", "bells_sent": "bells_tx",
    "bells_received": "bells_rx", "parks": "parks", "spins": "spins", "spins_won": "spins_won",
}  # fmt: skip


def information(row: Row) -> str:
    """What the library has counted, as `ss -i` would say it; "" where it has not."""
    known = row.connection
    if known is None:
        return ""
    said = f"shm_sent:{known['bytes_shm_tx']} shm_received:{known['bytes_shm_rx']} tcp:{known['bytes_tcp']}"
    said += "".join(f" {label}:{known[name]}" for label, name in _INFORMATION.items() if name in known)
    if ring := known["ring"]:
        said += f" ring:{ring['bytes']} unread:{ring['rx_queued']} unread_by_peer:{ring['tx_queued']}"
    return said


def summary(rows: list[Row], moment: Moment) -> Iterator[str]:
    """Lines: connections by path and reason, listeners, programs."""
    found = [row for row in rows if row.path]
    paths = Counter(row.path for row in found)
    yield f"Connections: {len(found)} (" + ", ".join(f"{path} {paths[path]}" for path in ("shm", "rdma", "tcp")) + ")"
    reasons = Counter(printable(row.reason) or "?" for row in found if row.path == "tcp")
    for reason, times in reasons.most_common():
        yield f"  tcp {times}: {reason}"
    listeners = sum(row.state == "LISTEN" for row in rows)
    pids = {line["pid"] for document in moment.documents for line in document["processes"]}
    yield f"Listeners: {listeners}; processes: {len(pids)}, under {len(moment.documents)} sdrun"


def _print(lines: list[list[str]]) -> None:
    for line in _aligned(lines):
        print(line)


def _aligned(lines: list[list[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _show(rows: list[Row], options: argparse.Namespace) -> None:
    lines = _aligned(table(rows, options))
    if not options.no_header:
        print(next(lines))
    for row, line in zip(rows, lines, strict=True):
        said = information(row) if options.info else ""
        print(line + (f"{'  ' if options.oneline else chr(10) + chr(9)}{said}" if said else ""))


def _show_hosts(options: argparse.Namespace) -> None:
    links = hosts.look()
    if options.json:
        print(json.dumps({"version": 1, "hosts": links}, indent=1))
    else:
        _print(hosts.table(links)[options.no_header:] or [[]])


def _look(seconds: float | None) -> Moment:
    """With rates over so many seconds, if any."""
    moment = view.look()
    if seconds:
        before = moment
        time.sleep(seconds)
        moment = view.look()
        view.add_rates(before, moment)
    return moment


def _as_json(rows: list[Row], moment: Moment, elsewhere: int) -> str:
    left_out = sum(document["connections_left_out"] for document in moment.documents)
    return json.dumps({"version": 1, "supervisors": len(moment.documents), "connections_left_out": left_out,
                       "in_other_pid_namespaces": elsewhere, "connections": [row.as_json() for row in rows]}, indent=1)


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit status: 0; 2 for a wrong filter."""
    options = parser().parse_args(argv)
    if options.hosts:
        _show_hosts(options)
        return 0
    try:
        test = compile_filter(options.filter)
    except FilterError as error:
        print(f"sdss: {error}", file=sys.stderr)
        return 2
    moment = _look(options.rates)
    everything = options.summary or options.all or speaks_of_states(options.filter)
    rows = _chosen(moment.rows, options, test, everything=everything)
    elsewhere = sum(not document["here"] for document in moment.documents)
    rows.sort(key=lambda row: (row.state not in _QUIET, row.local, row.peer))
    with quiet_pipe():
        if options.json:
            print(_as_json(rows, moment, elsewhere))
        elif options.summary:
            print("\n".join(summary(rows, moment)))
        else:
            _show(rows, options)
    if elsewhere and not options.json:
        print(f"sdss: not shown: {elsewhere} tree(s) in other PID namespaces; ask there", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
