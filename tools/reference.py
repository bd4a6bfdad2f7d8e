# SPDX-License-Identifier: Apache-2.0
"""docs/policy-reference.md from the schema that policy files are checked with. `python -m tools.reference > FILE`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import policies

HEAD = """\
# Policy reference

Every key of a policy file. Generated from `policies/schema.json` by `tools/reference.py`: change it there.
What the whole means, and who wins: [policy.md](policy.md). Where no file says anything, not even a ready-made one:
{built_in}.

| key | value | |
|---|---|---|
"""


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` leads to, with what stands beside it."""
    place = node.get("$ref", "").rpartition("/")[2]
    return {**schema["$defs"][place], **node} if place else node


def keys(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, what it may be, what it is for), depth first."""
    for name, member in node.get("properties", {}).items():
        member = _resolved(schema, member)
        yield f"{path}{name}", member.get("description", ""), member.get("title", "")
        yield from keys(schema, member, f"{path}{name}.")
        if "items" in member:
            yield from keys(schema, _resolved(schema, member["items"]), f"{path}{name}[].")


def built_in() -> str:
    """What holds without any file."""
    s = policies.effective(policies.Policy(packaged=False), "", [])
    upgrade = s.upgrade if isinstance(s.upgrade, str) else f"{{{s.upgrade[0]}: {s.upgrade[1]}}}"
    limits = f"ring: {s.ring_bytes >> 20}MiB, total: {s.total_bytes >> 30}GiB, connections: {s.connections}, "
    limits += f"spin_us: {s.spin_us}, idle_s: {s.idle_s}"
    return (f"`default: {s.action}`, `upgrade: {upgrade}`, `limits: {{{limits}}}`, `io_uring: {s.io_uring}`, "
            f"`strict: {str(s.strict).lower()}`")


def text() -> str:
    """The page."""
    schema = json.loads((Path(policies.__file__).parent / "schema.json").read_text())
    rows = (f"| `{path}` | {value} | {title} |".replace("  |", " |") for path, value, title in keys(schema, schema))
    return HEAD.replace("{built_in}", built_in()) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
