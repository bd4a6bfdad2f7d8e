# SPDX-License-Identifier: Apache-2.0
"""What a policy says, as plain values: nothing here reads a file or decides."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType

from sdlib.records import NamedTuple, dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal, TypeAlias

    Upgrade: TypeAlias = Literal["never", "eager"] | tuple[Literal["after_ops", "after_bytes"], int]
    Action: TypeAlias = Literal["accelerate", "kernel", "deny"]
    Dir: TypeAlias = Literal["in", "out"]
    Proto: TypeAlias = Literal["tcp", "udp"]
    IoUring: TypeAlias = Literal["deny", "allow"]
else:
    Upgrade = Action = Dir = Proto = IoUring = object

Values = Mapping[str, object]
"""Parsed values by their names in `KEYS`."""

KEYS: Final = (
    "action", "reason", "upgrade", "ring", "total", "connections", "spin_us", "idle_s", "io_uring", "strict", "patch",
    "without",
)  # fmt: skip

WITHOUT: Final = ("short", "tokens", "yield", "window", "arming", "batching", "past", "nap")
"""Techniques of the library that can be switched off, to measure what each is worth: enum sd_without."""


FOR_ALL: Final = ("-r", "--set", "SDRUN_RULES", "SDRUN_SET")
"""Sources that speak about every program."""


class PolicyError(Exception):
    """A person's mistake; str() is one line: where, what is wrong, what would be right."""

    def __init__(self, line: str) -> None:
        """Control characters (of file names, say) would make it more than one line."""
        super().__init__("".join(char if char.isprintable() else "?" for char in line))


class Box(NamedTuple):
    """Addresses `low`..`high` of one family (4 or 6; IPv4-mapped ones count as 4), ports `first`..`last`."""

    family: int
    low: int
    high: int
    first: int
    last: int


@dataclass(frozen=True)
class Rule:
    """One line of `rules`. `dir` out: the address and port connected to; in: the peer's address, our port."""

    dir: Dir
    proto: Proto
    boxes: tuple[Box, ...]
    action: Action
    errno: int = errno.EACCES
    transport: tuple[str, ...] = ("shm", "rdma")
    text: str = ""
    where: str = ""


@dataclass(frozen=True)
class App:
    """One entry of `apps`: whom it is for and what it says. `where` is file:line."""

    program: str
    uid: int | None
    values: Values
    where: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One policy file."""

    name: str
    default: Action | None
    default_where: str
    apps: tuple[App, ...]


@dataclass(frozen=True)
class Override:
    """What the command line or the environment says, for every program. `name` is where."""

    name: str
    values: Values = field(default_factory=lambda: MappingProxyType({}))
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Policy:
    """All layers that a person gave, the most important first; `packaged` adds those that come with the project."""

    layers: tuple[Layer, ...] = ()
    packaged: bool = True
    overrides: tuple[Override, ...] = ()
    """Of the environment; the command line's are given to `policies.effective`."""


class Verdict(NamedTuple):
    """What holds for one connection, and who said so."""

    action: Action
    errno: int
    transport: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Settings:
    """What holds for one program. `source` says for each value (by its name in the policy file) who said so."""

    accelerate: bool
    """Some connection of it may be accelerated: the program gets the library."""
    upgrade: Upgrade
    spin_us: int
    ring_bytes: int
    io_uring: IoUring
    patch: bool
    reason: str = ""
    source: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    total_bytes: int = 4 << 30
    connections: int = 10_000
    idle_s: int = 30
    """Seconds after which the memory of an idle connection's rings is given back; 0: never."""
    without: tuple[str, ...] = ()
    """Of `WITHOUT`."""
    action: Action = "accelerate"
    """For what no rule speaks about."""
    rules: tuple[Rule, ...] = ()
    strict: bool = False
    """Of the program that a tree starts with: its filter holds all calls that a rule could deny, also if none does."""
    action_is_own: bool = False
    """The action was given for this program, not for all that the file does not name."""

    @property
    def upgrade_comes_with_us(self) -> bool:
        """Nobody has chosen it here: it is the built-in value, or that of a ready-made file."""
        return self.source.get("upgrade", "").startswith(("built-in", "packaged "))

    @property
    def passes_on(self) -> bool:
        """Is something denied to this program by name? That holds for all that it starts, too."""
        named = any(rule.action == "deny" and rule.where not in FOR_ALL for rule in self.rules)
        return named or (self.action == "deny" and self.action_is_own)

    @property
    def denies(self) -> frozenset[tuple[Dir, Proto]]:
        """Of what something is denied: these calls are the supervisor's to perform."""
        if self.action == "deny":
            return frozenset({("in", "tcp"), ("in", "udp"), ("out", "tcp"), ("out", "udp")})
        return frozenset((rule.dir, rule.proto) for rule in self.rules if rule.action == "deny")
