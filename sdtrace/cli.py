# SPDX-License-Identifier: Apache-2.0
"""Command line of the supervisor; only the keeper uses it (launch/spawn.c), passing on the user's options."""

from __future__ import annotations

from sdlib.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


@dataclass(frozen=True)
class Options:
    """What the keeper passes."""

    @property
    def told_at_the_end(self) -> bool:
        """Is something to be found by the program's parent when it has ended?"""
        return bool(self.report or self.explain or self.pcap) or self.trace is not None

    control: int
    keepsake: int
    root_pidfd: int
    root_pid: int
    command: str
    report: str | None
    policy: str | None
    sets: list[str]
    rules: list[str]
    learn: str | None
    trace: str | None
    """A file; "": standard error."""
    pcap: str | None
    explain: bool
    no_accel: bool
    named: bool
    """Every process has to name our parent, the keeper, or we may not trace it (launch/yama.c)."""
    receives: bool
    """Our parent receives notifications for us; one that is older than we are does not (an upgrade)."""
    verdict: bool
    attach: str
    """The root process has been running: it "alone", or its "family"; "": it is about to start."""
    successor: int | None
    """VERDICT_* bits of the tree's filter, for who comes after a supervisor that died."""


_FLAGS: Final = frozenset({"explain", "no_accel", "named", "receives", "verdict"})
_NUMBERS: Final = frozenset({"control", "keepsake", "root_pidfd", "root_pid", "successor"})
_TEXTS: Final = frozenset({"command", "report", "policy", "learn", "trace", "pcap", "attach"})
_ABSENT: Final[dict[str, Any]] = (dict.fromkeys(_TEXTS - {"command"} | {"successor"}) | {"attach": ""}
                                 | dict.fromkeys(_FLAGS, False))
_LISTS: Final = {"set": "sets", "rule": "rules"}


def _read(argv: list[str]) -> dict[str, Any]:
    """Values by the names of the fields. ValueError."""
    values: dict[str, Any] = {"sets": [], "rules": []}
    for word in argv:
        option, equals, text = word.removeprefix("--").partition("=")
        name = option.replace("-", "_")
        if not word.startswith("--") or bool(equals) == (name in _FLAGS):
            raise ValueError(word)
        if name in _FLAGS:
            values[name] = True
        elif name in _NUMBERS:
            values[name] = int(text)
        elif name in _TEXTS:
            values[name] = text
        elif name in _LISTS:
            values[_LISTS[name]].append(text)
        else:
            raise ValueError(word)
    return values


def parse(argv: list[str]) -> Options:
    """Options from `argv`; exits with a usage line when a person calls it by hand.

    By hand, since argparse takes a tenth of the start.
    """
    try:
        given = _read(argv)
        return Options(**_ABSENT | given)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"sdtrace.supervisor: started by sdrun; run that instead ({error})") from None
