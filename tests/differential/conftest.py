# SPDX-License-Identifier: Apache-2.0
"""Worlds are started when the first test asks for them, and each behaviour runs once in each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.worlds import BEHAVIOURS, NATIVE, WORLDS, Ends, Outcome, Place
from tests.guestbuild import Guests


class Runs:
    """All runs of a session."""

    def __init__(self, agent: Path, folder: Path, env: dict[str, str]) -> None:
        self._agent, self._folder, self._env = agent, folder, env
        self._worlds = {world.name: world for world in (NATIVE, *WORLDS)}
        self._places: dict[str, Place] = {}
        self._outcomes: dict[tuple[str, str], Outcome] = {}

    def place(self, world: str) -> Place:
        """A world, started."""
        if world not in self._places:
            self._places[world] = Place(self._worlds[world], self._agent, self._folder / world, self._env)
        return self._places[world]

    def outcome(self, world: str, name: str, *, anew: bool = False) -> Outcome:
        """What a behaviour did in a world."""
        if anew or (world, name) not in self._outcomes:
            self._outcomes[world, name] = self.place(world).run(BEHAVIOURS[name])
        return self._outcomes[world, name]

    def ends(self, world: str, name: str) -> Ends:
        """What carried it. Nothing more can be run in that world."""
        return self.place(world).ends(self.outcome(world, name))

    def close(self) -> None:
        """End all worlds."""
        for place in self._places.values():
            place.close()


@pytest.fixture(scope="session")
def runs(guests: Guests, tmp_path_factory: pytest.TempPathFactory, sd_env: dict[str, str]) -> Iterator[Runs]:
    """Runs of this session."""
    made = Runs(guests("agent"), tmp_path_factory.mktemp("differential"), sd_env)
    yield made
    made.close()
