# SPDX-License-Identifier: Apache-2.0
"""The monitor as a service: memory limits, reload, drain, restart, questions, what systemd hears."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.desk import Desk
from monitor.ledger import Ledger
from monitor.match import Address, Key, Matcher, Offer, Verdict
from sdlib.wire import Answered, Asked, Lost, MonitorClient, Paired, Part, Pending, Refused, Reload, messages, papers
from sdlib.wire.messages import Code, Query
from sdlib.wire.segment import segment_bytes
from tests.harness import ROOT
from tests.monitor.support import RING, Link, MonitorProcess, Raw, readable

SEGMENT = segment_bytes(RING)


def pair(one: MonitorClient, other: MonitorClient, link: Link, ids: tuple[int, int] = (1, 2)) -> tuple[int, int]:
    """Two memfds of one segment."""
    assert isinstance(one.offer(link.near.fileno(), ids[0], RING, 5), Pending)
    answer = other.offer(link.far.fileno(), ids[1], RING, 5)
    assert isinstance(answer, Paired), answer
    assert readable(one)
    (event,) = one.events()
    assert isinstance(event, Paired)
    return event.memfd, answer.memfd


def status(monitor: MonitorProcess) -> dict[str, object]:
    with closing(monitor.client()) as asker:
        asker.query(Query.STATUS)
        while readable(asker):
            for event in asker.events():
                if isinstance(event, Answered):
                    return papers.read(event.memfd)
    raise AssertionError("no answer")


# ------------------------------------------------------------------- memory


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1), st.integers(1, 3), st.booleans()),
        max_size=40,
    )
)
def test_ledger_against_a_list(steps: list[tuple[int, int, int, int, bool]]) -> None:
    """Sums are those of the segments that are held at the end."""
    ledger = Ledger(1 << 40, 1 << 40)
    held: dict[tuple[int, int], tuple[int, int]] = {}
    for client, name, uid, inode, take in steps:
        if take:
            ledger.hold(client, name, uid, inode, inode * 100)
            held[client, name] = (inode, uid)
        else:
            ledger.release(client, name)
            held.pop((client, name), None)
    assert ledger.total == sum(inode * 100 for inode in {inode for inode, _ in held.values()})
    for uid in (0, 1):
        assert ledger.of_uid[uid] == sum(inode * 100 for inode, owner in set(held.values()) if owner == uid)
    for client in range(3):
        ledger.drop_client(client)
    assert (ledger.total, len(ledger), any(ledger.of_uid.values())) == (0, 0, False)


@pytest.mark.parametrize("option", ["--max-memory", "--max-memory-per-user"])
def test_used_up_memory_is_refused_to_both_and_comes_back(tmp_path: Path, option: str) -> None:
    monitor = MonitorProcess(tmp_path, option, str(SEGMENT + 1))
    links = [Link(), Link()]
    with closing(monitor.client()) as one, closing(monitor.client()) as other:
        for memfd in pair(one, other, links[0]):
            os.close(memfd)
        assert isinstance(one.offer(links[1].near.fileno(), 3, RING, 5), Pending)
        refused = other.offer(links[1].far.fileno(), 4, RING, 5)
        assert isinstance(refused, Refused) and refused.code == Code.MEMORY
        assert readable(one)
        assert [(event.offer_ids, event.code) for event in one.events() if isinstance(event, Lost)] == [
            ((3,), Code.MEMORY)
        ]
        one.release(1)
        assert status(monitor)["memory"] == SEGMENT, "the other end still has it"
        other.release(2)
        assert status(monitor)["memory"] == 0
        for memfd in pair(one, other, links[1], (5, 6)):
            os.close(memfd)
    assert status(monitor)["segments"] == 0, "clients that go hold nothing"
    for link in links:
        link.close()
    monitor.close()


def test_a_new_monitor_is_told_what_is_held(tmp_path: Path) -> None:
    monitor = MonitorProcess(tmp_path)
    link = Link()
    with closing(monitor.client()) as one, closing(monitor.client()) as other:
        memfds = pair(one, other, link)
    monitor.kill()
    monitor.start()
    with closing(monitor.client()) as one, closing(monitor.client()) as other:
        one.hold(1, memfds[0])
        other.hold(2, memfds[1])
        found = status(monitor)
        assert (found["segments"], found["memory"], found["memory_by_user"]) == (
            1,
            SEGMENT,
            {str(os.geteuid()): SEGMENT},
        )
        one.release(1)
        other.release(2)
        assert status(monitor)["memory"] == 0
    monitor.close()
    link.close()


def test_holding_what_is_no_segment_ends_the_client(monitor: MonitorProcess, raw: Callable[..., Raw]) -> None:
    for fd in (os.memfd_create("x"), os.open("/dev/null", os.O_RDWR), papers.write({})):
        client: Raw = raw()
        client.say(messages.Hold(1), fd)
        assert client.hears_reject().code == Code.PROTOCOL
        os.close(fd)
    assert status(monitor)["memory"] == 0


def test_users_that_may_be_paired() -> None:
    a, b = Address(b"\0" * 15 + b"\1", 0, 1), Address(b"\0" * 15 + b"\1", 0, 2)
    for pairs, verdict in ((frozenset({frozenset({7, 8})}), Verdict.PAIRED), (frozenset(), Verdict.REFUSED)):
        matcher = Matcher(9, 9, pairs)
        matcher.offer(Offer(1, 1, 7, 100, Key(0, a, b), RING))
        assert matcher.offer(Offer(2, 1, 8, 101, Key(0, b, a), RING)).verdict is verdict


# ------------------------------------------------------- reload, drain, restart


@pytest.mark.parametrize("how", ["signal", "query"])
def test_reload_reaches_every_client(monitor: MonitorProcess, how: str) -> None:
    with closing(monitor.client()) as one, closing(monitor.client()) as other:
        if how == "signal":
            monitor.process.send_signal(signal.SIGHUP)
        else:
            with closing(monitor.client()) as asker:
                asker.query(Query.RELOAD)
                assert readable(asker)
        for client in (one, other):
            assert readable(client) and client.events() == [Reload()]
            assert client.alive
    assert monitor.process.poll() is None


@pytest.mark.parametrize("how", ["signal", "query"])
def test_leaving_sends_what_waits(monitor: MonitorProcess, how: str) -> None:
    """A client that was behind with reading still gets its pairings, then CLOSING."""
    links = [Link() for _ in range(100)]
    lazy, busy = monitor.client(), monitor.client()
    for number, link in enumerate(links):
        assert isinstance(lazy.offer(link.near.fileno(), number, RING, 5), Pending)
    for number, link in enumerate(links):
        answer = busy.offer(link.far.fileno(), number, RING, 5)
        assert isinstance(answer, Paired)
        os.close(answer.memfd)
    if how == "signal":
        monitor.process.send_signal(signal.SIGTERM)
    else:
        busy.query(Query.DRAIN)
    paired = []
    while lazy.alive:
        assert readable(lazy)
        for event in lazy.events():
            if isinstance(event, Paired):
                paired.append(event.offer_id)
                os.close(event.memfd)
    assert sorted(paired) == list(range(100))
    assert monitor.process.wait(10) == 0
    for client in (lazy, busy):
        client.close()
    for link in links:
        link.close()


def test_questions_are_answered_by_the_others(monitor: MonitorProcess) -> None:
    with closing(monitor.client()) as one, closing(monitor.client()) as silent, closing(monitor.client()) as asker:
        asker.query(Query.CONNECTIONS)
        assert readable(one)
        (asked,) = one.events()
        assert isinstance(asked, Asked)
        paper = papers.write({"connections": [{"state": "shm"}]})
        one.tell(asked.ask_id, paper)
        one.tell(asked.ask_id, paper)  # again: ignored
        os.close(paper)
        got: list[object] = []
        while not got or not isinstance(got[-1], Answered):
            assert readable(asker)
            got += asker.events()
        part, answer = got
        assert isinstance(part, Part) and isinstance(answer, Answered)
        assert (part.pid, papers.read(part.memfd)) == (os.getpid(), {"connections": [{"state": "shm"}]})
        assert (answer.code, answer.missing) == (0, 1)
        assert papers.read(answer.memfd)["pid"] == monitor.process.pid
        assert silent.alive


def test_desk_forgets_who_goes() -> None:
    desk = Desk()
    number = desk.ask(1, {2, 3}, 0.0)
    desk.drop_client(2)
    assert desk.done(0.5) == []
    assert desk.told(3, number) == 1 and desk.told(3, number) is None
    assert desk.done(0.5) == [(1, 0)] and desk.done(9) == []
    desk.ask(4, {5}, 0.0)
    desk.drop_client(4)
    assert desk.done(9) == []
    desk.ask(6, {7}, 0.0)
    assert desk.done(2.0) == [(6, 1)]


def test_papers_are_not_trusted() -> None:
    assert papers.read(papers.write({"a": 1})) == {"a": 1}
    loose = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(loose, b"{}")
    assert papers.read(loose) == {}
    read_end, write_end = os.pipe()
    assert papers.read(read_end) == {}, "does not wait"
    os.close(write_end)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_only_root_and_its_own_user_rule_it() -> None:
    """Also: a user hears of its own clients only."""
    folder = Path(tempfile.mkdtemp(prefix="sdopen-"))  # pytest's own are closed to others
    folder.chmod(0o755)
    monitor = MonitorProcess(folder)
    os.chmod(monitor.path, 0o666)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "import os; os.setuid(65534)\n"
        "from sdlib.wire import MonitorClient, Answered, papers\nfrom sdlib.wire.messages import Query\nimport select\n"
        "for what in (3, 4, 1):\n"
        "    client = MonitorClient.open(sys.argv[1], spawn=False); client.query(Query(what))\n"
        "    select.select([client.fileno()], [], [], 5); (event,) = client.events()\n"
        "    print(event.code, papers.read(event.memfd)['clients'] == [{'pid': os.getpid(), 'uid': 65534}])\n"
        "    client.close()\n"
    )
    with closing(monitor.client()):
        command: list[str | Path] = [sys.executable, "-c", code, monitor.path, ROOT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == f"{Code.FORBIDDEN} True\n{Code.FORBIDDEN} True\n0 True\n", done.stderr
    assert monitor.process.poll() is None
    monitor.close()
    shutil.rmtree(folder)


# ----------------------------------------------------------------- as a service


def test_systemd_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monitor = MonitorProcess(tmp_path, "--log", "json")
        assert manager.recv(100) == b"READY=1"
        monitor.process.send_signal(signal.SIGHUP)
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(100) == b"READY=1"
        assert monitor.kill(signal.SIGTERM) == 0
        assert manager.recv(100) == b"STOPPING=1"
    events = [json.loads(line)["event"] for line in monitor.log.read_text().splitlines()]
    assert [name for name in events if name in ("listening", "reload", "leaving")] == ["listening", "reload", "leaving"]


@pytest.mark.parametrize("unit", sorted((ROOT / "monitor" / "systemd").glob("*.service")), ids=lambda unit: unit.stem)
def test_units_are_good(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/sdrun", str(ROOT)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60, check=False
    )
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not about, done.stderr
