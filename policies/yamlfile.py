# SPDX-License-Identifier: Apache-2.0
"""One YAML file as plain values that remember their places.

PyYAML's composer does the parsing; from its nodes we build plain values and keep each one's line and column. Stricter
than YAML: no aliases (a small file could unfold to gigabytes), no key twice, no tags of one's own, bounded depth.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from policies.model import PolicyError

MAX_DEPTH: Final = 20
Path: TypeAlias = tuple[str | int, ...]
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Place(NamedTuple):
    """1-based, as editors count."""

    line: int
    column: int


class Document:
    """The value of a file and where each part of it is written."""

    def __init__(self, name: str, text: str) -> None:
        """Raises PolicyError."""
        self.name = name
        self.value: Any = None
        self._values: dict[Path, Place] = {(): Place(1, 1)}
        self._keys: dict[Path, Place] = {}
        self._texts: dict[Path, str] = {}
        loader = _LOADER(text)
        try:
            self._refuse_unfolding(text)
            node = loader.get_single_node()
            if node is None:
                raise self.error((), "the file is empty", "at least `version: 1`")
            self.value = self._plain(loader, node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = _place(mark) if mark else Place(1, 1)
            raise PolicyError(_line(name, place, f"not YAML: {error.problem}", "see the line above it too")) from None
        except yaml.YAMLError as error:
            what = str(error).splitlines()[0]
            raise PolicyError(_line(name, Place(1, 1), f"not YAML: {what}", "a text file in UTF-8")) from None
        finally:
            loader.dispose()

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where the value at `path` is, or its key."""
        return (self._keys if key else self._values)[path]

    def text(self, path: Path) -> str:
        """The value at `path` as it is written (scalars), or what kind of thing it is."""
        return self._texts.get(path, "")

    def error(self, path: Path, wrong: str, right: str, *, key: bool = False) -> PolicyError:
        """An error at the value (or key) of `path`."""
        return PolicyError(_line(self.name, self.place(path, key=key), wrong, right))

    def _refuse_unfolding(self, text: str) -> None:
        """Look at the flat events first: the composer follows aliases and recurses into depth."""
        depth = 0
        for event in yaml.parse(text, _LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise PolicyError(_line(self.name, _place(event.start_mark), "an alias", "write the value out"))
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                place = _place(event.start_mark)
                raise PolicyError(_line(self.name, place, "nested too deeply", f"at most {MAX_DEPTH} levels"))

    def _plain(self, loader: Any, node: Node, path: Path) -> Any:
        """The plain value of a node, with its places noted."""
        self._values[path] = _place(node.start_mark)
        if isinstance(node, MappingNode):
            self._texts[path] = "a mapping"
            return {key: self._plain(loader, value, (*path, key)) for key, value in self._pairs(node, path)}
        if isinstance(node, SequenceNode):
            self._texts[path] = "a list"
            return [self._plain(loader, item, (*path, index)) for index, item in enumerate(node.value)]
        self._texts[path] = _shown(node)
        try:
            return loader.construct_object(node)
        except (ValueError, yaml.constructor.ConstructorError):
            raise self.error(path, f"{_shown(node)} has no meaning here", "plain text or a number") from None

    def _pairs(self, node: MappingNode, path: Path) -> list[tuple[str, Node]]:
        """Keys and value nodes, with the keys' places; each key once and plain text."""
        pairs: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = _place(key_node.start_mark)
            if not isinstance(key_node, ScalarNode):
                raise PolicyError(_line(self.name, place, "a key that is no word", "plain words as keys"))
            key = str(key_node.value)
            if key in pairs:
                raise PolicyError(_line(self.name, place, f"key {_shown(key_node)} twice", "each key once"))
            pairs[key] = value_node
            self._keys[(*path, key)] = place
        return list(pairs.items())


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


def _shown(node: Node) -> str:
    """A scalar as it is written, short and printable."""
    text = str(node.value)
    short = text if len(text) <= 40 else text[:37] + "..."
    return "`" + "".join(char if char.isprintable() else "?" for char in short) + "`"


def _line(name: str, place: Place, wrong: str, right: str) -> str:
    """The one line."""
    return f"{name}:{place.line}:{place.column}: {wrong}; {right}"
