# SPDX-License-Identifier: Apache-2.0
"""How long fuzz tests run: seconds in `make test`, minutes in `make fuzz`. Seeds are fixed, failures come again."""

from __future__ import annotations

import os

LONG = os.environ.get("SDRUN_FUZZ") == "long"


def cases(short: int, long: int) -> int:
    """How many cases this run tries."""
    return long if LONG else short
