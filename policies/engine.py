# SPDX-License-Identifier: Apache-2.0
"""The only place that decides: which values hold for a program. Pure, no files, no environment.

For every value on its own: the overrides (command line, then environment), else the first layer that says something
about it, else the built-in one. A layer speaks through its first app that matches the program; about `action` also
through its `default`, if that app says nothing or none matches.

Rules of all layers follow each other, the most important layer's first, and end where a layer has an action: that is
what holds for everything its own rules leave open, so nothing behind it is ever asked.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from policies.model import (
    FOR_ALL,
    KEYS,
    Action,
    App,
    Dir,
    IoUring,
    Layer,
    Override,
    Proto,
    Rule,
    Settings,
    Upgrade,
    Values,
    Verdict,
)
from policies.rules import FAMILY_MAX, contains, point
from sdlib.records import cast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

BUILT_IN: Final[Values] = MappingProxyType(
    {
        "action": "accelerate",
        "reason": "",
        "upgrade": ("after_ops", 8),
        "ring": 4 << 20,
        "total": 4 << 30,
        "connections": 10_000,
        "spin_us": 50,
        "idle_s": 30,
        "io_uring": "deny",
        "strict": False,
        "patch": True,
        "without": (),
    }
)
_DELETED: Final = " (deleted)"
_ANY_TRANSPORT: Final = ("shm", "rdma")


def matches(app: App, exe: str, uid: int) -> bool:
    """Whether an app is for this program, run by this user."""
    exe = exe.removesuffix(_DELETED)  # how /proc names a file that was removed since
    name = exe if "/" in app.program else exe.rpartition("/")[2]
    return _fits(name, app.program) and app.uid in (None, uid)


def _fits(name: str, pattern: str) -> bool:
    """As fnmatchcase, which makes an expression of the pattern; most are a name or a beginning."""
    start = pattern.removesuffix("*")
    if not set(start) & set("*?["):
        return name == pattern if start == pattern else name.startswith(start)
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


def decide(layers: Sequence[Layer], overrides: Values | Sequence[Override], exe: str, uid: int) -> Settings:
    """The settings of the program at path `exe`; `layers` and `overrides` the most important first."""
    if isinstance(overrides, Mapping):
        overrides = (Override("--set", overrides),)
    said: dict[str, tuple[object, str]] = {}
    rules: list[Rule] = []
    for override in overrides:
        own = {key: (value, override.name) for key, value in override.values.items()}
        _take(said, rules, own, override.rules)
    for layer in layers:
        app = next((app for app in layer.apps if matches(app, exe, uid)), None)
        _take(said, rules, _says(layer, app), app.rules if app is not None else ())
    for key in KEYS:
        said.setdefault(key, (BUILT_IN[key], "built-in"))
    # A reason belongs to the action that it was given for.
    if said["reason"][1] != said["action"][1]:
        said["reason"] = ("", said["action"][1])
    values = {key: value for key, (value, _) in said.items()}
    sources = {key: where for key, (_, where) in said.items()}
    by_default = {layer.default_where for layer in layers if layer.default is not None} | {"built-in", *FOR_ALL}
    return _settings(values, sources, tuple(rules), own=sources["action"] not in by_default)


def _take(said: dict[str, tuple[object, str]], rules: list[Rule], own: Mapping[str, tuple[object, str]],
          own_rules: tuple[Rule, ...]) -> None:
    """Add what one layer says to what the more important ones have said."""
    if "action" not in said:
        rules.extend(own_rules)
    for key, answer in own.items():
        said.setdefault(key, answer)


def _says(layer: Layer, app: App | None) -> dict[str, tuple[object, str]]:
    """What one layer says about the program through the app that matches it, each with its place."""
    said: dict[str, tuple[object, str]] = {}
    if app is not None:
        said = {key: (value, app.where) for key, value in app.values.items()}
    if layer.default is not None:
        said.setdefault("action", (layer.default, layer.default_where))
    return said


def _settings(values: Values, source: Mapping[str, str], rules: tuple[Rule, ...], *, own: bool) -> Settings:
    """Typed fields of values that the loader has checked."""
    action = cast(Action, values["action"])
    return Settings(
        accelerate=action == "accelerate" or any(rule.action == "accelerate" for rule in rules),
        upgrade=cast(Upgrade, values["upgrade"]),
        spin_us=cast(int, values["spin_us"]),
        ring_bytes=cast(int, values["ring"]),
        io_uring=cast(IoUring, values["io_uring"]),
        patch=cast(bool, values["patch"]),
        strict=cast(bool, values["strict"]),
        without=cast("tuple[str, ...]", values["without"]),
        reason=cast(str, values["reason"]),
        source=MappingProxyType(dict(source)),
        total_bytes=cast(int, values["total"]),
        connections=cast(int, values["connections"]),
        idle_s=cast(int, values["idle_s"]),
        action=action,
        rules=rules,
        action_is_own=own,
    )


def judge(settings: Settings, dir_: Dir, proto: Proto, address: bytes, port: int) -> Verdict:
    """What holds for one connection: `address` is the peer's (4 or 16 bytes), `port` the one connected to.

    The first rule that speaks of it, else the program's action.
    """
    family, value = point(address)
    for rule in settings.rules:
        if rule.dir == dir_ and rule.proto == proto and contains(rule.boxes, family, value, port):
            return Verdict(rule.action, rule.errno, rule.transport, f"{rule.where}: {rule.text}")
    return Verdict(settings.action, errno.EACCES, _ANY_TRANSPORT, settings.source.get("action", ""))


def judge_port(settings: Settings, proto: Proto, port: int) -> Verdict:
    """May anybody at all come in at local `port`? `deny` only if every peer of every family would be denied."""
    open_ = {4, 6}
    refused: Rule | None = None
    for rule in settings.rules:
        if rule.dir != "in" or rule.proto != proto:
            continue
        here = [box for box in rule.boxes if box.family in open_ and box.first <= port <= box.last]
        if here and rule.action != "deny":
            return Verdict(rule.action, rule.errno, rule.transport, f"{rule.where}: {rule.text}")
        if here:
            refused = refused or rule
        open_ -= {box.family for box in here if (box.low, box.high) == (0, FAMILY_MAX[box.family])}
        if not open_:
            break
    if (open_ and settings.action != "deny") or refused is None:
        return Verdict(settings.action, errno.EACCES, _ANY_TRANSPORT, settings.source.get("action", ""))
    return Verdict("deny", refused.errno, _ANY_TRANSPORT, f"{refused.where}: {refused.text}")
