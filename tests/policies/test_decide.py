# SPDX-License-Identifier: Apache-2.0
"""Which values hold for a program, and who said so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import policies
from policies import Settings
from policies.engine import decide, matches
from policies.loader import ALSO_FOR, PACKAGED_DIR, look_up, read_layer
from policies.model import App, Layer
from policies.validate import schema
from policies.values import RING_MAX, RING_MIN, ring, upgrade
from sdlib import abi
from sdlib.records import replace

BUILT_IN = Settings(True, ("after_ops", 8), 50, 4 << 20, "deny", True)


def plain(settings: Settings) -> Settings:
    """Without the sources."""
    return replace(settings, source=BUILT_IN.source, action_is_own=False)


def layer(tmp_path: Path, name: str, text: str) -> Layer:
    file = tmp_path / name
    file.write_text(text)
    return read_layer(str(file))


def test_built_in_values() -> None:
    settings = policies.effective(policies.Policy(), "/bin/true", [])
    assert plain(settings) == BUILT_IN
    assert set(settings.source.values()) == {"built-in"}


def test_every_value_of_a_file(tmp_path: Path) -> None:
    text = (
        "version: 1\napps:\n  - match: {program: x}\n    action: kernel\n    reason: because\n"
        "    upgrade: {after_bytes: 4096}\n    limits: {ring: 1MiB, spin_us: 0}\n    io_uring: allow\n"
    )
    settings = decide([layer(tmp_path, "p.yaml", text)], {}, "/bin/x", 0)
    wanted = Settings(False, ("after_bytes", 4096), 0, 1 << 20, "allow", True, "because", action="kernel")
    assert plain(settings) == wanted
    assert {key for key, who in settings.source.items() if who == f"{tmp_path}/p.yaml:3"} == {
        "action", "reason", "upgrade", "ring", "spin_us", "io_uring",
    }  # fmt: skip
    assert plain(decide([layer(tmp_path, "p.yaml", text)], {}, "/bin/y", 0)) == BUILT_IN


@pytest.mark.parametrize(
    ("sets", "changed"),
    [
        (["upgrade=eager"], {"upgrade": "eager"}),
        (["upgrade=never"], {"upgrade": "never"}),
        (["upgrade=after_ops:1"], {"upgrade": ("after_ops", 1)}),
        (["upgrade=after_bytes:9223372036854775807"], {"upgrade": ("after_bytes", (1 << 63) - 1)}),
        (["ring=4KiB"], {"ring_bytes": 4096}),
        (["ring=65536"], {"ring_bytes": 65536}),
        (["ring=64MiB"], {"ring_bytes": 64 << 20}),
        (["spin_us=0"], {"spin_us": 0}),
        (["spin_us=100000"], {"spin_us": 100000}),
        (["io_uring=allow"], {"io_uring": "allow"}),
        (["default=kernel"], {"accelerate": False, "action": "kernel"}),
        (["default=deny"], {"accelerate": False, "action": "deny"}),
        (["total=1GiB", "connections=0"], {"total_bytes": 1 << 30, "connections": 0}),
        (["patch=off"], {"patch": False}),
        (["without=short,arming"], {"without": ("short", "arming")}),
        (["without="], {}),
        (["spin_us=1", "spin_us=2"], {"spin_us": 2}),
        (["patch=off", "ring=4KiB", "patch=on"], {"ring_bytes": 4096}),
    ],
)
def test_set(sets: list[str], changed: dict[str, object]) -> None:
    settings = policies.effective(policies.Policy(packaged=False), "/bin/x", sets)
    assert plain(settings) == replace(BUILT_IN, **changed)  # type: ignore[arg-type]
    assert "--set" in settings.source.values()


def test_set_is_over_files_and_files_are_over_packaged(tmp_path: Path) -> None:
    text = "version: 1\ndefault: kernel\napps:\n  - match: {program: 'nginx*'}\n    limits: {spin_us: 7}\n"
    policy = policies.Policy((layer(tmp_path, "p.yaml", text),))
    settings = policies.effective(policy, "/usr/sbin/nginx", ["ring=4KiB"])
    assert (settings.spin_us, settings.ring_bytes, settings.accelerate) == (7, 4096, False)
    assert settings.source["action"] == f"{tmp_path}/p.yaml:2"
    assert settings.source["upgrade"].startswith("packaged nginx.yaml:")
    assert policies.effective(policy, "/usr/sbin/nginx", ["default=accelerate"]).accelerate


@pytest.mark.parametrize("exe", ["/bin/x", "/usr/sbin/nginx"])
def test_an_upgrade_that_somebody_has_chosen_is_kept_to(tmp_path: Path, exe: str) -> None:
    ours = policies.Policy()
    theirs = layer(tmp_path, "p.yaml", "version: 1\napps: [{match: {program: '*'}, upgrade: {after_ops: 8}}]\n")
    assert policies.effective(ours, exe, []).upgrade_comes_with_us
    assert not policies.effective(ours, exe, ["upgrade=after_ops:8"]).upgrade_comes_with_us
    assert not policies.effective(policies.Policy((theirs,)), exe, []).upgrade_comes_with_us


def test_first_layer_and_first_app_win(tmp_path: Path) -> None:
    one = layer(tmp_path, "1.yaml", "version: 1\napps: [{match: {program: 'a*'}, limits: {spin_us: 1}}]\n")
    two = layer(
        tmp_path,
        "2.yaml",
        "version: 1\napps:\n  - {match: {program: 'ab'}, upgrade: eager}\n"
        "  - {match: {program: 'a*'}, upgrade: never, limits: {spin_us: 2}}\n",
    )
    settings = decide([one, two], {}, "/bin/ab", 0)
    assert (settings.spin_us, settings.upgrade) == (1, "eager")
    settings = decide([two, one], {}, "/bin/ac", 0)
    assert (settings.spin_us, settings.upgrade) == (2, "never")


def test_a_reason_goes_with_its_action(tmp_path: Path) -> None:
    assert "privilege separation" in policies.effective(policies.Policy(), "/usr/sbin/sshd", []).reason
    assert policies.effective(policies.Policy(), "/usr/sbin/sshd", ["default=kernel"]).reason == ""
    mine = layer(tmp_path, "p.yaml", "version: 1\ndefault: accelerate\n")
    settings = policies.effective(policies.Policy((mine,)), "/usr/sbin/sshd", [])
    assert settings.accelerate and settings.reason == ""


@pytest.mark.parametrize(
    ("glob", "exe", "same"),
    [
        ("nginx", "/usr/sbin/nginx", True),
        ("nginx", "nginx", True),
        ("nginx", "/usr/sbin/nginx-debug", False),
        ("nginx*", "/usr/sbin/nginx-debug", True),
        ("nginx*", "/nginx/other", False),
        ("Nginx", "/usr/sbin/nginx", False),
        ("/usr/*/nginx", "/usr/sbin/nginx", True),
        ("/usr/bin/nginx", "/usr/sbin/nginx", False),
        ("*", "/any/thing", True),
        ("python3.[0-9]*", "/usr/bin/python3.11", True),
    ],
)
def test_program_globs(glob: str, exe: str, same: bool) -> None:
    assert matches(App(glob, None, {}, ""), exe, 0) is same


def test_users(tmp_path: Path) -> None:
    text = "version: 1\napps:\n  - {match: {program: x, uid: nobody}, action: kernel}\n"
    layers = [layer(tmp_path, "p.yaml", text)]
    assert not decide(layers, {}, "x", 65534).accelerate
    assert decide(layers, {}, "x", 0).accelerate
    by_number = [layer(tmp_path, "p.yaml", text.replace("nobody", "0"))]
    assert not decide(by_number, {}, "x", 0).accelerate


def test_look_up_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, system = tmp_path / "config" / "socksdirect", tmp_path / "policy.d"
    for folder, names in ((user, ("b.yaml", "a.yml", ".hidden.yaml", "note.txt")), (system, ("z.yaml",))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("version: 1\n")
    monkeypatch.setattr("policies.loader.SYSTEM_DIR", str(system))
    expected = [str(user / "a.yml"), str(user / "b.yaml"), str(system / "z.yaml")]
    assert look_up({"XDG_CONFIG_HOME": str(tmp_path / "config")}) == expected
    assert look_up({"HOME": "/nonexistent"}) == expected[2:]
    (tmp_path / "home" / ".config").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "socksdirect").symlink_to(user)
    assert [Path(name).name for name in look_up({"HOME": str(tmp_path / "home")})] == ["a.yml", "b.yaml", "z.yaml"]
    option = tmp_path / "option.yaml"
    option.write_text("version: 1\n")
    policy = policies.load(str(option), env={"XDG_CONFIG_HOME": str(tmp_path / "config")})
    assert [given.name for given in policy.layers] == [str(option), *expected]


@pytest.mark.parametrize("file", sorted(Path(PACKAGED_DIR).glob("*.yaml")), ids=lambda file: file.stem)
def test_packaged_files(file: Path) -> None:
    """They are valid, and they speak only about programs for which they are read: those named after the file."""
    begin = ALSO_FOR.get(file.stem, (file.stem,))
    for app in read_layer(str(file)).apps:
        assert app.program.startswith(begin), "or it would never be read"
    settings = policies.effective(policies.Policy(), f"/usr/bin/{begin[0]}-server", [])
    assert settings.source["action"].startswith(f"packaged {file.name}:")
    assert settings.accelerate or settings.reason, "whoever keeps a program on TCP says why"


def test_packaged_ones_are_there() -> None:
    wanted = {"nginx", "haproxy", "redis", "memcached", "postgresql", "python", "node", "go", "java", "php-fpm", "sshd"}
    assert wanted == {file.stem for file in Path(PACKAGED_DIR).glob("*.yaml")}
    programs = ("nginx", "haproxy", "redis-cli", "memcached", "postgres", "psql", "pgbench", "python3.11", "node", "go",
                "java", "php-fpm8.2")
    for name in programs:
        settings = policies.effective(policies.Policy(), f"/usr/bin/{name}", [])
        assert settings.source["action"].startswith("packaged "), name
    assert not policies.effective(policies.Policy(), "/usr/sbin/sshd", []).accelerate


def test_schema_is_a_schema_and_explains_itself() -> None:
    """What would be right is taken from `description`, so every rule has one."""
    top = schema()
    jsonschema.Draft202012Validator.check_schema(top)

    def rules(node: object) -> None:
        if isinstance(node, dict):
            if {"type", "enum", "const"} & set(node) and not ({"then", "else"} & set(node)):
                assert "description" in node or node == {"type": "object"}, node
            for child in node.values():
                rules(child)
        elif isinstance(node, list):
            for child in node:
                rules(child)

    rules(json.loads(json.dumps(top)))


def test_ring_limits_are_those_of_the_library() -> None:
    assert (RING_MIN, RING_MAX) == (abi.const.SD_RING_MIN, abi.const.SD_RING_MAX)


@given(st.integers(12, 26), st.sampled_from(["", "B", "KiB", "MiB"]))
def test_sizes(power: int, unit: str) -> None:
    scale = {"": 0, "B": 0, "KiB": 10, "MiB": 20}[unit]
    if power >= scale:
        assert ring(f"{1 << (power - scale)}{unit}") == 1 << power


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    for parse in (ring, upgrade):
        try:
            parse(text)
        except ValueError as right:
            assert str(right).isprintable()


def test_start_is_light() -> None:
    """A program without a policy of its own waits for neither YAML nor the validator nor cffi."""
    code = (
        "import sys, policies\n"
        "policies.effective(policies.load(None, env={}), '/bin/true', ['upgrade=eager'])\n"
        "print(sorted({'yaml', 'jsonschema', 'cffi', '_cffi_backend'} & set(sys.modules)))"
    )
    root = str(Path(policies.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"
