# SPDX-License-Identifier: Apache-2.0
"""sdss, sdstat and sdtop: what they say is compared with what the programs have done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sdlib import abi
from tests.harness import ROOT, SDRUN, Program, Runner, free_port
from tests.tools.support import BIN, SERVER, ask, python, rows, wait_for
from tools.observe.view import path_of

MONITOR_METRICS = {"sdmonitor_clients", "sdmonitor_open_offers", "sdmonitor_segments", "sdmonitor_memory_bytes",
                   "sdmonitor_memory_limit_bytes", "sdmonitor_user_memory_bytes", "sdmonitor_events_total",
                   "sdmonitor_start_time_seconds", "sdmonitor_silent_clients"}
"""All of them: tests/monitor/test_metrics.py asks the monitor."""
SIZE, UNREAD = 16, 1000

# Sixteen bytes there and back until the file of the last argument is there, then what the server leaves unread, then
# nothing more until it is killed.
CLIENT = f"""
import os, signal, socket, sys, time
conn = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
rounds = 0
while not os.path.exists(sys.argv[2]):
    rounds += 1
    time.sleep(0.001)
    conn.sendall(b"x" * {SIZE})
    got = 0
    while got < {SIZE}: got += len(conn.recv({SIZE} - got))
conn.sendall(b"stop" + b"x" * 12)
time.sleep(0.3)
conn.sendall(b"y" * {UNREAD})
print("rounds", rounds, flush=True)
signal.pause()
"""

# Sixteen bytes there and back by one thread, with a selector; so often, and then silence.
MANY = """
import selectors, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
with getattr(selectors, sys.argv[2])() as waiting:
    waiting.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is listener:
                waiting.register(listener.accept()[0], selectors.EVENT_READ)
            else:
                key.fileobj.sendall(key.fileobj.recv(64))
"""
TALK = """
import signal, socket, sys
conn = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
for _ in range(int(sys.argv[2])):
    conn.sendall(b"x" * 16)
    assert len(conn.recv(64)) == 16
print("said", flush=True)
signal.pause()
"""

# In the middle of it, a child closes its copy.
FORKING = """
import os, socket, sys
conn = socket.create_server(("127.0.0.1", int(sys.argv[1]))).accept()[0]
for turn in range(400):
    conn.sendall(conn.recv(64))
    if turn == 200:
        if not os.fork():
            conn.close()
            os._exit(0)
        os.wait()
conn.recv(64)
"""


class Scene:
    """A server under sdrun; clients under sdrun, under sdrun --no-accel and plain. All have said what they had to."""

    def __init__(self, shm: Runner, native: Runner) -> None:
        self.env, self.port = shm.env, str(free_port())
        self.server = shm.start(*python(SERVER, self.port)).listening(int(self.port))
        enough = shm.folder / "enough"
        self.fast = shm.start(*python(CLIENT, self.port, str(enough)))
        self.plain = native.start(*python(CLIENT, self.port, str(enough)))
        shm.options = ["--no-accel"]
        self.slow = shm.start(*python(CLIENT, self.port, str(enough)))
        shm.options = []
        self.fast.until(self._settled, "a connection is on shared memory, three are made")
        enough.touch()
        for client in (self.fast, self.plain, self.slow):
            client.until(lambda client=client: b"rounds" in client.stdout, "all is sent")  # type: ignore[misc]

    def _settled(self) -> bool:
        found = rows(self.env, f"dport = :{self.port} or sport = :{self.port}")
        return len(found) == 5 and [row["path"] for row in found if not row["reason"]] == ["shm", "shm"]

    def of(self, program: Program) -> dict[str, Any]:
        """The client's end of its connection."""
        [row] = [row for row in rows(self.env, f"dport = :{self.port}") if row["users"][0]["pid"] == program.pid]
        return row

    def other(self, program: Program) -> dict[str, Any]:
        """The server's end of it."""
        [row] = [row for row in rows(self.env, f"sport = :{self.port}")
                 if program.pid in [user["pid"] for user in row["peer_users"]]]
        return row


@pytest.fixture
def scene(shm: Runner, native: Runner) -> Scene:
    return Scene(shm, native)


