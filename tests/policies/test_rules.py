# SPDX-License-Identifier: Apache-2.0
"""Rules: which connection they are about, in which order they are asked, and what is learned from a run."""

from __future__ import annotations

import errno
import ipaddress
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import policies
from policies import Policy, PolicyError, Settings, judge, judge_port, learn
from policies.loader import read_layer
from policies.model import Box
from policies.rules import crossing, parse_line, pattern, shadowed_by
from tests.harness import ROOT, SDRUN

EXAMPLE = """\
version: 1
default: accelerate
apps:
  - match: {program: "nginx*"}
    rules:
      - {dir: in,  tcp: "0.0.0.0/0:80-443", action: accelerate}
      - {dir: out, tcp: "10.0.0.0/8:*", action: accelerate, transport: [shm, rdma]}
      - {dir: out, tcp: "*:53", action: kernel}
      - {dir: out, tcp: "*:25", action: deny, errno: EPERM}
    upgrade: {after_ops: 8}
    limits: {ring: 256KiB, total: 256MiB, connections: 10000, spin_us: 50}
    io_uring: deny
"""


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def with_rules(*rules: str, default: str = "accelerate") -> Settings:
    return policies.effective(Policy(packaged=False), "/bin/x", [f"default={default}"], rules=rules)


def test_the_issues_example(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(EXAMPLE)
    policy = Policy((read_layer(str(file)),))
    nginx = policies.effective(policy, "/usr/sbin/nginx", [])
    assert (nginx.ring_bytes, nginx.total_bytes, nginx.connections, nginx.spin_us) == (1 << 18, 1 << 28, 10000, 50)
    for dir_, address, port, action in (
        ("in", "1.2.3.4", 443, "accelerate"), ("out", "10.9.9.9", 53, "accelerate"), ("out", "::1", 53, "kernel"),
        ("out", "10.9.9.9", 25, "accelerate"), ("out", "11.0.0.0", 25, "deny"), ("out", "::ffff:11.0.0.0", 25, "deny"),
    ):  # fmt: skip
        verdict = judge(nginx, dir_, "tcp", packed(address), port)  # type: ignore[arg-type]
        assert verdict.action == action, (dir_, address, port)
    assert judge(nginx, "out", "tcp", packed("11.0.0.0"), 25).errno == errno.EPERM
    assert judge(nginx, "out", "tcp", packed("11.0.0.0"), 25).where == f"{file}:9: out tcp *:25 deny errno=EPERM"
    assert nginx.denies == {("out", "tcp")} and nginx.passes_on
    assert not policies.effective(policy, "/bin/other", []).denies


def test_the_first_rule_that_speaks_decides_and_an_action_ends_the_list(tmp_path: Path) -> None:
    text = "version: 1\napps:\n  - match: {program: x}\n    rules: [{dir: out, tcp: '*:1', action: kernel}]\n"
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text(text + "    action: deny\n")
    two.write_text(text.replace("'*:1'", "'*:2'"))
    layers = (read_layer(str(one)), read_layer(str(two)))
    settings = policies.effective(Policy(layers), "x", [], rules=["out tcp 127.0.0.1:1 accelerate"])
    assert [rule.text for rule in settings.rules] == ["out tcp 127.0.0.1:1 accelerate", "out tcp *:1 kernel"]
    assert judge(settings, "out", "tcp", packed("127.0.0.1"), 1).action == "accelerate"
    assert judge(settings, "out", "tcp", packed("127.0.0.2"), 1).action == "kernel"
    assert judge(settings, "out", "tcp", packed("127.0.0.2"), 2).action == "deny"
    settings = policies.effective(Policy(layers[::-1]), "x", [])
    assert [rule.text for rule in settings.rules] == ["out tcp *:2 kernel", "out tcp *:1 kernel"]
    settings = policies.effective(Policy(layers), "x", ["default=kernel"], rules=["in tcp *:9 deny"])
    assert [rule.text for rule in settings.rules] == ["in tcp *:9 deny"] and settings.action == "kernel"


def test_environment_is_over_files_and_under_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\napps: [{match: {program: x}, limits: {spin_us: 1, ring: 4KiB}}]\n")
    env = {
        "SDRUN_POLICY": str(file),
        "SDRUN_SET": "spin_us=2 upgrade=eager",
        "SDRUN_RULES": "out tcp *:1 deny; in tcp *:2 deny",
    }
    settings = policies.effective(policies.load(None, env), "x", ["upgrade=never"], rules=["out tcp *:3 kernel"])
    assert (settings.spin_us, settings.ring_bytes, settings.upgrade) == (2, 4096, "never")
    assert [rule.where for rule in settings.rules] == ["-r", "SDRUN_RULES", "SDRUN_RULES"]
    assert settings.source["spin_us"] == "SDRUN_SET" and settings.source["ring"] == f"{file}:2"
    for name, value in (("SDRUN_SET", "spin=1"), ("SDRUN_RULES", "out"), ("SDRUN_POLICY", "/nonexistent")):
        with pytest.raises(PolicyError, match=value):
            policies.load(None, {name: value})


def test_who_may_listen() -> None:
    """Denied only if everybody would be."""
    for rules, default, port, action in (
        (["in tcp *:80 deny"], "accelerate", 80, "deny"), (["in tcp *:80 deny"], "accelerate", 81, "accelerate"),
        (["in tcp 0.0.0.0/0:80 deny"], "accelerate", 80, "accelerate"),  # IPv6 is left
        (["in tcp 0.0.0.0/0:80 deny", "in tcp [::/0]:* deny"], "accelerate", 80, "deny"),
        (["in tcp 10.0.0.0/8:80 kernel"], "deny", 80, "kernel"), (["in tcp 10.0.0.0/8:80 kernel"], "deny", 81, "deny"),
        (["in tcp 10.0.0.0/8:80 deny"], "accelerate", 80, "accelerate"), (["in udp *:80 deny"], "accelerate", 80,
        "accelerate"), ):  # fmt: skip
        assert judge_port(with_rules(*rules, default=default), "tcp", port).action == action, (rules, port)


LINES = {
    "": "DIR PROTO", "out tcp *:1": "DIR PROTO", "up tcp *:1 deny": "DIR PROTO", "out sctp *:1 deny": "DIR PROTO",
    "out tcp *:1 drop": "DIR PROTO", "out tcp 1 deny": "ADDRESS:PORTS",
    "out tcp *:1 kernel errno=EPERM": "errno=NAME behind",
    "out tcp *:1 deny errno=EWHY": "errno=NAME behind", "out tcp *:1 accelerate transport=tcp": "transport=shm",
    "out udp *:1 accelerate": "kernel or deny", "out tcp *:1 deny now": "errno=NAME behind",
}  # fmt: skip


@pytest.mark.parametrize(("line", "right"), LINES.items())
def test_mistakes_in_a_line(line: str, right: str) -> None:
    with pytest.raises(PolicyError) as caught:
        with_rules(line)
    assert str(caught.value).startswith(f"-r `{line}`: wrong rule; must be ") and right in str(caught.value)


def test_a_line_that_never_applies() -> None:
    with pytest.raises(PolicyError, match=r"-r `out tcp 1.2.3.4:5 deny`: never applies, since `out tcp \*:\* kernel`"):
        with_rules("out tcp *:* kernel", "out tcp 1.2.3.4:5 deny")


def test_lines_that_overlap() -> None:
    """Partly, and decide differently: refused. What nests, is apart or decides alike is right."""
    wrong = r"-r `out tcp \*:5-15 deny`: overlaps `out tcp 1\.0\.0\.0/8:10-20 kernel`, which .*; ports 5-9,"
    with pytest.raises(PolicyError, match=wrong):
        with_rules("out tcp 1.0.0.0/8:10-20 kernel", "out tcp *:5-15 deny")
    for second in ("out tcp 2.0.0.0/8:5-15 deny", "in tcp *:5-15 deny", "out udp *:5-15 deny", "out tcp *:5-15 kernel",
                   "out tcp *:21-30 deny", "out tcp *:5-20 deny", "out tcp 0.0.0.0/0:* deny", "out tcp *:12 deny",
                   "out tcp [::/0]:5-15 deny"):
        assert len(with_rules("out tcp 1.0.0.0/8:10-20 kernel", second).rules) == 2, second


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=2, max_size=2))
def test_overlaps_against_counting(spans: list[tuple[int, int, bool]]) -> None:
    """Each of both has ports that the other has not, and some are common."""
    rules, ports = [], []
    for a, b, denies in spans:
        rules.append(parse_line(f"out tcp *:{min(a, b)}-{max(a, b)} {'deny' if denies else 'kernel'}"))
        ports.append(set(range(min(a, b), max(a, b) + 1)))
    partly = bool(ports[0] & ports[1] and ports[0] - ports[1] and ports[1] - ports[0])
    assert (crossing(rules, 1) is not None) == (partly and spans[0][2] != spans[1][2])


