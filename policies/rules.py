# SPDX-License-Identifier: Apache-2.0
"""Rules: how they are written, which connections they are about, and which of them cannot be meant as they stand.

    {dir: out, tcp: "10.0.0.0/8:*", action: accelerate, transport: [shm]}      in a file
    out tcp 10.0.0.0/8:* accelerate transport=shm                              the same after `sdrun -r`

Pure; a parser raises ValueError whose text is what would be right.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

from policies.model import Action, Box, Dir, PolicyError, Proto, Rule
from sdlib.records import cast

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ipaddress
    from typing import Final

PATTERN_RIGHT: Final = 'ADDRESS:PORTS such as "*:25", "10.0.0.0/8:80-443" or "[fe80::/10]:*"'
ERRNOS: Final = ("EACCES", "EPERM", "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "ETIMEDOUT", "EADDRNOTAVAIL")
TRANSPORTS: Final = ("shm", "rdma")
ACTIONS: Final = ("accelerate", "kernel", "deny")
_LINE_RIGHT: Final = 'DIR PROTO ADDRESS:PORTS ACTION, such as "out tcp *:25 deny errno=EACCES"'
_PORT_MAX: Final = 65535
FAMILY_MAX: Final = {4: (1 << 32) - 1, 6: (1 << 128) - 1}
_FRAGMENTS_MAX: Final = 128
_MAPPED: Final = 0xFFFF << 32


def pattern(text: str) -> tuple[Box, ...]:
    """The boxes of ADDRESS:PORTS."""
    host, colon, ports = text.rpartition(":")
    if not colon or not host:
        raise ValueError(PATTERN_RIGHT)
    first, last = _ports(ports)
    if host == "*":
        return tuple(Box(family, 0, high, first, last) for family, high in FAMILY_MAX.items())
    if host.startswith("[") != host.endswith("]") or ((":" in host) != host.startswith("[")):
        raise ValueError("an IPv6 address in brackets, such as [::1]:80")
    network = _network(host.strip("[]"))
    low, high = int(network.network_address), int(network.broadcast_address)
    family = network.version
    if family == 6 and low >> 32 == 0xFFFF:
        family, low, high = 4, low & 0xFFFFFFFF, high & 0xFFFFFFFF
    return (Box(family, low, high, first, last),)


def _network(host: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    import ipaddress  # most policies have no address, and a program waits

    try:
        wide = ipaddress.ip_network(host, strict=False)
    except ValueError:
        raise ValueError(PATTERN_RIGHT + "; names are not looked up") from None
    if "%" in host or int(wide.network_address) != int(ipaddress.ip_address(host.partition("/")[0])):
        raise ValueError(f"{wide}, or an address without a prefix length")
    return wide


def _ports(text: str) -> tuple[int, int]:
    if text == "*":
        return 0, _PORT_MAX
    first, dash, last = text.partition("-")
    for part in (first, last) if dash else (first,):
        if not (part.isascii() and part.isdigit() and len(part) <= 5 and int(part) <= _PORT_MAX):
            raise ValueError("a port, a range such as 80-443, or * behind the last colon")
    low, high = int(first), int(last if dash else first)
    if low > high:
        raise ValueError(f"the lower port first: {high}-{low}")
    return low, high


def build(
    dir_: str,
    proto: str,
    where_to: str,
    action: str,
    errno_name: str = "EACCES",
    transport: Sequence[str] = TRANSPORTS,
    where: str = "",
) -> Rule:
    """A rule of checked words; ValueError for a wrong pattern or a combination that means nothing."""
    if proto == "udp" and action == "accelerate":
        raise ValueError("kernel or deny: UDP is never accelerated")
    text = f"{dir_} {proto} {where_to} {action}"
    if action == "deny" and errno_name != "EACCES":
        text += f" errno={errno_name}"
    if tuple(transport) != TRANSPORTS:
        text += f" transport={','.join(transport)}"
    return Rule(
        cast(Dir, dir_),
        cast(Proto, proto),
        pattern(where_to),
        cast(Action, action),
        getattr(errno, errno_name),
        tuple(transport),
        text,
        where,
    )


def parse_line(line: str) -> Rule:
    """The one-line form; ValueError."""
    words = line.split()
    if len(words) < 4 or words[0] not in ("in", "out") or words[1] not in ("tcp", "udp") or words[3] not in ACTIONS:
        raise ValueError(_LINE_RIGHT)
    errno_name = "EACCES"
    transport: tuple[str, ...] = TRANSPORTS
    for word in words[4:]:
        key, _, value = word.partition("=")
        if key == "errno" and value in ERRNOS and words[3] == "deny":
            errno_name = value
        elif key == "transport" and words[3] == "accelerate":
            transport = tuple(value.split(","))
            if not set(transport) <= set(TRANSPORTS) or len(set(transport)) != len(transport):
                raise ValueError("transport=shm, transport=rdma or transport=shm,rdma")
        else:
            known = ", ".join(ERRNOS)
            raise ValueError(f"errno=NAME behind deny (one of {known}), transport=shm,rdma behind accelerate")
    return build(words[0], words[1], words[2], words[3], errno_name, transport)


def parse_lines(lines: Iterable[str], origin: str) -> tuple[Rule, ...]:
    """All rules of `-r` or the environment, with `origin` as their place; raises PolicyError."""
    found: list[Rule] = []
    for line in lines:
        shown = f"{origin} `{line[:80]}`"
        try:
            rule = parse_line(line)
        except ValueError as right:
            raise PolicyError(f"{shown}: wrong rule; must be {right}") from None
        found.append(Rule(**{**vars(rule), "where": origin}))
        refused = refusal(found, len(found) - 1)
        if refused is not None:
            raise PolicyError(f"{shown}: {'; '.join(refused)}")
    return tuple(found)


# --------------------------------------------------------------------- coverage


def contains(boxes: Iterable[Box], family: int, address: int, port: int) -> bool:
    """Is the point in one of the boxes?"""
    return any(
        box.family == family and box.low <= address <= box.high and box.first <= port <= box.last for box in boxes
    )


def point(packed: bytes) -> tuple[int, int]:
    """(family, address) of 4 or 16 bytes; an IPv4-mapped address is the IPv4 one that the kernel uses."""
    value = int.from_bytes(packed, "big")
    if len(packed) == 4:
        return 4, value
    return (4, value & 0xFFFFFFFF) if value & ~0xFFFFFFFF == _MAPPED else (6, value)


def intersect(one: Box, other: Box) -> Box | None:
    """What both have in common."""
    if one.family != other.family:
        return None
    low, high = max(one.low, other.low), min(one.high, other.high)
    first, last = max(one.first, other.first), min(one.last, other.last)
    return Box(one.family, low, high, first, last) if low <= high and first <= last else None


def _without(box: Box, hole: Box) -> list[Box]:
    """The parts of `box` outside of `hole`."""
    common = intersect(box, hole)
    if common is None:
        return [box]
    rest = []
    if box.low < common.low:
        rest.append(box._replace(high=common.low - 1))
    if common.high < box.high:
        rest.append(box._replace(low=common.high + 1))
    middle = box._replace(low=common.low, high=common.high)
    if box.first < common.first:
        rest.append(middle._replace(last=common.first - 1))
    if common.last < box.last:
        rest.append(middle._replace(first=common.last + 1))
    return rest


def shadowed_by(rules: Sequence[Rule], index: int) -> int | None:
    """The earlier rule after which nothing is left for rule `index`; None if something is.

    The work is bounded: a rule that is cut into very many pieces counts as reachable.
    """
    rule = rules[index]
    rest = list(rule.boxes)
    for position, earlier in enumerate(rules[:index]):
        if (earlier.dir, earlier.proto) != (rule.dir, rule.proto):
            continue
        for hole in earlier.boxes:
            rest = [piece for box in rest for piece in _without(box, hole)]
        if not rest:
            return position
        if len(rest) > _FRAGMENTS_MAX:
            return None
    return None


def crossing(rules: Sequence[Rule], index: int) -> tuple[int, str, str] | None:
    """The first earlier rule that rule `index` overlaps so that only their order tells what is meant.

    Its index, the ports that both speak of, and those that only the later one does. Ranges that nest are how exceptions
    are written: `*:53` behind `10.0.0.0/8:*` is about port 53 of everybody else. Ports of which neither range contains
    the other, for addresses in common, are no exception: with `*:80-443` first, `*:400-500` means 444-500 and does not
    say so. Addresses always nest or are apart, since they are prefixes.
    """
    for position, earlier in enumerate(rules[:index]):
        if not _differ(earlier, rules[index]):
            continue
        for one in earlier.boxes:
            for own in rules[index].boxes:
                common = intersect(one, own)
                ports = (common.first, common.last) if common is not None else None
                if ports is not None and ports not in ((one.first, one.last), (own.first, own.last)):
                    rest = (one.last + 1, own.last) if own.last > one.last else (own.first, one.first - 1)
                    return position, _span(*ports), _span(*rest)
    return None


def _span(first: int, last: int) -> str:
    return f"{first}-{last}" if first < last else f"{first}"


def overlaps(rules: Sequence[Rule]) -> list[tuple[int, int]]:
    """(earlier, later) pairs that decide differently about something in common: right, but worth a note."""
    return [
        (one, other)
        for other in range(len(rules)) for one in range(other)
        if _differ(rules[one], rules[other])
        and any(intersect(a, b) for a in rules[one].boxes for b in rules[other].boxes)
    ]  # fmt: skip


def _differ(one: Rule, other: Rule) -> bool:
    """Are they about the same kind of connection, and decide differently?"""
    same = (one.dir, one.proto) == (other.dir, other.proto)
    return same and (one.action, one.errno, one.transport) != (other.action, other.errno, other.transport)


def refusal(rules: Sequence[Rule], index: int) -> tuple[str, str] | None:
    """Why rule `index` cannot stay as it is, behind "this rule"; and what would be right."""
    before = shadowed_by(rules, index)
    if before is not None:
        return f"never applies, since {_named(rules[before])} comes before", "remove it or put it first"
    found = crossing(rules, index)
    if found is not None:
        before, both, rest = found
        wrong = f"overlaps {_named(rules[before])}, which decides differently about ports {both} of both"
        return wrong, f"ports {rest}, or ranges of which one contains the other"
    return None


def _named(rule: Rule) -> str:
    line = rule.where.rpartition(":")[2]
    return f"`{rule.text}` in line {line}" if line.isdigit() else f"`{rule.text}`"


def glob_covers(wide: str, narrow: str) -> bool:
    """Does glob `wide` certainly match whatever `narrow` matches? (False: not certain.)"""
    if wide == narrow:
        return True
    if ("/" in wide) != ("/" in narrow):
        return False
    prefix = wide.removesuffix("*")
    return wide.endswith("*") and not set(prefix) & set("*?[") and narrow.startswith(prefix)
