# SPDX-License-Identifier: Apache-2.0
"""The report for people, on standard error."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def show(report: dict[str, Any], before: dict[str, Any] | None = None) -> None:
    """Print it. `before`: what was printed when the program was about to end; it may have been killed even then."""
    if before is not None and {**before, "exit_status": report["exit_status"]} == report:
        print(f"sdrun: exit status {report['exit_status']} after all", file=sys.stderr)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    table = Table(title=f"sdrun: exit status {report['exit_status']}", title_justify="left")
    for heading in ("pid", "program", "injected", "sites patched", "still trapping"):
        table.add_column(heading)
    for line in report["processes"]:
        injected = "yes" if line["injected"] else f"no: {line['reason']}"
        sites = (str(line["sites_patched"]), str(line["sites_trapping"])) if line["injected"] else ("-", "-")
        table.add_row(str(line["pid"]), line["exe"], injected, *sites)
    console.print(table)
    ends, calls, size = report["connections"], report["calls"], report["bytes"]
    carried = f"by shared memory {ends['shm']}, RDMA {ends['rdma']}, TCP {ends['tcp']}"
    console.print(f"ends of connections: {ends['total']}; {carried}")
    for name, number in sorted(ends["tcp_reasons"].items(), key=lambda item: -item[1]):
        console.print(f"  on TCP: {number} {name}")
    for name, number in sorted(ends["moved_back"].items(), key=lambda item: -item[1]):
        console.print(f"  moved back to TCP: {number} {name}")
    console.print(f"calls on them: {calls['library']} answered in the library, {calls['kernel']} reached the kernel")
    console.print(f"bytes: shared memory {size['shm']}, TCP {size['tcp']}")
    for line in report["denied"]:
        console.print(f"denied: {line['times']} x {line['what']} of {line['exe']} ({line['rule']})", markup=False)
    if "error" in report:
        console.print(f"incomplete: {report['error']}", markup=False)
    if report["counters"]["faults_inside"]:
        console.print(f"calls that ended in a mistake of the library (EFAULT): {report['counters']['faults_inside']}")
    if report["supervisor_errors"]:
        console.print(f"errors inside sdrun (see the system log): {report['supervisor_errors']}")
