# SPDX-License-Identifier: Apache-2.0
"""`sdrun --pcap`: tshark, which knows nothing of us, must find whole TCP connections with the programs' own bytes."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdlib.wire import trees
from tests.guestbuild import Guests
from tests.harness import SDRUN
from tests.monitor.support import wait_for
from tests.trace.support import burst

# tcp.analysis.flags: anything that Wireshark finds odd in a stream, from retransmissions to segments that are missing.
FIELDS = ("tcp.srcport", "tcp.flags.str", "tcp.payload", "frame.comment", "tcp.analysis.flags", "tcp.checksum.status",
          "ip.checksum.status")
GOOD = "1"


@dataclass(frozen=True)
class Packet:
    """As tshark sees it."""

    port: str
    flags: str
    data: bytes
    comment: str
    odd: bool


# Random pieces there, their hashes back, with whatever call and size; a half-close in the end.
TALK = """
import hashlib, os, random, socket, sys, tempfile
host, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
child = os.fork()
if child == 0:
    conn, _ = listener.accept()
    whole, answered = hashlib.sha256(), b""
    while data := conn.recv(rng.choice((10, 1000, 70000))):
        whole.update(data)
        answer = hashlib.sha256(data).digest()
        conn.sendall(answer)
        answered += answer
    conn.close()
    print(hashlib.sha256(answered).hexdigest(), whole.hexdigest(), flush=True)
    os._exit(0)
client = socket.create_connection(listener.getsockname()[:2])
received = b""
with tempfile.TemporaryFile() as file:
    file.write(rng.randbytes(30000))
    for number in range(60):
        data = rng.randbytes(rng.choice((1, 8, 500, 40000)))
        if number % 20 == 7: client.sendfile(file, 5, 20000)
        elif number % 20 == 11: client.sendmsg([data[:3], data[3:]])
        else: client.sendall(data)
        if number % 4 == 0: received += client.recv(32)
