# SPDX-License-Identifier: Apache-2.0
"""What the policies say to the programs of one tree, now and after files have changed."""

from __future__ import annotations

import syslog
from collections.abc import Callable
from functools import lru_cache

import policies
from policies import Policy, Settings
from policies.model import Proto
from sdlib.records import replace
from sdtrace import cli, opening
from sdtrace.control import VERDICT_URING_ALLOWED


class Governing:
    """Of one supervisor. What was given on the command line holds as ever."""

    def __init__(self, options: cli.Options, policy: Policy) -> None:
        """PolicyError."""
        self._options, self._policy = options, policy
        self.filtered = opening.filtered(options, policy)
        """Protocols whose calls the filter holds."""
        command = policies.effective(policy, options.command, options.sets, rules=options.rules)
        self.uring_allowed = command.io_uring == "allow"
        """By the filter, which is the whole tree's."""
        if options.successor is not None:
            self.uring_allowed = bool(options.successor & VERDICT_URING_ALLOWED)
        self._settings_of = lru_cache(maxsize=1024)(self._find)

    def settings(self, exe: str, uid: int) -> Settings:
        """Of a program."""
        return self._settings_of(exe, uid)

    def _find(self, exe: str, uid: int) -> Settings:
        settings = policies.effective(self._policy, exe, self._options.sets, uid, self._options.rules)
        if self.uring_allowed:  # submissions pass by the library, on whatever socket: none may leave TCP
            return replace(settings, accelerate=False)
        return settings

    def reload(self, use: Callable[[], None]) -> frozenset[Proto] | None:
        """Read the files again, and `use` what they say by now. A mistake in them changes nothing, and is logged: None.

        Returns the protocols of which something is denied now though the filter holds none of their calls.
        """
        try:
            policy = policies.load(self._options.policy)
            denied = policies.denied_somewhere(policy, self._options.sets, self._options.rules)
            before = self._policy
            self._hold(policy)
            try:
                use()
            except policies.PolicyError:
                self._hold(before)
                raise
        except policies.PolicyError as error:
            syslog.syslog(syslog.LOG_ERR, f"policies not reloaded: {error}")
            return None
        return self._late(denied)

    def _hold(self, policy: Policy) -> None:
        self._policy = policy
        self._settings_of.cache_clear()

    def _late(self, denied: frozenset[Proto]) -> frozenset[Proto]:
        late = denied - self.filtered
        if "udp" in late:
            syslog.syslog(syslog.LOG_WARNING, "denials about UDP begin with the next start: none was possible then")
        if "tcp" in late and self.uring_allowed:
            syslog.syslog(syslog.LOG_WARNING, "denials reach no io_uring, which was allowed when this began")
        return late
