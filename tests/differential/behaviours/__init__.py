# SPDX-License-Identifier: Apache-2.0
"""All behaviours; importing this registers them."""

from tests.differential.behaviours import (
    asked,
    at_once,
    beside,
    company,
    corked,
    descriptors,
    edges,
    ends,
    epolls,
    files,
    flagged,
    grouped,
    handed,
    handed_sets,
    interrupted,
    nested,
    options,
    order,
    others,
    patterns,
    piped,
    pointers,
    rare,
    readiness,
    receive,
    reused,
    several,
    shutdowns,
    tables,
    taken,
    transmit,
    watched,
)

__all__ = [
    "asked", "at_once", "beside", "company", "corked", "descriptors", "edges", "ends", "epolls", "files", "flagged",
    "grouped", "handed", "handed_sets", "interrupted", "nested", "options", "order", "others", "patterns", "piped",
    "pointers", "rare", "readiness", "receive", "reused", "several", "shutdowns", "tables", "taken", "transmit",
    "watched",
]  # fmt: skip