def test_io_uring_and_denials_do_not_go_together() -> None:
    with pytest.raises(PolicyError, match="io_uring is allowed"):
        policies.effective(Policy(), "x", ["io_uring=allow"], rules=["out tcp *:1 deny"])
    with pytest.raises(PolicyError, match="with strict"):
        policies.effective(Policy(), "x", ["io_uring=allow", "strict=on"])


@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=7
    )
)
def test_coverage_against_counting(spans: list[tuple[int, int, int, int]]) -> None:
    """Unreachable is what no point of a small world reaches."""
    rules = []
    for a, b, c, d in spans:
        box = Box(4, min(a, b), max(a, b), min(c, d), max(c, d))
        rules.append(policies.model.Rule("out", "tcp", (box,), "deny"))
    last = rules[-1].boxes[0]
    earlier = [rule.boxes[0] for rule in rules[:-1]]
    left = any(
        not any(box.low <= x <= box.high and box.first <= y <= box.last for box in earlier)
        for x in range(last.low, last.high + 1) for y in range(last.first, last.last + 1)
    )  # fmt: skip
    assert (shadowed_by(rules, len(rules) - 1) is None) == left


@given(st.text(max_size=40))
def test_any_text_is_a_pattern_or_an_error(text: str) -> None:
    for parse in (pattern, parse_line):
        try:
            parse(text)
        except ValueError as right:
            assert str(right)


