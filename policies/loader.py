# SPDX-License-Identifier: Apache-2.0
"""Finding and reading policy files.

Files that come with the project are checked by its tests, so at run time only a person's own files are validated: the
supervisor starts while a program waits, and the validator alone takes longer to import than everything else. For the
same reason a packaged file is only read for programs whose name starts with the file's (nginx.yaml for nginx*).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from policies import values
from policies.model import App, Layer, Policy, PolicyError, Upgrade, Values

if TYPE_CHECKING:
    from policies.yamlfile import Document

SYSTEM_DIR: Final = "/etc/socksdirect/policy.d"
HERE: Final = os.path.dirname(os.path.abspath(__file__))
PACKAGED_DIR: Final = os.path.join(HERE, "apps")
MAX_BYTES: Final = 1 << 20


def look_up(env: Mapping[str, str]) -> list[str]:
    """The person's and the host's policy files, the most important first."""
    config = env.get("XDG_CONFIG_HOME", "")
    if not config.startswith("/"):
        config = os.path.join(env.get("HOME", "/nonexistent"), ".config")
    found = []
    for directory in (os.path.join(config, "socksdirect"), SYSTEM_DIR):
        try:
            names = sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise PolicyError(f"{directory}: {error.strerror}; make it readable or remove it") from None
        files = [name for name in names if name.endswith((".yaml", ".yml")) and not name.startswith(".")]
        found += [os.path.join(directory, name) for name in files]
    return found


def load(path: str | None, env: Mapping[str, str] = os.environ) -> Policy:
    """The policy of a command: the file at `path` (--policy) first, then those of `look_up`. Raises PolicyError."""
    files = ([path] if path else []) + look_up(env)
    return Policy(tuple(read_layer(file) for file in files))


def read_layer(path: str) -> Layer:
    """One person's file, validated; raises PolicyError."""
    from policies.validate import validate
    from policies.yamlfile import Document

    document = Document(path, _read(path))
    validate(document)
    return to_layer(document)


def packaged_layers(exe: str) -> tuple[Layer, ...]:
    """The project's own files that may speak about this program."""
    name = exe.rpartition("/")[2]
    stems = sorted(file[:-5] for file in os.listdir(PACKAGED_DIR) if file.endswith(".yaml"))
    files = [os.path.join(PACKAGED_DIR, f"{stem}.yaml") for stem in stems if name.startswith(stem)]
    if not files:
        return ()
    from policies.yamlfile import Document

    return tuple(to_layer(Document(f"packaged {os.path.basename(file)}", _read(file))) for file in files)


def _read(path: str) -> str:
    """A file's text; raises PolicyError."""
    try:
        # A program waits for us: a FIFO must not make us wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise PolicyError(f"{path}: not a regular file; name a policy file that can be read")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}; name a policy file that can be read") from None
    if len(data) > MAX_BYTES:
        raise PolicyError(f"{path}:1:1: longer than {MAX_BYTES} bytes; a shorter file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise PolicyError(f"{path}:{line}:{column}: not UTF-8; a text file in UTF-8") from None


def to_layer(document: Document) -> Layer:
    """The layer of a document that fits the schema; raises PolicyError for what a schema cannot say."""
    top = document.value
    where = f"{document.name}:{document.place(('default',)).line}" if "default" in top else ""
    apps = tuple(_app(document, index, app) for index, app in enumerate(top.get("apps", [])))
    return Layer(document.name, top.get("default"), where, apps)


def _app(document: Document, index: int, app: dict[str, Any]) -> App:
    """One entry of `apps`."""
    path = ("apps", index)
    where = f"{document.name}:{document.place(path).line}"
    uid = _uid(document, index, app["match"].get("uid"))
    return App(app["match"]["program"], uid, _values(document, index, app), where)


def _uid(document: Document, index: int, user: str | int | None) -> int | None:
    """A user by name or number."""
    if not isinstance(user, str):
        return user
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        path = ("apps", index, "match", "uid")
        raise document.error(path, f"no user `{user}` on this host", "a user's name or number") from None


def _values(document: Document, index: int, app: dict[str, Any]) -> Values:
    """What the entry says, by the names of policies.model.KEYS."""
    said: dict[str, object] = {key: app[key] for key in ("action", "reason", "io_uring") if key in app}
    if "upgrade" in app:
        said["upgrade"] = _upgrade(app["upgrade"])
    limits = app.get("limits", {})
    if "spin_us" in limits:
        said["spin_us"] = limits["spin_us"]
    if "ring" in limits:
        try:
            said["ring"] = values.ring(str(limits["ring"]))
        except ValueError as right:
            wrong = f"`ring` is `{limits['ring']}`"
            raise document.error(("apps", index, "limits", "ring"), wrong, f"must be {right}") from None
    return said


def _upgrade(value: str | dict[str, int]) -> Upgrade:
    """The schema has checked it."""
    if isinstance(value, dict):
        ((how, count),) = value.items()
        return values.upgrade(f"{how}:{count}")
    return values.upgrade(value)
