# SPDX-License-Identifier: Apache-2.0
"""The simple part of ss's filter language, and `path`.

    filter  = both {"or" both}            both = one {["and"] one}          one = "not" one | "(" filter ")" | test
    test    = "state" NAME | "path" shm|rdma|tcp | ("sport"|"dport") OP PORT | ("src"|"dst") ADDRESS[/BITS][:PORT]
    OP      = "=" "==" "eq" "!=" "ne" ">=" "ge" "<=" "le" ">" "gt" "<" "lt";  PORT = [:]80 or a service's name
"""

from __future__ import annotations

import ipaddress
import operator
import socket
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tools.observe.sockets import STATES, Address
from tools.observe.view import Row

Test: TypeAlias = Callable[[Row], bool]

_OPERATORS: Final = {
    "=": operator.eq, "==": operator.eq, "eq": operator.eq, "!=": operator.ne, "ne": operator.ne,
    ">=": operator.ge, "ge": operator.ge, "<=": operator.le, "le": operator.le,
    ">": operator.gt, "gt": operator.gt, "<": operator.lt, "lt": operator.lt,
}  # fmt: skip
_STATE_NAMES: Final = {
    "established": {"ESTAB"}, "listening": {"LISTEN"}, "closed": {"UNCONN"}, "all": set(STATES.values()),
    "connected": set(STATES.values()) - {"LISTEN", "UNCONN"},
}  # fmt: skip
_PATHS: Final = ("shm", "rdma", "tcp")


class FilterError(Exception):
    """The filter cannot be understood; str() is one line."""


def _port(text: str) -> int:
    name = text.removeprefix(":")
    try:
        number = int(name) if name.isdecimal() else socket.getservbyname(name, "tcp")
    except OSError:
        raise FilterError(f"{text}: no such port") from None
    if number > 0xFFFF:
        raise FilterError(f"{text}: no such port")
    return number


def _place(text: str) -> Callable[[Address], bool]:
    """ADDRESS[/BITS][:PORT]; IPv6 in brackets where a port follows; * for any."""
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    wanted = _port(port) if colon and port != "*" else None
    try:
        network = None if host in ("", "*") else ipaddress.ip_network(host, strict=False)
    except ValueError:
        raise FilterError(f"{text}: no address") from None

    def test(address: Address) -> bool:
        if wanted is not None and address.port != wanted:
            return False
        return network is None or ipaddress.ip_address(address.host) in network

    return test


class _Parser:
    """Recursive descent over words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [word for text in words for word in text.replace("(", " ( ").replace(")", " ) ").split()]
        self._at = 0

    def whole(self) -> Test:
        result = self._either()
        if self._at < len(self._words):
            raise FilterError(f"{self._words[self._at]}: not expected here")
        return result

    def _peek(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else ""

    def _take(self, what: str) -> str:
        if not self._peek():
            raise FilterError(f"{what} is missing at the end")
        self._at += 1
        return self._words[self._at - 1]

    def _either(self) -> Test:
        tests = [self._both()]
        while self._peek() in ("or", "|", "||"):
            self._at += 1
            tests.append(self._both())
        return lambda row: any(test(row) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._peek() not in ("", "or", "|", "||", ")"):
            if self._peek() in ("and", "&", "&&"):
                self._at += 1
            tests.append(self._one())
        return lambda row: all(test(row) for test in tests)

    def _one(self) -> Test:
        word = self._take("a condition")
        if word in ("not", "!"):
            inner = self._one()
            return lambda row: not inner(row)
        if word == "(":
            inside = self._either()
            if self._take(")") != ")":
                raise FilterError("( without )")
            return inside
        return self._test(word)

    def _test(self, word: str) -> Test:
        if word == "state":
            name = self._take("a state")
            states = _STATE_NAMES.get(name.lower(), {name.upper()})
            if not states <= set(STATES.values()):
                raise FilterError(f"{name}: no such state")
            return lambda row: row.state in states
        if word == "path":
            path = self._take("a path")
            if path not in _PATHS:
                raise FilterError(f"{path}: a path is one of {', '.join(_PATHS)}")
            return lambda row: row.path == path
        if word in ("sport", "dport"):
            return self._port_test(word)
        if word in ("src", "dst"):
            place = _place(self._take("an address"))
            return lambda row: place(row.local if word == "src" else row.peer)
        raise FilterError(f"{word}: a condition begins with state, path, sport, dport, src or dst")

    def _port_test(self, word: str) -> Test:
        compare = _OPERATORS.get(self._peek())
        if compare is not None:
            self._at += 1
        compare = compare or operator.eq
        port = _port(self._take("a port"))
        return lambda row: bool(compare((row.local if word == "sport" else row.peer).port, port))


def compile_filter(words: Sequence[str]) -> Test:
    """A test of rows from the words of a command line; FilterError."""
    return _Parser(words).whole() if words else lambda row: True
