# SPDX-License-Identifier: Apache-2.0
"""`sdss`: ss for the connections of programs under sdrun, accelerated or not."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from contextlib import suppress

from tools.observe import hosts, view
from tools.observe.filters import FilterError, Test, compile_filter
from tools.observe.sockets import Address, User
from tools.observe.view import Row

_QUIET = ("LISTEN", "UNCONN")


def parser() -> argparse.ArgumentParser:
    """All options."""
    result = argparse.ArgumentParser(
        prog="sdss",
        description="ss for the TCP connections of programs under sdrun: what carries each (shm, rdma, tcp), and why "
        "those on tcp are there. Root sees those of all users.",
        epilog="FILTER as in ss: state, sport, dport, src, dst, and, or, not, ( ); besides: path shm|rdma|tcp. "
        "Example: sdss -p 'path tcp and dport = :6379'. Bytes in the rings are part of Recv-Q and Send-Q.",
    )
    result.add_argument("-a", "--all", action="store_true", help="connections and listeners")
    result.add_argument("-l", "--listening", action="store_true", help="listeners only")
    result.add_argument("-t", "--tcp", action="store_true", help="TCP (there is nothing else)")
    result.add_argument("-n", "--numeric", action="store_true", help="no names of services")
    result.add_argument("-p", "--processes", action="store_true", help="programs and pids, of both ends")
    result.add_argument("-4", "--ipv4", action="store_true", help="IPv4 only")
    result.add_argument("-6", "--ipv6", action="store_true", help="IPv6 only")
    result.add_argument("-H", "--no-header", action="store_true", help="no first line")
    result.add_argument("--rates", type=float, metavar="SECONDS", help="look twice, so far apart, and show bytes/s")
    result.add_argument("--hosts", action="store_true",
                        help="instead, links to other hosts: requests under way, bytes unread over there, credits "
                        "(bytes that may be sent), retries and receivers that were not ready (RNR) of the RDMA device")
    result.add_argument("--json", action="store_true", help="one JSON document")
    result.add_argument("filter", nargs="*", metavar="FILTER", help="which of them")
    return result


def _chosen(rows: list[Row], options: argparse.Namespace, test: Test, *, has_state: bool) -> list[Row]:
    def wanted(row: Row) -> bool:
        if options.ipv4 != options.ipv6 and (row.family == 4) != options.ipv4:
            return False
        if not (options.all or has_state) and (row.state in _QUIET) != options.listening:
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
            cells += [_rate(row.rates.get(name, 0.0)) if row.rates else "-" for name in ("shm_tx", "shm_rx")]
        if options.processes:
            cells += [_show_users(row.users), _show_users(row.peer_users)]
        lines.append(cells)
    return lines[1:] if options.no_header else lines


def _print(lines: list[list[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit status: 0; 2 for a wrong filter."""
    options = parser().parse_args(argv)
    if options.hosts:
        links = hosts.look()
        if options.json:
            print(json.dumps({"version": 1, "hosts": links}, indent=1))
        else:
            _print(hosts.table(links)[options.no_header:] or [[]])
        return 0
    try:
        test = compile_filter(options.filter)
    except FilterError as error:
        print(f"sdss: {error}", file=sys.stderr)
        return 2
    moment = view.look()
    if options.rates:
        before = moment
        time.sleep(options.rates)
        moment = view.look()
        view.add_rates(before, moment)
    words = " ".join(options.filter).replace("(", " ").split()
    rows = _chosen(moment.rows, options, test, has_state="state" in words)
    elsewhere = sum(not document["here"] for document in moment.documents)
    rows.sort(key=lambda row: (row.state not in _QUIET, row.local, row.peer))
    if options.json:
        left_out = sum(document["connections_left_out"] for document in moment.documents)
        print(json.dumps({"version": 1, "supervisors": len(moment.documents), "connections_left_out": left_out,
                          "in_other_pid_namespaces": elsewhere,
                          "connections": [row.as_json() for row in rows]}, indent=1))
    else:
        _print(table(rows, options))
        if elsewhere:
            print(f"sdss: not shown: {elsewhere} tree(s) in other PID namespaces; ask there", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
