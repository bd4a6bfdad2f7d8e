# SPDX-License-Identifier: Apache-2.0
"""ss's filter language (ss(8)), but for interfaces, marks, control groups and `autobound`, with tests of our own.

    filter  = {("state" | "exclude") NAME} [either]
    either  = both {"or" both}            both = one {["and"] one}          one = "not" one | "(" either ")" | test
    test    = "state" NAME | ("sport"|"dport") [OP] PORT | ("src"|"dst") [=|!=] HOST[/BITS][:PORT]
            | ("path"|"reason"|"program"|"pid") [=|!=] VALUE
    OP      = "=" "==" "eq" "!=" "ne" "neq" ">=" "ge" "geq" "<=" "le" "leq" ">" "gt" "<" "lt"
    PORT    = [:]80 or a service's name;  HOST = [inet:|inet6:] an address, *, or a name that resolves to some

States in front are a set: each `state` adds to it, each `exclude` takes away (from all, if it comes first).
"""

from __future__ import annotations

import fnmatch
import ipaddress
import operator
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from tools.observe.sockets import STATES, Address
from tools.observe.view import Row

Test: TypeAlias = Callable[[Row], bool]

_OPERATORS: Final = {
    "=": operator.eq, "==": operator.eq, "eq": operator.eq, "!=": operator.ne, "ne": operator.ne, "neq": operator.ne,
    ">=": operator.ge, "ge": operator.ge, "geq": operator.ge, "<=": operator.le, "le": operator.le,
    "leq": operator.le, ">": operator.gt, "gt": operator.gt, "<": operator.lt, "lt": operator.lt,
}  # fmt: skip
_OR, _AND, _NOT = ("or", "|", "||"), ("and", "&", "&&"), ("not", "!")
_ALL: Final = set(STATES.values())
_CONNECTED: Final = _ALL - {"LISTEN", "UNCONN"}
_BUCKET: Final = {"SYN-RECV", "TIME-WAIT"}
_STATE_NAMES: Final = {
    "established": {"ESTAB"}, "listening": {"LISTEN"}, "closed": {"UNCONN"}, "close": {"UNCONN"},
    "unconnected": {"UNCONN"}, "syn-rcv": {"SYN-RECV"}, "all": _ALL, "connected": _CONNECTED,
    "synchronized": _CONNECTED - {"SYN-SENT"}, "bucket": _BUCKET, "big": _ALL - _BUCKET,
}  # fmt: skip
_PATHS: Final = ("shm", "rdma", "tcp")
_OURS: Final = ("path", "reason", "program", "pid")


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


def _networks(host: str, text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Of an address, with or without /BITS, or a name."""
    with suppress(ValueError):
        return [ipaddress.ip_network(host, strict=False)]
    try:
        return [ipaddress.ip_network(str(found[4][0])) for found in socket.getaddrinfo(host, None)]
    except (OSError, ValueError):
        raise FilterError(f"{text}: no address") from None


def _place(text: str) -> Callable[[Address], bool]:
    """HOST[/BITS][:PORT]; IPv6 in brackets where a port follows; * for any."""
    host = text.removeprefix("inet:").removeprefix("inet6:")
    colon, port = "", ""
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if colon == "/":
            bits, colon, port = port.partition(":")
            host = f"{host}/{bits}"
    elif host.count(":") == 1:
        host, colon, port = host.partition(":")
    wanted = _port(port) if colon and port not in ("", "*") else None
    networks = None if host in ("", "*") else _networks(host, text)

    def test(address: Address) -> bool:
        if wanted is not None and address.port != wanted:
            return False
        return networks is None or any(ipaddress.ip_address(address.host) in network for network in networks)

    return test


def _states(name: str) -> set[str]:
    states = _STATE_NAMES.get(name.lower(), {name.upper()})
    if not states <= _ALL:
        raise FilterError(f"{name}: no such state")
    return states


def _own(word: str, value: str) -> Test:
    if word == "path":
        if value not in _PATHS:
            raise FilterError(f"{value}: a path is one of {', '.join(_PATHS)}")
        return lambda row: row.path == value
    if word == "reason":
        return lambda row: any(fnmatch.fnmatchcase(reason, value) for reason in row.reason.split("/"))
    if word == "program":
        return lambda row: any(fnmatch.fnmatchcase(user.name, value) for user in row.users)
    if not value.isdecimal():
        raise FilterError(f"{value}: no pid")
    return lambda row: any(user.pid == int(value) for user in row.users)


class _Parser:
    """Recursive descent over words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [word for text in words for word in text.replace("(", " ( ").replace(")", " ) ").split()]
        self._at = 0

    def whole(self) -> Test:
        states = self._state_set()
        result = self._either() if self._peek() else (lambda _row: True)
        if self._at < len(self._words):
            raise FilterError(f"{self._words[self._at]}: not expected here")
        return lambda row: (states is None or row.state in states) and result(row)

    def _state_set(self) -> set[str] | None:
        """Those in front of an expression; None when it does not begin with any."""
        found: set[str] | None = None
        while self._peek() in ("state", "exclude", "excl"):
            adds = self._take("") == "state"
            named = _states(self._take("a state"))
            found = (found or set()) | named if adds else (_ALL if found is None else found) - named
        if found is not None and self._peek() in _AND:
            self._at += 1
        elif found is not None and self._peek() in _OR:
            raise FilterError("states in front of an expression hold for all of it: put them in ( ) for `or`")
        return found

    def _peek(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else ""

    def _take(self, what: str) -> str:
        if not self._peek():
            raise FilterError(f"{what} is missing at the end")
        self._at += 1
        return self._words[self._at - 1]

    def _either(self) -> Test:
        tests = [self._both()]
        while self._peek() in _OR:
            self._at += 1
            tests.append(self._both())
        return lambda row: any(test(row) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._peek() not in ("", *_OR, ")"):
            if self._peek() in _AND:
                self._at += 1
            tests.append(self._one())
        return lambda row: all(test(row) for test in tests)

    def _one(self) -> Test:
        word = self._take("a condition")
        if word in _NOT:
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
            states = _states(self._take("a state"))
            return lambda row: row.state in states
        if word in ("sport", "dport"):
            compare = self._operator(*_OPERATORS)
            port = _port(self._take("a port"))
            return lambda row: bool(compare((row.local if word == "sport" else row.peer).port, port))
        if word in ("src", "dst"):
            same = self._same()
            place = _place(self._take("an address"))
            return lambda row: place(row.local if word == "src" else row.peer) is same
        if word in _OURS:
            same = self._same()
            test = _own(word, self._take(f"a {word}"))
            return lambda row: test(row) is same
        known = ("state", "sport", "dport", "src", "dst", *_OURS)
        raise FilterError(f"{word}: a condition begins with one of {', '.join(known)}")

    def _operator(self, *known: str) -> Callable[[int, int], bool]:
        word = self._peek()
        if word not in known:
            return operator.eq
        self._at += 1
        return _OPERATORS[word]

    def _same(self) -> bool:
        """Whether the operator, if there is one, is not "!="."""
        return self._operator("=", "==", "eq", "!=", "ne", "neq") is operator.eq


def speaks_of_states(words: Sequence[str]) -> bool:
    """Then it is the filter that says whether listeners are shown, as with ss."""
    return bool({"state", "exclude", "excl"} & set(" ".join(words).replace("(", " ").split()))


def compile_filter(words: Sequence[str]) -> Test:
    """A test of rows from the words of a command line; FilterError."""
    return _Parser(words).whole()
