# SPDX-License-Identifier: Apache-2.0
"""Each behaviour once in each world, as it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

from tests.differential.worlds import BEHAVIOURS, NATIVE, WORLDS, Ends, Outcome, Place
from tests.once import once


class Runs:
    """All runs of a session. `references`: where the workers of one keep what the kernel did natively."""

    def __init__(self, agent: Path, folder: Path, env: dict[str, str], references: Path) -> None:
        self._agent, self._folder, self._env, self._references = agent, folder, env, references
        self._worlds = {world.name: world for world in (NATIVE, *WORLDS)}
        self._places: dict[str, Place] = {}
        self._ended: list[Place] = []
        self._outcomes: dict[tuple[str, str], tuple[Outcome, Place]] = {}

    def place(self, world: str) -> Place:
        """A world, started; anew if its reports have been read."""
        place = self._places.get(world)
        if place is not None and place.ended:
            self._ended.append(self._places.pop(world))
        if world not in self._places:
            folder = self._folder / f"{world}-{len(self._ended)}"
            self._places[world] = Place(self._worlds[world], self._agent, folder, self._env)
        return self._places[world]

    def outcome(self, world: str, name: str, *, anew: bool = False) -> Outcome:
        """What a behaviour did in a world."""
        if anew or (world, name) not in self._outcomes:
            place = self.place(world)
            self._outcomes[world, name] = place.run(BEHAVIOURS[name]), place
        return self._outcomes[world, name][0]

    def reference(self, name: str, *, anew: bool = False) -> list[str]:
        """The transcript of the native world."""
        if anew:
            return self.outcome(NATIVE.name, name, anew=True).transcript

        def make(target: Path) -> None:
            target.write_text(json.dumps(self.outcome(NATIVE.name, name).transcript))

        transcript: list[str] = json.loads(once(self._references / name, make).read_text())
        return transcript

    def ends(self, world: str, name: str) -> Ends:
        """What carried it. The world is over then."""
        outcome = self.outcome(world, name)
        return self._outcomes[world, name][1].ends(outcome)

    def close(self) -> None:
        """End all worlds."""
        for place in (*self._places.values(), *self._ended):
            place.close()