def test_learned_policy_is_the_smallest(tmp_path: Path) -> None:
    seen = [
        learn.Seen("out", "tcp", ipaddress.ip_address(f"10.0.0.{last}"), port)
        for last in (0, 1, 2, 3)
        for port in (80, 81)
    ]
    seen += [learn.Seen("out", "tcp", ipaddress.ip_address("::1"), 90), learn.Seen("in", "tcp", None, 443)]
    seen += [
        learn.Seen("in", "tcp", ipaddress.ip_address("127.0.0.1"), 40000, True),
        learn.Seen("out", "tcp", ipaddress.ip_address("127.0.0.1"), 40000),
    ]
    text = learn.write({"/opt/a*b": seen}, (32768, 60999), "/bin/sh")
    rules = [line.strip(" -") for line in text.splitlines() if "dir:" in line]
    assert rules == [
        '{dir: in, tcp: "127.0.0.1:32768-60999", action: accelerate}',
        '{dir: out, tcp: "127.0.0.1:32768-60999", action: accelerate}',
        '{dir: in, tcp: "127.0.0.1:443", action: accelerate}',
        '{dir: out, tcp: "10.0.0.0/30:80-81", action: accelerate}', '{dir: out, tcp: "[::1]:90", action: accelerate}',
    ]  # fmt: skip
    file = tmp_path / "p.yaml"
    file.write_text(text)
    policy = Policy((read_layer(str(file)),))
    assert policies.effective(policy, "/opt/a*b", []).accelerate
    many = [learn.Seen("out", "tcp", ipaddress.ip_address(f"10.{n}.{n}.1"), 80) for n in range(0, 200, 2)]
    many += [learn.Seen("out", "tcp", ipaddress.ip_address(f"11.0.{n // 100}.{n % 100 * 2}"), 80) for n in range(300)]
    file.write_text(learn.write({"/opt/x": many}, (32768, 60999), "x"))
    assert (
        judge(
            policies.effective(Policy((read_layer(str(file)),)), "/opt/x", []), "out", "tcp", packed("11.0.2.198"), 80
        ).action
        == "accelerate"
    )
    assert not policies.effective(policy, "/opt/acb", []).accelerate


