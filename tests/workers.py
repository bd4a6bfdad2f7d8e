# SPDX-License-Identifier: Apache-2.0
"""Which tests one worker runs, and in which order they begin, where several run side by side (`make test`).

Most tests wait most of the time, so more workers than CPUs are of use.  Tests of one file stay together, since they
share what is made for the module.  (xdist's own groups, by a mark, are not heeded with pytest 9.2.)
"""

from __future__ import annotations

import re
from typing import Final

from xdist.scheduler import LoadScopeScheduling

_GROUPS: Final = (
    (r"differential/test_behaviours.py::test_same_as_natively\[\w+-(\w+)\]", r"world \1"),  # its two agents stay
    (r"differential/test_(behaviours|table).py::.*", "world before"),  # ends it, and reads its reports
    (r"(differential/test_model|suites/test_cpython|matrix/test_matrix).py::.*", r"\g<0>"),
    (r"packaging/.*", "packaging"),  # builds the packages, for minutes
    (r"(.*?)::.*", r"\1"),
)
_LONG: Final = ("packaging", "world before", "sdlib/test_explore", "suites", "world", "differential", "matrix")
"""What takes long begins first, so that no worker is left alone with it at the end."""


def group_of(nodeid: str) -> str:
    """Tests with the same answer are run by one worker, one after the other."""
    name = nodeid.removeprefix("tests/")
    pattern, group = next((pattern, group) for pattern, group in _GROUPS if re.fullmatch(pattern, name))
    return re.sub(pattern, group, name)


def rank(nodeid: str) -> int:
    """Lower: earlier."""
    group = group_of(nodeid)
    return next((at for at, begin in enumerate(_LONG) if group.startswith(begin)), len(_LONG))


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out whole groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


__all__ = ["ByGroup", "group_of", "rank"]