def test_what_everybody_says(scene: Scene) -> None:
    """One scene, since it takes a second to set up: connections, reasons, bytes, queues, counters."""
    # What supervisors say may be a moment old (inspection.py).
    wait_for(lambda: scene.of(scene.fast)["ring"]["tx_queued"] == UNREAD)
    wait_for(lambda: scene.other(scene.fast)["ring"]["rx_queued"] == UNREAD)
    end, other = scene.of(scene.fast), scene.other(scene.fast)
    assert (end["path"], end["reason"], end["state"]) == ("shm", "", "ESTAB"), end
    assert (end["local"], end["peer"]) == (other["peer"], other["local"])
    assert end["peer"] == {"host": "127.0.0.1", "port": int(scene.port)}
    assert end["peer_users"][0]["pid"] == scene.server.pid and other["users"][0]["pid"] == scene.server.pid
    sent, got = end["bytes"], other["bytes"]
    assert sent["bytes_shm_tx"] == got["bytes_shm_rx"] + UNREAD
    assert sent["bytes_shm_rx"] == got["bytes_shm_tx"]
    rounds = int(scene.fast.stdout.split()[1])
    assert sent["bytes_shm_tx"] + sent["bytes_shm_rx"] + sent["bytes_tcp"] == 2 * rounds * SIZE + 16 + UNREAD
    assert other["ring"]["rx_queued"] == end["ring"]["tx_queued"] == UNREAD
    assert other["receive_queue"] - UNREAD in (0, 1)  # a doorbell may lie in the kernel's queue

    plain = scene.other(scene.plain)
    assert (plain["path"], plain["reason"]) == ("tcp", "peer-not-under-sdrun"), plain
    assert plain["receive_queue"] == UNREAD
    assert (scene.of(scene.slow)["path"], scene.of(scene.slow)["reason"]) == ("tcp", "no-accel")
    [listener] = rows(scene.env, "-l", f"sport = :{scene.port}")
    assert (listener["state"], listener["users"][0]["pid"]) == ("LISTEN", scene.server.pid)
    everything = rows(scene.env, "-a", f"sport = :{scene.port} or dport = :{scene.port}")
    assert len(everything) == 6  # the listener, three ends here, two there: the plain client is not ours
    text = ask(scene.env, "sdss", "-tnp", f"dport = :{scene.port} and path shm")
    assert f"127.0.0.1:{scene.port}" in text and f"pid={scene.server.pid}" in text and text.count("\n") == 2

    said = json.loads(ask(scene.env, "sdstat", "--json", "-p", str(scene.fast.pid)))
    [program] = said["programs"]
    assert program["counters"]["bytes_shm_tx"] == sent["bytes_shm_tx"] and program["counters"]["switches_tx"] == 1
    assert all(line["notifications"] > 0 and line["errors"] == 0 for line in said["supervisors"])
    assert {index: times for index, times in enumerate(program["sizes"]["sent"]) if times} == {4: rounds + 1, 10: 1}
    counts = end["counts"]
    assert counts == {name: program["counters"].get(name, counts[name]) for name in counts}, "it has no other"
    assert (counts["messages_tx"], counts["messages_rx"]) == (rounds + 2, sum(program["sizes"]["received"]))
    assert counts["messages_rx"] == other["counts"]["messages_tx"] and counts["bells_tx"] >= other["counts"]["bells_rx"]
    assert re.search(rf"<= 16 +{rounds + 1}\b", ask(scene.env, "sdstat", "--sizes", "-p", str(scene.fast.pid)))
    then = json.loads(ask(scene.env, "sdstat", "--json", "--connections", "-i", "0.1", "-c", "1", "-p",
                          str(scene.fast.pid)))
    [same] = then["connections"]
    assert set(same["counts"].values()) == set(same["bytes"].values()) == {0}, "nor on its connection"
    assert not any(value for name, value in then["programs"][0]["counters"].items() if name not in abi.GAUGES), \
        "nobody has done anything meanwhile"
    _metrics(scene, sent, rounds)
    screen = ask({**scene.env, "COLUMNS": "200", "LINES": "60"}, "sdtop", "-i", "0.2", "-n", "1")
    assert str(scene.fast.pid) in screen and f"127.0.0.1:{scene.port}" in screen
    only = ask({**scene.env, "COLUMNS": "200", "LINES": "60"}, "sdtop", "-i", "0.2", "-n", "1", "reason no-accel")
    assert " no-accel " in only and only.count(f"127.0.0.1:{scene.port}") == 1  # the other end has another reason
    _details(scene, sent, rounds)