def sdrun(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": "/usr/bin:/bin", "XDG_CONFIG_HOME": "/nonexistent"}
    return subprocess.run([SDRUN, *words], env={**base, **env}, capture_output=True, text=True, timeout=60, check=False)


def test_check_and_print(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(EXAMPLE)
    bad.write_text(EXAMPLE.replace("*:25", "25"))
    checked = sdrun("--check", "--policy", good)
    assert checked.returncode == 0 and f"ok: {good}" in checked.stdout
    assert f"{good}:8: note: `out tcp *:53 kernel` overlaps `out tcp 10.0.0.0/8:* accelerate`" in checked.stdout
    for words in (("--check",), ("--print", "true"), ("--", "touch", tmp_path / "started")):
        done = sdrun("--policy", bad, *words)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"sdrun: {bad}:9:25: `tcp` is `25`; must be ADDRESS:PORTS")
    assert not (tmp_path / "started").exists()
    shown = sdrun(
        "--print", "--policy", good, "--set", "spin_us=7", "-r", "out tcp *:1 deny", "true", SDRUN_SET="ring=4KiB"
    ).stdout
    assert "program: /usr/bin/true" in shown or "program: /bin/true" in shown
    for key, value, source in (
        ("spin_us", "7", "--set"),
        ("ring", "4KiB", "SDRUN_SET"),
        ("upgrade", "after_ops:8", "built-in"),
        ("action", "accelerate", f"{good}:2"),
    ):
        line = next(line for line in shown.splitlines() if line.startswith(f"{key}:"))
        assert value in line and line.endswith(f"# {source}")
    assert "1. out tcp *:1 deny" in shown


def test_learn_then_hold(tmp_path: Path, sd_env: dict[str, str]) -> None:
    """A run is learned; what it did is allowed then, and what it did not do is not."""
    code = (
        "import socket, sys, subprocess\n"
        "l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); l.accept()\n"
        "socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "u.sendto(b'x', ('127.0.0.1', int(sys.argv[1])))\n"
    )
    learned = tmp_path / "learned.yaml"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [str(sock.getsockname()[1]) for sock in (one, other)]

        def run(port: str, *options: str | Path) -> int:
            words = [SDRUN, *options, "--", "sh", "-c", 'exec "$@"', "sh", sys.executable, "-c", code, port]
            return subprocess.run(words, env=sd_env, timeout=60, check=False, stderr=subprocess.DEVNULL).returncode

        assert run(ports[0], "--learn", learned) == 0
        for _ in range(200):
            if learned.exists():
                break
            subprocess.run(["sleep", "0.05"], check=True)
        assert f'{{dir: out, udp: "127.0.0.1:{ports[0]}", action: kernel}}' in learned.read_text()
        assert run(ports[0], "--policy", learned) == 0
        # The range of listening ports that the kernel chooses is allowed, and its neighbour's lies in it; not for UDP.
        assert run(ports[1], "--policy", learned) == 1


def test_editors_find_the_schema() -> None:
    assert (ROOT / "policies" / "schema.json").is_file()
    for file in (ROOT / "policies" / "apps").glob("*.yaml"):
        assert file.read_text().startswith("# yaml-language-server: $schema=../schema.json\n"), file.name
