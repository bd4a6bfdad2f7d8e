# SPDX-License-Identifier: Apache-2.0
"""A document against the JSON Schema; the first error as one line with its place.

What would be right comes from the schema itself: the `description` next to the rule that was broken.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import jsonschema

from policies.loader import HERE

if TYPE_CHECKING:
    from policies.model import PolicyError
    from policies.yamlfile import Document

SCHEMA_FILE: Final = os.path.join(HERE, "schema.json")


def schema() -> dict[str, Any]:
    """The JSON Schema of policy files."""
    with open(SCHEMA_FILE, encoding="utf-8") as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


def validate(document: Document) -> None:
    """Raise PolicyError at the place of the first error (in the order of the file)."""
    validator = jsonschema.Draft202012Validator(schema())
    errors = [_explain(document, error) for found in validator.iter_errors(document.value) for error in _leaves(found)]
    if errors:
        raise min(errors, key=lambda error: error[0])[1]


def _leaves(error: jsonschema.ValidationError) -> Iterator[jsonschema.ValidationError]:
    """The rules that were broken, inside if/then/else."""
    if not error.context:
        yield error
    for inner in error.context or ():
        yield from _leaves(inner)


def _explain(document: Document, error: jsonschema.ValidationError) -> tuple[tuple[int, int], PolicyError]:
    """The error's place and its one line."""
    path = tuple(error.absolute_path)
    rule: Any = error.schema
    value: Any = error.instance
    right = str(rule.get("description", "see the policy reference"))
    if error.validator == "additionalProperties":
        known = list(rule["properties"])
        unknown = next(key for key in value if key not in known)
        meant = difflib.get_close_matches(unknown, known, 1)
        hint = f"did you mean `{meant[0]}`?" if meant else "known here: " + ", ".join(known)
        place = document.place((*path, unknown), key=True)
        return place, document.error((*path, unknown), f"unknown key `{unknown[:40]}`", hint, key=True)
    if error.validator == "required":
        missing = next(key for key in rule["required"] if key not in value)
        return document.place(path), document.error(path, f"`{missing}` is missing", f"must be {right}")
    name = next((f"`{part}`" for part in reversed(path) if isinstance(part, str)), "the file")
    wrong = f"{name} is {document.text(path)}"
    return document.place(path), document.error(path, wrong, f"must be {right}")
