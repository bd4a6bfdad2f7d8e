# SPDX-License-Identifier: Apache-2.0
"""Every mistake in a policy file is one line with file, line, column, what is wrong and what would be right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import policies
from policies import PolicyError
from policies.loader import read_layer

APP = "version: 1\napps:\n  - match: {program: x}\n"
ITEM = "      - "
RULE = f"    rules:\n{ITEM}"

MISTAKES = {
    # what is written: (line:column, what is wrong, what would be right)
    "": ("1:1", "the file is empty", "at least `version: 1`"),
    "# only a comment\n": ("1:1", "the file is empty", "at least `version: 1`"),
    "apps: []\n": ("1:1", "`version` is missing", "must be a mapping with `version: 1`"),
    "version: 2\n": ("1:10", "`version` is `2`", "must be 1"),
    "version: true\n": ("1:10", "`version` is `true`", "must be 1"),
    "- version: 1\n": ("1:1", "the file is a list", "must be a mapping"),
    "version: 1\ndefualt: kernel\n": ("2:1", "unknown key `defualt`", "did you mean `default`?"),
    "version: 1\nzzz: 1\n": ("2:1", "unknown key `zzz`", "known here: version, default, apps"),
    "version: 1\ndefault: denied\n": ("2:10", "`default` is `denied`", "must be accelerate, kernel or deny"),
    "version: 1\ndefault: off\n": ("2:10", "`default` is `off`", "must be accelerate, kernel or deny"),
    "version: 1\nversion: 1\n": ("2:1", "key `version` twice", "each key once"),
    "version: 1\napps: {}\n": ("2:7", "`apps` is a mapping", "must be a list of applications"),
    "version: 1\napps:\n  - kernel\n": ("3:5", "`apps` is `kernel`", "must be a mapping with `match`"),
    "version: 1\napps:\n  - action: kernel\n": ("3:5", "`match` is missing", "must be a mapping with `match`"),
    "version: 1\napps:\n  - match: x\n": ("3:12", "`match` is `x`", "must be a mapping with `program`"),
    "version: 1\napps:\n  - match: {uid: 0}\n": ("3:12", "`program` is missing", "must be a mapping with `program`"),
    "version: 1\napps:\n  - match: {program: 7}\n": ("3:22", "`program` is `7`", 'must be a glob such as "nginx*"'),
    'version: 1\napps:\n  - match: {program: ""}\n': ("3:22", "`program` is ``", 'must be a glob such as "nginx*"'),
    "version: 1\napps:\n  - match: {program: x, uid: -1}\n": ("3:30", "`uid` is `-1`", "must be a user's name"),
    "version: 1\napps:\n  - match: {program: x, uid: no-such}\n": ("3:30", "no user `no-such`", "a user's name"),
    "version: 1\napps:\n  - match: {program: x, pid: 1}\n": ("3:25", "unknown key `pid`", "did you mean `uid`?"),
    APP + "    actoin: kernel\n": ("4:5", "unknown key `actoin`", "did you mean `action`?"),
    APP + "    reason: [a]\n": ("4:13", "`reason` is a list", "must be one line of text"),
    APP + "    upgrade: sometimes\n": ("4:14", "`upgrade` is `sometimes`", "must be eager, never, {after_ops: N}"),
    APP + "    upgrade: [eager]\n": ("4:14", "`upgrade` is a list", "must be eager, never, {after_ops: N}"),
    APP + "    upgrade: {}\n": ("4:14", "`upgrade` is a mapping", "must be {after_ops: N} or {after_bytes: N}"),
    APP + "    upgrade: {after_ops: 1, after_bytes: 1}\n": ("4:14", "`upgrade` is a mapping", "must be {after_ops: N}"),
    APP + "    upgrade: {after_opz: 1}\n": ("4:15", "unknown key `after_opz`", "did you mean `after_ops`?"),
    APP + "    upgrade: {after_ops: 0}\n": ("4:26", "`after_ops` is `0`", "must be a whole number from 1 to"),
    APP + "    upgrade: {after_bytes: 1.5}\n": ("4:28", "`after_bytes` is `1.5`", "must be a whole number from 1 to"),
    APP + "    upgrade: {after_ops: true}\n": ("4:26", "`after_ops` is `true`", "must be a whole number from 1 to"),
    APP + "    limits: {ring: 3KiB}\n": ("4:20", "`ring` is `3KiB`", "must be a power of two from 4KiB to 64MiB"),
    APP + "    limits: {ring: 256kb}\n": ("4:20", "`ring` is `256kb`", "must be a power of two from 4KiB to 64MiB"),
    APP + "    limits: {ring: 5000}\n": ("4:20", "`ring` is `5000`", "must be a power of two from 4KiB to 64MiB"),
    APP + "    limits: {ring: 128MiB}\n": ("4:20", "`ring` is `128MiB`", "must be a power of two from 4KiB to 64MiB"),
    APP + "    limits: {spin_us: -1}\n": ("4:23", "`spin_us` is `-1`", "must be a whole number of microseconds from 0"),
    APP + "    limits: {spin_us: 100001}\n": ("4:23", "`spin_us` is `100001`", "microseconds from 0 to 100000"),
    APP + "    limits:\n      totals: 1MiB\n": ("5:7", "unknown key `totals`", "did you mean `total`?"),
    APP + "    limits: {total: lots}\n": ("4:21", "`total` is `lots`", "must be a size such as 256MiB"),
    APP + "    limits: {total: 4KiB}\n": ("4:21", "`total` is `4KiB`", "holds the two rings of one connection"),
    APP + "    limits: {connections: -1}\n": ("4:27", "`connections` is `-1`", "must be a whole number from 0"),
    APP + "    strict: 1\n": ("4:13", "`strict` is `1`", "must be true or false"),
    APP + "    io_uring: yes\n": ("4:15", "`io_uring` is `yes`", "must be deny or allow"),
    "version: [1\n": ("2:1", "not YAML: did not find expected ',' or ']'", "see the line above"),
    "version: 1\n\tdefault: kernel\n": ("2:1", "not YAML: found a tab character that violates indentation", "see"),
    "version: 1\n---\nversion: 1\n": ("2:1", "not YAML: but found another document", "see the line above"),
    "version: &one 1\nvalue: *one\n": ("2:8", "an alias", "write the value out"),
    "version: !!python/name:os.system 1\n": ("1:10", "`1` has no meaning here", "plain text or a number"),
    "? [version]\n: 1\n": ("1:3", "a key that is no word", "plain words as keys"),
    "[" * 50: ("1:21", "nested too deeply", "at most 20 levels"),
    "version: \x07\n": ("1:1", "not YAML", "a text file in UTF-8"),
}


RULE_MISTAKES = {
    # what is in the braces of a rule
    "tcp: '*:1', action: deny": ("5:9", "`dir` is missing", "must be a mapping with `dir`"),
    "dir: up, tcp: '*:1', action: deny": ("5:15", "`dir` is `up`", "must be in or out"),
    "dir: in, action: deny": ("5:9", "`tcp` is missing", "must be either `tcp` or `udp`"),
    "dir: in, tcp: '*:1', udp: '*:1', action: deny": ("5:9", "`rules` is a mapping", "must be a mapping"),
    "dir: in, tcp: 80, action: deny": ("5:24", "`tcp` is `80`", "must be ADDRESS:PORTS"),
    "dir: in, tcp: '80', action: deny": ("5:24", "`tcp` is `80`", "must be ADDRESS:PORTS"),
    "dir: in, tcp: 'host:80', action: deny": ("5:24", "`tcp` is `host:80`", "names are not looked up"),
    "dir: in, tcp: '10.1.0.0/8:80', action: deny": ("5:24", "`tcp` is `10.1.0.0/8:80`", "must be 10.0.0.0/8"),
    "dir: in, tcp: '10.0.0.0/33:80', action: deny": ("5:24", "`tcp` is", "must be ADDRESS:PORTS"),
    "dir: in, tcp: '::1:80', action: deny": ("5:24", "`tcp` is `::1:80`", "brackets, such as [::1]:80"),
    "dir: in, tcp: '*:90-80', action: deny": ("5:24", "`tcp` is `*:90-80`", "the lower port first: 80-90"),
    "dir: in, tcp: '*:65536', action: deny": ("5:24", "`tcp` is `*:65536`", "must be a port, a range"),
    "dir: in, tcp: '*:\u0661', action: deny": ("5:24", "`tcp` is", "must be a port, a range"),
    "dir: in, tcp: '*:1', action: drop": ("5:39", "`action` is `drop`", "must be accelerate, kernel or"),
    "dir: in, udp: '*:1', action: accelerate": ("5:39", "`action` is `accelerate`", "must be kernel or deny"),
    "dir: in, tcp: '*:1', action: kernel, errno: EPERM": ("5:39", "`action` is `kernel`", "must be deny where"),
    "dir: in, tcp: '*:1', action: deny, errno: EWHY": ("5:52", "`errno` is `EWHY`", "must be EACCES, EPERM"),
    "dir: in, tcp: '*:1', action: deny, transport: [shm]": ("5:39", "`action` is", "must be accelerate where"),
    "dir: in, tcp: '*:1', action: accelerate, transport: [tcp]": ("5:63", "`transport` is `tcp`", "shm or rdma"),
    "dir: in, tcp: '*:1', action: accelerate, transport: []": ("5:62", "`transport` is", "a list of shm"),
    "dir: in, tcp: '*:1', action: deny, port: 1": ("5:45", "unknown key `port`", "did you mean `transport`?"),
}
NEVER = "this rule never applies, since "
UNREACHABLE = {
    ("in, tcp: '*:1-9', action: deny", "in, tcp: '1.2.3.4:5', action: kernel"):
        ("6:9", NEVER + "`in tcp *:1-9 deny` in line 5"),
    ("in, tcp: '0.0.0.0/1:*', action: deny", "in, tcp: '128.0.0.0/1:*', action: kernel",
     "in, tcp: '0.0.0.0/0:80', action: accelerate"): ("7:9", NEVER + "`in tcp 128.0.0.0/1:* kernel` in line 6"),
    ("out, tcp: '1.2.3.4:5', action: deny", "out, tcp: '[::ffff:1.2.3.4]:5', action: kernel"): ("6:9", NEVER),
    ("in, udp: '*:*', action: kernel", "in, udp: '[::1]:1', action: deny"): ("6:9", NEVER),
}
OVERLAPS = "this rule overlaps `"
OVERLAPPING = {
    ("in, tcp: '*:80-443', action: kernel", "in, tcp: '10.0.0.0/8:400-500', action: deny"): ("6:9",
        OVERLAPS + "in tcp *:80-443 kernel` in line 5, which decides differently about ports 400-443 of both",
        "ports 444-500, or ranges of which one contains the other"),
    ("out, udp: '[fe80::/10]:9-20', action: deny", "out, udp: '*:1-9', action: kernel"): ("6:9",
        OVERLAPS + "out udp [fe80::/10]:9-20 deny` in line 5, which decides differently about ports 9 of both",
        "ports 1-8, or ranges"),
    ("out, tcp: '*:1-2', action: deny", "out, tcp: '*:2-3', action: deny, errno: EPERM"):
        ("6:9", OVERLAPS, "ports 3, or"),
    ("in, tcp: '*:1-9', action: accelerate", "out, tcp: '*:5-15', action: kernel",
     "in, tcp: '*:5-15', action: accelerate, transport: [shm]"):
        ("7:9", OVERLAPS + "in tcp *:1-9 accelerate` in line 5", "ports 10-15, or"),
}
MISTAKES |= {f"{APP}{RULE}{{{text}}}\n": said for text, said in RULE_MISTAKES.items()}
MISTAKES |= {
    APP + "    rules:\n" + "".join(f"{ITEM}{{dir: {rule}}}\n" for rule in rules): (*said, "remove it or put it first")
    for rules, said in UNREACHABLE.items()
}
MISTAKES |= {
    APP + "    rules:\n" + "".join(f"{ITEM}{{dir: {rule}}}\n" for rule in rules): said
    for rules, said in OVERLAPPING.items()
}
MISTAKES |= {
    APP + "    rules: kernel\n": ("4:12", "`rules` is `kernel`", "must be a list of at most 256 rules"),
    APP + "    action: drop\n": ("4:13", "`action` is `drop`", "must be accelerate, kernel or deny"),
    f"{APP}{RULE}{{dir: in, tcp: '*:1', action: deny}}\n    io_uring: allow\n":
        ("6:15", "`io_uring` is `allow`", "must be deny"),
    "version: 1\napps:\n  - match: {program: 'x*'}\n  - match: {program: xy, uid: 0}\n":
        ("4:12", "never applies, since `x*` in line 3", "remove it or put it first"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "place", "wrong", "right"), [(text, *said) for text, said in MISTAKES.items()])
def test_mistakes_in_a_file(tmp_path: Path, text: str, place: str, wrong: str, right: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        policies.load(str(file), env={})
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{file}:{place}: {wrong}"), line
    assert right in line.partition("; ")[2], line


def test_the_first_mistake_of_several_is_told(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(APP + "    io_uring: 1\n    zzz: 1\ndefault: 1\n")
    with pytest.raises(PolicyError, match=r"p.yaml:4:15: `io_uring`"):
        read_layer(str(file))


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(b"version: 1\n# caf\xe9\n")
    with pytest.raises(PolicyError, match=r"p\.yaml:2:6: not UTF-8"):
        read_layer(str(file))


def test_too_long(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(PolicyError, match=r"p\.yaml:1:1: longer than 1048576 bytes"):
        read_layer(str(file))


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"/missing\?\.yaml: No such file or directory; name a policy file"):
        policies.load(f"{tmp_path}/missing\n.yaml", env={})
    with pytest.raises(PolicyError, match="Is a directory"):
        policies.load(str(tmp_path), env={})


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_file_that_never_ends(tmp_path: Path, kind: str) -> None:
    """A FIFO without a writer, a device without an end: refused, not waited for."""
    name = str(tmp_path / "p.yaml")
    if kind == "fifo":
        os.mkfifo(name)
    else:
        os.symlink("/dev/zero", name)
    with pytest.raises(PolicyError, match="not a regular file"):
        read_layer(name)


SETS = {
    "": "no such value",
    "spin_us": "no such value",
    "spin=1": "no such value",
    "=1": "no such value",
    "Upgrade=eager": "no such value",
    "upgrade=": "eager, never, after_ops:N",
    "upgrade=Eager": "eager, never, after_ops:N",
    "upgrade=after_ops": "eager, never, after_ops:N",
    "upgrade=after_ops:": "eager, never, after_ops:N",
    "upgrade=after_ops:0": "eager, never, after_ops:N",
    "upgrade=after_ops:-1": "eager, never, after_ops:N",
    "upgrade=after_ops:9223372036854775808": "eager, never, after_ops:N",
    "upgrade=after_ops:²": "eager, never, after_ops:N",
    "upgrade=after_days:1": "eager, never, after_ops:N",
    "ring=": "power of two",
    "ring=128MiB": "power of two",
    "ring=100KiB": "power of two",
    "ring=2048": "power of two",
    "ring=256 KiB": "power of two",
    "spin_us=": "microseconds",
    "spin_us=1.5": "microseconds",
    "spin_us=-1": "microseconds",
    "spin_us=100001": "microseconds",
    "io_uring=yes": "deny or allow",
    "default=drop": "accelerate or kernel or deny",
    "total=1": "holds the two rings",
    "connections=x": "a whole number",
    "patch=1": "on or off",
    "strict=true": "on or off",
    "without=short,sleep": "tokens, yield",
    "upgrade=\x1b[31m\n": "eager, never",
}


@pytest.mark.parametrize(("text", "right"), SETS.items())
def test_mistakes_after_set(text: str, right: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policies.effective(policies.Policy(), "/bin/x", ["spin_us=0", text])
    line = str(caught.value)
    assert line.startswith("--set ") and line.isprintable()
    assert right in line