def _details(scene: Scene, sent: dict[str, int], rounds: int) -> None:
    """Bytes below a connection, sums of all, columns, latencies, and rates of what goes by TCP."""
    mine = f"dport = :{scene.port} and pid {scene.fast.pid}"
    said = ask(scene.env, "sdss", "-tniH", mine)
    assert f"shm_sent:{sent['bytes_shm_tx']} shm_received:{sent['bytes_shm_rx']} tcp:{sent['bytes_tcp']} " in said
    assert f" messages_sent:{rounds + 2} " in said and re.search(r" bells_sent:\d+ .* spins_won:\d+ ring:", said)
    assert f"unread_by_peer:{UNREAD}" in said and said.count("\n") == 2
    assert ask(scene.env, "sdss", "-tniHO", mine).count("\n") == 1
    sums = ask(scene.env, "sdss", "-s", f"dport = :{scene.port} or sport = :{scene.port}")
    assert "Connections: 5 (shm 2, rdma 0, tcp 3)" in sums and "Listeners: 1;" in sums
    assert "tcp 2: peer-not-under-sdrun" in sums and "tcp 1: no-accel" in sums
    head, line, *rest = ask(scene.env, "sdstat", "--connections", "-p", str(scene.fast.pid)).splitlines()
    column = dict(zip(head.partition("  not accelerated")[0].split()[2:], line.split()[2:], strict=True))
    assert {"msgs-tx", "bells", "parks", "spins", "won", "switches", "patched", "trapping", "traps"} <= column.keys()
    assert column["msgs-tx"] == str(rounds + 2) and column["switches"] == "1"
    [head] = [line for line in rest if line.split()[:1] == ["connection"]]
    [mine] = [line for line in rest if f"127.0.0.1:{scene.port} " in line and " shm " in line]
    of_it = dict(zip(head.split()[1:-1], mine.split()[3:], strict=False))
    assert of_it["path"] == "shm"
    assert all(of_it[name] == column[name] for name in ("msgs-tx", "msgs-rx", "bells", "parks", "spins", "won")), of_it
    assert all(re.search(r"notifications \d+, .*longest \d+ us; offers to the monitor", line)
               for line in rest if line.startswith("supervisor")), rest


@pytest.mark.parametrize("waits", ["SelectSelector", "PollSelector", "EpollSelector"])
def test_who_waits_for_many_counts_for_each_that_it_looked_at(shm: Runner, waits: str) -> None:
    """A set of three connections: two that talk, and one that says a few words and no more."""
    port = str(free_port())
    server = shm.start(*python(MANY, port, waits)).listening(int(port))
    quiet = shm.start(*python(TALK, port, "3"))
    talking = [shm.start(*python(TALK, port, "2000")) for _ in range(2)]
    for client in (quiet, *talking):
        client.until(lambda client=client: b"said" in client.stdout, "all is said")  # type: ignore[misc]
    quiet.until(lambda: all(row["counts"]["messages_rx"] for row in rows(shm.env, f"sport = :{port}")),
                "the supervisor tells of all three: an answer is kept for 50 ms")
    # In this order: who waits goes on to spin and to park between the two questions.
    ends = {row["peer_users"][0]["pid"]: row["counts"] for row in rows(shm.env, f"sport = :{port}")}
    [program] = json.loads(ask(shm.env, "sdstat", "--json", "-p", str(server.pid)))["programs"]
    assert [ends[client.pid]["messages_rx"] for client in (quiet, *talking)] == [3, 2000, 2000]
    assert sum(end["messages_tx"] for end in ends.values()) == sum(program["sizes"]["sent"])
    for end in ends.values():
        assert end["parks"] <= program["counters"]["parks"]
        assert end["spins_won"] <= end["spins"] <= program["counters"]["spins"]
    for name in ("bells_tx", "bells_rx"):
        assert sum(end[name] for end in ends.values()) == program["counters"][name]
    waited = [ends[client.pid]["parks"] + ends[client.pid]["spins"] for client in talking]
    assert min(waited) > 0, ends


def test_another_process_that_closes_a_connection_leaves_its_counts(shm: Runner) -> None:
    port = str(free_port())
    shm.start(*python(FORKING, port)).listening(int(port))
    client = shm.start(*python(TALK, port, "400"))
    client.until(lambda: b"said" in client.stdout, "all is said")
    for which in (f"sport = :{port}", f"dport = :{port}"):
        client.until(lambda which=which: rows(shm.env, which)[0]["bytes"]["bytes_tcp"] is not None,  # type: ignore[misc]
                     "the supervisor tells of it: an answer is kept for 50 ms")
        [end] = rows(shm.env, which)
        carried = end["bytes"]
        assert carried["bytes_shm_tx"] + carried["bytes_shm_rx"] + carried["bytes_tcp"] == 400 * 2 * 16, end


