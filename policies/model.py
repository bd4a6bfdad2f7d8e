# SPDX-License-Identifier: Apache-2.0
"""What a policy says, as plain values: nothing here reads a file or decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

Upgrade: TypeAlias = Literal["never", "eager"] | tuple[Literal["after_ops", "after_bytes"], int]
Action: TypeAlias = Literal["accelerate", "kernel"]
IoUring: TypeAlias = Literal["deny", "allow"]
Values: TypeAlias = Mapping[str, object]
"""Parsed values by their names in `KEYS`."""

KEYS: Final = ("action", "reason", "upgrade", "ring", "spin_us", "io_uring", "patch")


class PolicyError(Exception):
    """A person's mistake; str() is one line: where, what is wrong, what would be right."""

    def __init__(self, line: str) -> None:
        """Control characters (of file names, say) would make it more than one line."""
        super().__init__("".join(char if char.isprintable() else "?" for char in line))


@dataclass(frozen=True)
class App:
    """One entry of `apps`: whom it is for and what it says. `where` is file:line."""

    program: str
    uid: int | None
    values: Values
    where: str


@dataclass(frozen=True)
class Layer:
    """One policy file."""

    name: str
    default: Action | None
    default_where: str
    apps: tuple[App, ...]


@dataclass(frozen=True)
class Policy:
    """All layers that a person gave, the most important first; `packaged` adds those that come with the project."""

    layers: tuple[Layer, ...] = ()
    packaged: bool = True


@dataclass(frozen=True)
class Settings:
    """What holds for one program. `source` says for each value (by its name in the policy file) who said so."""

    accelerate: bool
    upgrade: Upgrade
    spin_us: int
    ring_bytes: int
    io_uring: IoUring
    patch: bool
    reason: str = ""
    source: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
