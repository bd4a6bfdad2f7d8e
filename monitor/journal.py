# SPDX-License-Identifier: Apache-2.0
"""Log lines: one event a line, `key=value` or JSON, on stderr (journald or a file takes it from there).

A hostile client can cause events as fast as it can send, so lines are limited by a token bucket; what was left out
is counted in the next line. The standard library's logging, because the monitor starts while a program waits.
"""

from __future__ import annotations

import logging
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_BURST: Final = 50.0
_PER_S: Final = 10.0
_logger: Final = logging.getLogger("sdmonitor")


class _Bucket:
    """Tokens for lines: `_BURST` at once, `_PER_S` a second in the long run."""

    def __init__(self) -> None:
        self.tokens = _BURST
        self.at = time.monotonic()
        self.left_out = 0

    def take(self) -> bool:
        now = time.monotonic()
        self.tokens = min(_BURST, self.tokens + (now - self.at) * _PER_S)
        self.at = now
        if self.tokens < 1:
            self.left_out += 1
            return False
        self.tokens -= 1
        return True


_bucket = _Bucket()
_json = False


def start(verbose: bool, as_json: bool = False) -> None:
    """Send lines to stderr; with `verbose` also those of every offer; `as_json`: each an object."""
    global _json
    _json = as_json
    handler = logging.StreamHandler(sys.stderr)
    plain = "%(message)s" if as_json else "%(asctime)s sdmonitor[%(process)d] %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(plain))
    _logger.handlers[:] = [handler]
    _logger.propagate = False
    _logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """One line: the event's name and its fields."""
    if not _logger.isEnabledFor(level) or not _bucket.take():
        return
    if _bucket.left_out:
        fields["lines_left_out"], _bucket.left_out = _bucket.left_out, 0
    if _json:
        import json

        head = {"time": round(time.time(), 3), "level": logging.getLevelName(level), "event": name}
        _logger.log(level, "%s", json.dumps({**head, **fields}, default=str))
        return
    _logger.log(level, "%s", " ".join([name, *(f"{key}={_plain(value)}" for key, value in fields.items())]))


def tells_details() -> bool:
    """Whether anybody sees detail()."""
    return _logger.isEnabledFor(logging.DEBUG)


def detail(name: str, **fields: object) -> None:
    """A line that only --verbose shows."""
    event(name, logging.DEBUG, **fields)


def warn(name: str, **fields: object) -> None:
    """Something an administrator may want to act upon."""
    event(name, logging.WARNING, **fields)


def _plain(value: object) -> str:
    """A value that stays one word of printable characters."""
    text = str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else repr(text)