def test_rates_of_what_goes_by_tcp_are_the_kernels(shm: Runner) -> None:
    """Connections that the library leaves alone are counted by the kernel; one that is idle is told to be so."""
    port = str(free_port())
    shm.options = ["--no-accel"]
    shm.start(*python(SERVER, port)).listening(int(port))
    client = shm.start(*python(CLIENT, port, str(shm.folder / "never")))
    client.until(lambda: len(rows(shm.env, f"dport = :{port}")) == 1, "it is connected")
    [row] = rows(shm.env, "--rates", "0.5", f"dport = :{port}")
    assert row["path"] == "tcp" and row["bytes"]["bytes_shm_tx"] in (None, 0)
    assert row["rates"]["tx"] > 100 and 0.5 < row["rates"]["tx"] / row["rates"]["rx"] < 2, row["rates"]
    assert re.search(r"\d+(B|kB)/s +\d+(B|kB)/s", ask(shm.env, "sdss", "-n", "--rates", "0.2", f"dport = :{port}"))


def test_who_reads_only_the_beginning_is_no_error(shm: Runner) -> None:
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{BIN}/sdss -an | true; {BIN}/sdstat | true"], env=shm.env,
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def _metrics(scene: Scene, sent: dict[str, int], rounds: int) -> None:
    serving = subprocess.Popen([BIN / "sdstat", "--listen", "0"], env=scene.env, stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None
        with urllib.request.urlopen(serving.stdout.readline().strip(), timeout=30) as answer:
            text = answer.read().decode()
    finally:
        serving.terminate()
        assert serving.wait(30) == 0
        serving.stdout.close()  # type: ignore[union-attr]
    families = list(text_string_to_metric_families(text))
    samples = {(sample.name, sample.labels.get("root_pid"), sample.labels.get("path")): sample.value
               for family in families for sample in family.samples}
    own = str(scene.fast.pid)
    assert samples["sdrun_bytes_shm_tx_total", own, None] == sent["bytes_shm_tx"]
    assert samples["sdrun_open_connections", own, "shm"] == 1
    assert samples["sdrun_supervisors", None, None] >= 3
    kinds = {family.name: family.type for family in families}
    assert all(kinds[f"sdrun_{name.removesuffix('_total')}"] == ("gauge" if name in abi.GAUGES else "counter")
               for name in abi.COUNTERS)
    [small, whole] = [sample.value for family in families for sample in family.samples
                      if sample.name == "sdrun_message_bytes_bucket" and sample.labels["root_pid"] == own
                      and sample.labels["direction"] == "sent" and sample.labels["le"] in ("16.0", "+Inf")]
    assert (small, whole) == (rounds + 1, rounds + 2)
    # The dashboard asks for nothing that neither we nor the monitor say.
    dashboard = (ROOT / "docs" / "grafana.json").read_text()
    asked = set(re.findall(r"\b(?:sdrun|sdmonitor)_\w+", dashboard))
    said = {family.name for family in families}  # some have no samples
    assert {re.sub("_(total|bucket)$", "", name) for name in asked if name.startswith("sdrun_")} <= said
    assert all((name.endswith("_total")) == (kinds.get(re.sub("_total$", "", name)) == "counter")
               for name in asked if name.startswith("sdrun_"))
    assert {name for name in asked if name.startswith("sdmonitor_")} <= MONITOR_METRICS and len(asked) > 10


@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace needs root")
def test_pids_of_another_namespace_are_not_taken_for_ours(native: Runner) -> None:
    port = free_port()
    native.start("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", SDRUN, "--",
                 *python(SERVER, str(port))).listening(port)

    def said() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ask(native.env, "sdss", "-a", "--json", f"sport = :{port}"))
        return found

    wait_for(lambda: said()["in_other_pid_namespaces"] == 1)
    assert said()["connections"] == []


@pytest.mark.parametrize(("tx", "rx", "path", "reason"), [
    ("shm", "shm", "shm", ""), ("rdma", "rdma", "rdma", ""), ("rdma", "tcp", "rdma", "one direction so far"),
    ("back", "shm", "shm", "one direction is back"), ("back", "back", "tcp", "quota-exhausted"),
    ("tcp", "tcp", "tcp", "policy"),
])  # fmt: skip
def test_what_carries_a_connection(tx: str, rx: str, path: str, reason: str) -> None:
    line = {"tx": tx, "rx": rx, "reason": "policy", "state": "attached"}
    assert path_of(line, ["quota-exhausted"]) == (path, reason)
