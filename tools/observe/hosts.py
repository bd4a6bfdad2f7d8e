# SPDX-License-Identifier: Apache-2.0
"""Links to other hosts, for sdss and sdstat: what the monitor says of them, and the retries of its device."""

from __future__ import annotations

import os
from typing import Any

from sdlib.wire.messages import Query
from tools import sdctl

_COUNTS = ("unread", "credits", "writes", "sends", "received", "links", "breaks", "held_s", "left", "again", "retries",
           "rnr")
HEADING = ["Host", "Link", "Conns", "Queue", "Unread", "Credits", "Writes", "Sends", "Received", "Links", "Breaks",
           "Held", "Left", "Again", "Retries", "RNR", "Waits for"]


def look(socket_path: str | None = None) -> list[dict[str, Any]]:
    """One entry a host; [] without a monitor, or if it knows no others. `retries`, `rnr`: of the whole device."""
    try:
        monitor = sdctl.ask(Query.STATUS, socket_path or os.environ.get("SOCKSDIRECT_MONITOR")).monitor
    except sdctl.Failed:
        return []
    hosts = monitor.get("hosts") or {}
    counters = (hosts.get("device") or {}).get("counters", {})
    waits = "; ".join(why for why in (hosts.get("deaf"), (hosts.get("rdma") or {}).get("waits")) if why)
    return [_host(peer, hosts, counters) | {"waits": waits} for peer in hosts.get("peers", [])]


def _host(peer: dict[str, Any], hosts: dict[str, Any], counters: dict[str, int]) -> dict[str, Any]:
    port = peer.get("port") or {}
    own = [one for one in hosts.get("connections", []) if one["peer"] == peer["name"]]
    return {
        "host": peer["name"], "link": "rdma" if peer["rdma"] else "tcp" if peer["up"] else "down",
        "connections": len(own), "under_way": port.get("under_way", 0), "depth": port.get("depth", 0),
        "unread": sum(one["unread"] for one in own), "credits": sum(one["credits"] for one in own),
        "writes": port.get("writes", 0), "sends": port.get("sends", 0), "received": port.get("received", 0),
        "links": peer["links"], "breaks": peer["breaks"], "held_s": peer["held_s"],
        "left": peer["left"], "again": peer["again"],
        "retries": sum(count for name, count in counters.items() if "rnr" not in name),
        "rnr": sum(count for name, count in counters.items() if "rnr" in name),
    }  # fmt: skip


def table(hosts: list[dict[str, Any]]) -> list[list[str]]:
    """Cells, a list a line, the heading first."""
    return [HEADING] + [
        [host["host"], host["link"], str(host["connections"]), f"{host['under_way']}/{host['depth']}"]
        + [str(host[name]) for name in _COUNTS] + [host["waits"] or "-"]
        for host in hosts
    ]
