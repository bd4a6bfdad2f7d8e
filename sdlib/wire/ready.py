# SPDX-License-Identifier: Apache-2.0
"""Waiting for one descriptor: select(2) knows none above 1023, and refuses them."""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


def readable(file: FileDescriptorLike, seconds: float) -> bool:
    """Whether it can be read without waiting, within `seconds`; its end and an error count as well."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