client.shutdown(socket.SHUT_WR)
while data := client.recv(5000): received += data
client.close()
os.waitpid(child, 0)
"""


def packets(file: Path) -> list[Packet]:
    checks = ("-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE")
    command = ["tshark", "-r", str(file), *checks, "-T", "fields", *(word for name in FIELDS for word in ("-e", name))]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = []
    for line in text.splitlines():
        port, flags, payload, comment, analysis, *checksums = line.split("\t")
        odd = bool(analysis) or checksums[0] != GOOD or checksums[1] not in (GOOD, "")
        found.append(Packet(port, flags.replace("·", ""), bytes.fromhex(payload), comment, odd))
    return found


def stream(found: list[Packet], port: str) -> bytes:
    return b"".join(packet.data for packet in found if packet.port == port)


@pytest.mark.parametrize(("host", "upgrade"), [("127.0.0.1", "eager"), ("::1", "after_ops:20"), ("127.0.0.1", "never")])
def test_a_whole_connection(host: str, upgrade: str, tmp_path: Path, sd_env: dict[str, str]) -> None:
    """Also where it begins on TCP and moves in the middle, or never does."""
    pcap, report = tmp_path / "pcapng", tmp_path / "report"
    sdrun = map(str, (SDRUN, "--report", report, "--set", f"upgrade={upgrade}", "--set", "ring=64KiB", "--pcap", pcap))
    done = subprocess.run([*sdrun, "--", "python3", "-c", TALK, host, "7"], env=sd_env, timeout=60, check=True,
                          capture_output=True, text=True)
    answered, whole = done.stdout.split()
    carried = json.loads(report.read_text())
    assert upgrade != "never" or not carried["connections"]["shm"]
    found = packets(pcap)
    client, server = found[0].port, found[1].port
    assert [(packet.port, packet.flags) for packet in found[:3]] == [(client, "S"), (server, "AS"), (client, "A")]
    assert [packet.port for packet in found if "F" in packet.flags] == [client, server]
    assert hashlib.sha256(stream(found, client)).hexdigest() == whole
    assert hashlib.sha256(stream(found, server)).hexdigest() == answered
    assert not [packet for packet in found if packet.odd]


def test_one_end_only(tmp_path: Path, sd_env: dict[str, str]) -> None:
    """The server is in another tree, whose supervisor writes nothing: both directions are seen from here."""
    server = ("import socket\n"
              "listener = socket.create_server(('127.0.0.1', 0)); print(listener.getsockname()[1], flush=True)\n"
              "conn, _ = listener.accept()\n"
              "while data := conn.recv(100): conn.sendall(data.upper())\n")
    client = ("import socket, sys\n"
              "conn = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
              "for number in range(300): conn.sendall(b'abc%03d' % number); conn.recv(100)\n"
              "conn.shutdown(socket.SHUT_WR); conn.recv(1)\n")
    pcap = tmp_path / "pcapng"
    with subprocess.Popen([SDRUN, "--", "python3", "-c", server], stdout=subprocess.PIPE, env=sd_env) as other:
        assert other.stdout
        port = other.stdout.readline().decode().strip()
        subprocess.run([SDRUN, "--pcap", pcap, "--", "python3", "-c", client, port], env=sd_env, timeout=60, check=True)
        assert other.wait(30) == 0
    found = packets(pcap)
    own = found[0].port
    want = b"".join(b"abc%03d" % number for number in range(300))
    assert stream(found, own) == want and stream(found, port) == want.upper()
    assert not [packet for packet in found if packet.odd]
    assert sorted(packet.port for packet in found if "F" in packet.flags) == sorted([own, port])


def test_what_was_lost_is_in_the_file(guests: Guests, tmp_path: Path, sd_env: dict[str, str]) -> None:
    """The supervisor is stopped for fifty thousand bytes: a comment says how many records."""
    pcap, count = tmp_path / "pcapng", 50_000
    burst(guests("traced"), f"--pcap={pcap}", count, sd_env)
    found = packets(pcap)
    comments = [packet.comment for packet in found if packet.comment]
    assert all("records were lost before this packet" in comment for comment in comments)
    lost = sum(int(comment.split()[1]) for comment in comments)
    data = [packet for packet in found if packet.data]
    # Each byte is told by who sends it and by who receives it; one record is two lines of the ring.
    assert 0 < lost < 2 * (count + 100) and len(data) < count + 100
    assert lost >= count + 100 - len(data)


# The reader changes in the middle: a child takes over from its parent, and executes another program, which goes on.
RELAY = """
import os, socket, sys, time
if len(sys.argv) > 1:
    conn = socket.socket(fileno=int(sys.argv[1]))
else:
    listener = socket.create_server(("127.0.0.1", 0))
    if os.fork():
        conn, _ = listener.accept()
        assert conn.recv(5) == b"first" and conn.send(b"FIRST") == 5
        if os.fork():
            conn.close()
            os.wait(), os.wait()
            sys.exit(0)
        assert conn.recv(6) == b"second" and conn.send(b"SECOND") == 6
        os.set_inheritable(conn.fileno(), True)
        os.execv(sys.executable, [sys.executable, "-c", os.environ["RELAY"], str(conn.fileno())])
    client = socket.create_connection(listener.getsockname())
    for word in (b"first", b"second", b"third"):
        client.sendall(word)
        answer = b""
        while len(answer) < len(word): answer += client.recv(100)
        assert answer == word.upper()
    client.close()
    os._exit(0)
assert conn.recv(5) == b"third" and conn.send(b"THIRD") == 5
conn.recv(1)
"""


@pytest.mark.parametrize("upgrade", ["never", "eager"])
def test_a_connection_that_is_handed_on(upgrade: str, tmp_path: Path, sd_env: dict[str, str]) -> None:
    """Bytes keep their places, whichever process has sent them."""
    pcap = tmp_path / "pcapng"
    sdrun = (str(SDRUN), "--set", f"upgrade={upgrade}", "--pcap", str(pcap), "--")
    subprocess.run([*sdrun, "python3", "-c", RELAY], env={**sd_env, "RELAY": RELAY}, timeout=60, check=True)
    found = packets(pcap)
    client, server = found[0].port, found[1].port
    assert (stream(found, client), stream(found, server)) == (b"firstsecondthird", b"FIRSTSECONDTHIRD")
    assert not [packet for packet in found if packet.odd]


BACK = """
import os, socket, time
listener = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    conn, _ = listener.accept()
    while data := conn.recv(100): conn.sendall(data.upper())
    os._exit(0)
