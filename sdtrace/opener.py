# SPDX-License-Identifier: Apache-2.0
"""Opening the monitor, which may have to be started first: in a thread, and with back-off where it fails."""

from __future__ import annotations

import syslog
import threading
import time
from contextlib import suppress

from sdlib.wire.events import MonitorUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sdlib.wire.client import MonitorClient

_OPEN_TIMEOUT_S: Final = 5.0
_DOUBLINGS: Final = 3
"""Who has had a monitor gives the next one twice the time after each failure: a starter that is late is killed."""
_BACK_OFF_S: Final = (0.2, 1.0, 5.0, 15.0)
_IMPATIENT_S: Final = 1.0


class _Attempt:
    """What a future would be, without the imports that concurrent.futures needs: they would delay each first socket."""

    def __init__(self, timeout_s: float, *, had_one: bool) -> None:
        self._client: MonitorClient | None = None
        self._error: MonitorUnavailable | OSError | None = None
        self._thread = threading.Thread(target=self._open, args=(timeout_s, had_one), name="open-monitor")
        self._thread.start()

    def _open(self, timeout_s: float, had_one: bool) -> None:
        from sdlib.wire.client import MonitorClient  # a program waits for our start
        from sdlib.wire.reach import HOST_AWAY_S, HOST_RESTARTS_S

        away_s = HOST_RESTARTS_S if had_one else HOST_AWAY_S
        try:
            self._client = MonitorClient.open(spawn=True, timeout_s=timeout_s, host_away_s=away_s)
        except (MonitorUnavailable, OSError) as error:
            self._error = error

    def done(self) -> bool:
        """Is it known how it ended?"""
        return not self._thread.is_alive()

    def result(self) -> MonitorClient:
        """Waits for it; MonitorUnavailable, OSError."""
        self._thread.join()
        if self._client is None:
            raise self._error or MonitorUnavailable("opening the monitor has failed")
        return self._client


class Opener:
    """One attempt at a time."""

    def __init__(self) -> None:
        self._opening: _Attempt | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._had_one = False

    def prepare(self) -> None:
        """A client is likely to be wanted soon: begin, if it is time to try."""
        if self._opening is None and time.monotonic() >= self._retry_at:
            timeout_s = _OPEN_TIMEOUT_S * 2 ** min(self._failures, _DOUBLINGS) if self._had_one else _OPEN_TIMEOUT_S
            self._opening = _Attempt(timeout_s, had_one=self._had_one)

    def take(self, *, wait: bool, impatient: bool) -> MonitorClient | None:
        """The client, if there is one now; without `wait` only if that is done. `impatient`: somebody waits for it."""
        if self._opening is None or not (wait or self._opening.done()):
            return None
        opening, self._opening = self._opening, None
        try:
            return opening.result()
        except (MonitorUnavailable, OSError) as error:
            pause = _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
            self._retry_at = time.monotonic() + (min(pause, _IMPATIENT_S) if impatient else pause)
            self._failures += 1
            syslog.syslog(syslog.LOG_WARNING, f"monitor: {error}")
            return None

    def works(self) -> None:
        """It has answered an offer."""
        self._failures = 0

    def again(self) -> None:
        """The one that we had is gone: look for the next at once."""
        self._retry_at = 0.0
        self._had_one = True
        self.prepare()

    def close(self) -> None:
        """Hang up on what was being opened."""
        if self._opening is not None:
            with suppress(MonitorUnavailable, OSError):
                self._opening.result().close()
