# SPDX-License-Identifier: Apache-2.0
"""`sdrun --learn`: the smallest policy that allows what was seen. Pure.

Nothing is widened: addresses and ports that were seen side by side share a rule only if the rule allows exactly
them. The one exception are ports that the kernel had chosen: the next run gets others, so their rule has the
kernel's whole range.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

from policies.model import Dir, Proto, Rule
from policies.rules import build, shadowed_by

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
RULES_MAX: Final = 256
"""As in schema.json; of a program that needs more, addresses are widened byte by byte."""


class Seen(NamedTuple):
    """One connection, listener (`address` None: nobody came) or datagram. `port`: connected to, or ours."""

    dir: Dir
    proto: Proto
    address: Address | None
    port: int
    any_port: bool = False
    """The kernel had chosen our port."""


def _networks(addresses: Iterable[Address], widened: int) -> list[str]:
    """These addresses as few networks, as patterns write them; `widened` by so many bits (IPv6: four times that)."""
    found = list(addresses)
    four = ipaddress.collapse_addresses(
        ipaddress.IPv4Network((int(a), 32 - widened), strict=False) for a in found if a.version == 4
    )
    six = ipaddress.collapse_addresses(
        ipaddress.IPv6Network((int(a), 128 - 4 * widened), strict=False) for a in found if a.version == 6
    )
    short = [str(net).removesuffix("/32") for net in four]
    return short + [f"[{str(net).removesuffix('/128')}]" for net in six]


def _ranges(ports: Iterable[int]) -> list[str]:
    """Exactly these ports, as few ranges as possible."""
    spans: list[list[int]] = []
    for port in sorted(set(ports)):
        if spans and spans[-1][1] == port - 1:
            spans[-1][1] = port
        else:
            spans.append([port, port])
    return [str(low) if low == high else f"{low}-{high}" for low, high in spans]


def _rules(seen: Iterable[Seen], ephemeral: tuple[int, int], chosen: set[int]) -> list[str]:
    """The rules of one program, one line each. `chosen`: ports on which the kernel had some program listen."""
    by_port: dict[tuple[Dir, Proto, str], set[Address]] = {}
    nobody: set[tuple[Dir, Proto, str]] = set()
    for one in seen:
        floating = one.any_port or (one.dir == "out" and one.port in chosen)
        key = (one.dir, one.proto, f"{ephemeral[0]}-{ephemeral[1]}" if floating else str(one.port))
        if one.address is None:
            nobody.add(key)
        else:
            by_port.setdefault(key, set()).add(one.address)
    # A listener that nobody came to has to be let listen: by a peer of loopback, which is the least.
    for key in nobody - set(by_port):
        by_port[key] = {ipaddress.ip_address("127.0.0.1")}
    lines: list[str] = []
    for widened in range(0, 33, 8):
        lines = _reachable(_lines(by_port, widened))
        if len(lines) <= RULES_MAX:
            break
    return lines


def _lines(by_port: Mapping[tuple[Dir, Proto, str], set[Address]], widened: int) -> list[tuple[Dir, Proto, str]]:
    """Of every direction and protocol what may be reached, the ranges of ports that the kernel chooses from first."""
    merged: dict[tuple[Dir, Proto, str], list[int]] = {}
    lines: list[tuple[Dir, Proto, str]] = []
    for (dir_, proto, ports), addresses in by_port.items():
        for network in _networks(addresses, widened):
            if ports.isdigit():
                merged.setdefault((dir_, proto, network), []).append(int(ports))
            else:
                lines.append((dir_, proto, f"{network}:{ports}"))
    exact = [
        (dir_, proto, f"{network}:{span}")
        for (dir_, proto, network), all_ports in merged.items()
        for span in _ranges(all_ports)
    ]
    return sorted(lines) + sorted(exact)


def _reachable(lines: list[tuple[Dir, Proto, str]]) -> list[str]:
    """As rules of a file, without those for which nothing is left."""
    kept: list[Rule] = []
    written: list[str] = []
    for dir_, proto, where in lines[: 4 * RULES_MAX]:
        action = "accelerate" if proto == "tcp" else "kernel"
        kept.append(build(dir_, proto, where, action))
        if shadowed_by(kept, len(kept) - 1) is None:
            written.append(f"{{dir: {dir_}, {proto}: {json.dumps(where)}, action: {action}}}")
        else:
            kept.pop()
    return written


def write(observed: Mapping[str, Iterable[Seen]], ephemeral: tuple[int, int], command: str) -> str:
    """The text of the policy file. `observed`: what each program (by path) did."""
    lines = [
        "# yaml-language-server: $schema=schema.json",
        f"# Learned by `sdrun --learn` from one run of {json.dumps(command)}: it allows exactly what was seen.",
        "version: 1", "default: deny", "apps:",
    ]  # fmt: skip
    chosen = {one.port for seen in observed.values() for one in seen if one.any_port}
    for exe in sorted(observed):
        lines.append(f"  - match: {{program: {json.dumps(_literal(exe))}}}")
        rules = _rules(observed[exe], ephemeral, chosen)
        lines.append("    rules:" if rules else "    rules: []")
        lines += [f"      - {rule}" for rule in rules]
    if not observed:
        lines[-1] = "apps: []"
    return "\n".join(lines) + "\n"


def _literal(path: str) -> str:
    """A glob that matches this path only."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)
