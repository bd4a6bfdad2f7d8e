# SPDX-License-Identifier: Apache-2.0
"""A request that stops programs, and is tried until it finds them where it can be done.

The whole tree is given back: detach.py; a part of it: parting.py; or taken again: rejoining.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sdtrace.ptrace import RemoteError

PATIENCE_S: Final = 10.0
_WHY: Final = {"ptrace-refused": "a debugger or strace has one of its processes; end that first"}


class Attempts:
    """One request: `done` or `failed` in the end, and answered then."""

    whole = False
    """Is it about all of the tree?"""

    def __init__(self, answer: Callable[[str], None]) -> None:
        """`answer` is told why it failed, or what `attempt` says when it is done."""
        self._answer = answer
        self._begin = time.monotonic()
        self.done = False
        self.failed = False

    def attempt(self) -> str | None:
        """Try. None: once more. RemoteError that is transient: once more, if it has not been tried for too long."""
        raise NotImplementedError

    @property
    def tried_s(self) -> float:
        """For how long."""
        return time.monotonic() - self._begin

    def tick(self) -> None:
        """Try, if it is not over; `done` or `failed` afterwards, or neither yet."""
        try:
            word = self.attempt()
        except (RemoteError, OSError) as error:
            transient = isinstance(error, RemoteError) and error.transient
            if not transient or self.tried_s > PATIENCE_S:
                self.give_up(_WHY.get(str(error), str(error)))
            return
        except Exception as error:
            self.give_up(f"internal error: {error!r}")
            raise
        if word is not None and not self.failed:
            self.done = True
            self._answer(word)

    def give_up(self, why: str) -> None:
        """The programs stay as they are."""
        self.failed = True
        self._answer(why)
