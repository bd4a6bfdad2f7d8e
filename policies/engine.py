# SPDX-License-Identifier: Apache-2.0
"""The only place that decides: which values hold for a program. Pure, no files, no environment.

For every value on its own: --set, else the first layer that says something about it, else the built-in one. A layer
speaks through its first app that matches the program; about `action` also through its `default`, if that app says
nothing or none matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final, cast

from policies.model import KEYS, Action, App, IoUring, Layer, Settings, Upgrade, Values

BUILT_IN: Final[Values] = MappingProxyType(
    {
        "action": "accelerate",
        "reason": "",
        "upgrade": ("after_ops", 8),
        "ring": 256 * 1024,
        "spin_us": 50,
        "io_uring": "deny",
        "patch": True,
    }
)


def matches(app: App, exe: str, uid: int) -> bool:
    """Whether an app is for this program, run by this user."""
    name = exe if "/" in app.program else exe.rpartition("/")[2]
    return fnmatchcase(name, app.program) and app.uid in (None, uid)


def decide(layers: Sequence[Layer], overrides: Values, exe: str, uid: int) -> Settings:
    """The settings of the program at path `exe`; `layers` the most important first."""
    said: dict[str, tuple[object, str]] = {key: (value, "--set") for key, value in overrides.items()}
    for layer in layers:
        for key, answer in _says(layer, exe, uid).items():
            said.setdefault(key, answer)
    for key in KEYS:
        said.setdefault(key, (BUILT_IN[key], "built-in"))
    # A reason belongs to the action that it was given for.
    if said["reason"][1] != said["action"][1]:
        said["reason"] = ("", said["action"][1])
    return _settings({key: value for key, (value, _) in said.items()}, {key: where for key, (_, where) in said.items()})


def _says(layer: Layer, exe: str, uid: int) -> dict[str, tuple[object, str]]:
    """What one layer says about the program, each with its place."""
    app = next((app for app in layer.apps if matches(app, exe, uid)), None)
    said: dict[str, tuple[object, str]] = {}
    if app is not None:
        said = {key: (value, app.where) for key, value in app.values.items()}
    if layer.default is not None:
        said.setdefault("action", (layer.default, layer.default_where))
    return said


def _settings(values: Values, source: Mapping[str, str]) -> Settings:
    """Typed fields of values that the loader has checked."""
    return Settings(
        accelerate=cast(Action, values["action"]) == "accelerate",
        upgrade=cast(Upgrade, values["upgrade"]),
        spin_us=cast(int, values["spin_us"]),
        ring_bytes=cast(int, values["ring"]),
        io_uring=cast(IoUring, values["io_uring"]),
        patch=cast(bool, values["patch"]),
        reason=cast(str, values["reason"]),
        source=MappingProxyType(dict(source)),
    )
