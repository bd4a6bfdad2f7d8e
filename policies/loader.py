# SPDX-License-Identifier: Apache-2.0
"""Finding and reading policy files.

Files that come with the project are checked by its tests, so at run time only a person's own files are validated: the
supervisor starts while a program waits, and the validator alone takes longer to import than everything else. For the
same reason packaged files are read when the project is built (build_packaged.py), and hold for programs whose name
starts with the file's (nginx.yaml for nginx*).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from policies import rules, values
from policies.model import App, Layer, Override, Policy, PolicyError, Rule, Upgrade, Values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from policies.yamlfile import Document

SYSTEM_DIR: Final = "/etc/socksdirect/policy.d"
HERE: Final = os.path.dirname(os.path.abspath(__file__))
PACKAGED_DIR: Final = os.path.join(HERE, "apps")
MAX_BYTES: Final = 1 << 20
ENV_POLICY: Final = "SDRUN_POLICY"
ENV_SET: Final = "SDRUN_SET"
ENV_RULES: Final = "SDRUN_RULES"

ALSO_FOR: Final = {"postgresql": ("postgres", "psql", "pg"), "go": ("go",)}
"""Packaged files for programs that are not named after them: beginnings of names, by the file's."""


def out_of_reach(directory: str) -> bool:
    """Does it lie in somebody else's closed folder? After `setpriv` or `su` HOME may still name the caller's."""
    try:
        os.stat(directory)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def config_dir(env: Mapping[str, str]) -> str:
    """The person's own place for policy files."""
    config = env.get("XDG_CONFIG_HOME", "")
    if not config.startswith("/"):
        config = os.path.join(env.get("HOME", "/nonexistent"), ".config")
    return os.path.join(config, "socksdirect")


def look_up(env: Mapping[str, str]) -> list[str]:
    """The person's and the host's policy files, the most important first."""
    found = []
    own = config_dir(env)
    for directory in (SYSTEM_DIR,) if out_of_reach(own) else (own, SYSTEM_DIR):
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
    """The policy of a command: the file at `path` (--policy, else $SDRUN_POLICY) first, then those of `look_up`.

    $SDRUN_SET (KEY=VALUE, by spaces) and $SDRUN_RULES (by semicolons or newlines) are over all files. Raises
    PolicyError.
    """
    path = path or env.get(ENV_POLICY)
    files = ([path] if path else []) + look_up(env)
    sets = values.parse_sets(env.get(ENV_SET, "").split(), ENV_SET)
    lines = [line for line in env.get(ENV_RULES, "").replace("\n", ";").split(";") if line.strip()]
    given = Override(ENV_SET, sets, rules.parse_lines(lines, ENV_RULES))
    overrides = (given,) if given.values or given.rules else ()
    return Policy(tuple(read_layer(file) for file in files), overrides=overrides)


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
    from policies._packaged import LAYERS

    return tuple(layer for stem, layer in LAYERS.items() if name.startswith(ALSO_FOR.get(stem, (stem,))))


def read_packaged(file: str) -> Layer:
    """One of the project's own files."""
    from policies.yamlfile import Document

    return to_layer(Document(f"packaged {os.path.basename(file)}", _read(file)))


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
    apps: list[App] = []
    for index, written in enumerate(top.get("apps", [])):
        app = _app(document, index, written)
        _refuse_unreachable_app(document, index, app, apps)
        apps.append(app)
    return Layer(document.name, top.get("default"), where, tuple(apps))


def _app(document: Document, index: int, app: dict[str, Any]) -> App:
    """One entry of `apps`."""
    path = ("apps", index)
    where = f"{document.name}:{document.place(path).line}"
    uid = _uid(document, index, app["match"].get("uid"))
    said = _values(document, index, app)
    found = _rules(document, index, app.get("rules", []))
    if said.get("io_uring") == "allow" and (said.get("action") == "deny" or any(r.action == "deny" for r in found)):
        raise document.error((*path, "io_uring"), "`io_uring` is `allow` where something is denied",
                             "must be deny: what a ring submits passes by every check")
    return App(app["match"]["program"], uid, said, where, found)


def _refuse_unreachable_app(document: Document, index: int, app: App, earlier: list[App]) -> None:
    """The first app that matches is taken: one behind an app that matches all of the same is never asked."""
    for other in earlier:
        if rules.glob_covers(other.program, app.program) and other.uid in (None, app.uid):
            line = other.where.rpartition(":")[2]
            wrong = f"never applies, since `{other.program}` in line {line} comes before"
            raise document.error(("apps", index, "match"), wrong, "remove it or put it first")


def _rules(document: Document, index: int, written: list[dict[str, Any]]) -> tuple[Rule, ...]:
    """The rules of an app; each must be able to apply."""
    found: list[Rule] = []
    for number, rule in enumerate(written):
        path = ("apps", index, "rules", number)
        proto = "tcp" if "tcp" in rule else "udp"
        where = f"{document.name}:{document.place(path).line}"
        try:
            found.append(rules.build(rule["dir"], proto, rule[proto], rule["action"], rule.get("errno", "EACCES"),
                                     rule.get("transport", rules.TRANSPORTS), where))
        except ValueError as right:
            key = "action" if str(right).startswith("kernel or deny") else proto
            wrong = f"`{key}` is {document.text((*path, key))}"
            raise document.error((*path, key), wrong, f"must be {right}") from None
        refused = rules.refusal(found, number)
        if refused is not None:
            raise document.error(path, f"this rule {refused[0]}", refused[1])
    return tuple(found)


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
    said: dict[str, object] = {key: app[key] for key in ("action", "reason", "io_uring", "strict") if key in app}
    if "upgrade" in app:
        said["upgrade"] = _upgrade(app["upgrade"])
    limits = app.get("limits", {})
    said.update({key: limits[key] for key in ("spin_us", "idle_s", "connections") if key in limits})
    for key, parse in (("ring", values.ring), ("total", values.total)):
        if key in limits:
            try:
                said[key] = parse(str(limits[key]))
            except ValueError as right:
                wrong = f"`{key}` is `{limits[key]}`"
                raise document.error(("apps", index, "limits", key), wrong, f"must be {right}") from None
    return said


def _upgrade(value: str | dict[str, int]) -> Upgrade:
    """The schema has checked it."""
    if isinstance(value, dict):
        ((how, count),) = value.items()
        return values.upgrade(f"{how}:{count}")
    return values.upgrade(value)