client = socket.create_connection(listener.getsockname())
client.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY
for number in range(200):
    word = b"word%03d" % number
    client.send(word, 0x4000000 if number == 100 else 0)  # MSG_ZEROCOPY: by the kernel, from then on
    answer = b""
    while len(answer) < len(word): answer += client.recv(100)
    if number == 10: time.sleep(0.3)  # it is on the ring then
client.close()
os.wait()
"""


def test_a_connection_that_moves_there_and_back(tmp_path: Path, sd_env: dict[str, str]) -> None:
    pcap, report = tmp_path / "pcapng", tmp_path / "report"
    sdrun = (str(SDRUN), "--report", str(report), "--set", "upgrade=eager", "--pcap", str(pcap), "--")
    subprocess.run([*sdrun, "python3", "-c", BACK], env=sd_env, timeout=60, check=True)
    found = packets(pcap)
    client, server = found[0].port, found[1].port
    want = b"".join(b"word%03d" % number for number in range(200))
    assert (stream(found, client), stream(found, server)) == (want, want.upper())
    assert not [packet for packet in found if packet.odd]
    carried = json.loads(report.read_text())
    assert carried["connections"]["moved_back"] or not carried["bytes"]["shm"], carried


# All of it through pipes, in pieces of three sizes; the answer is what came. How many calls have sent, and received.
SPLICE = """
import os, random, socket, sys
rng = random.Random(3)
listener = socket.create_server(("127.0.0.1", 0))
child = os.fork()
out, into = os.pipe()
calls = [0, 0]
def counted(direction, moved):
    calls[direction] += 1
    return moved
if child == 0:
    conn, _ = listener.accept()
    for left in SIZES:
        while left:
            left -= counted(1, os.splice(conn.fileno(), into, left))
            data = os.read(out, 65536)
            while data: data = data[counted(0, conn.send(data)):]
else:
    conn = socket.create_connection(listener.getsockname())
    for size in SIZES:
        os.write(into, rng.randbytes(size))
        left = size
        while left: left -= counted(0, os.splice(out, conn.fileno(), left))
        while left < size: left += counted(1, len(conn.recv(70000)))
os.write(1, b"%d %d\\n" % tuple(calls))
sys.stdin.readline()
""".replace("SIZES", str([10, 5000, 40_000] * 10))


@pytest.mark.parametrize("options", [[], ["--pcap"]], ids=["plain", "pcap"])
@pytest.mark.parametrize("upgrade", ["never", "eager"])
def test_what_is_spliced(upgrade: str, options: list[str], tmp_path: Path, sd_env: dict[str, str]) -> None:
    """The packets have its bytes, and the histogram counts each call once, whatever pieces it was carried in.

    By the same pipe first on TCP, then on the ring: the kernel's own splice changes what a pipe can do.
    """
    pcap, report = tmp_path / "pcapng", tmp_path / "report"
    words = [*options, str(pcap)] if options else []
    sdrun = [str(SDRUN), "--report", str(report), "--set", f"upgrade={upgrade}", *words, "--", "python3", "-c", SPLICE]
    with subprocess.Popen(sdrun, env=sd_env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout and program.stdin
            calls = [[int(word) for word in program.stdout.readline().split()] for _ in range(2)]
            [tree] = [tree for tree in trees.ask_all(sd_env) if tree["supervisor"]["root_pid"] == program.pid]
            program.stdin.write(b"\n\n")
            program.stdin.close()
            assert program.wait(60) == 0
        finally:
            program.kill()
    counted = [sum(tree["sizes"][name]) for name in ("sent", "received")]
    assert counted == [sum(both) for both in zip(*calls, strict=True)]
    wait_for(report.exists, "the report is written", 20)
    assert bool(json.loads(report.read_text())["bytes"]["shm"]) == (upgrade == "eager")
    if options:
        rng = random.Random(3)
        want = b"".join(rng.randbytes(size) for size in [10, 5000, 40_000] * 10)
        found = packets(pcap)
        client, server = found[0].port, found[1].port
        assert stream(found, client) == want == stream(found, server)
        assert not [packet for packet in found if packet.odd]
