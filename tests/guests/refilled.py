# SPDX-License-Identifier: Apache-2.0
"""Two programs, of which one's connection has been refilled (sdtrace/refill.py); both may be attached afterwards.

refilled.py server | client PORT: at each SIGUSR1 it makes exchanges, and prints how many.
"""

import os
import signal
import socket
import sys
import time

from sdtrace.refill import End, Impossible, check, refill

ROUNDS = 300
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
role = sys.argv[1]
if role == "server":
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sock, _ = listener.accept()
else:
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[2])))


def exchange(first: bool) -> None:
    """Both sides know what comes."""
    for number in range(ROUNDS):
        text = b"%06d" % number * (1 + number % 50)
        if first:
            sock.sendall(text)
        assert sock.recv(len(text), socket.MSG_WAITALL) == text, number
        if not first:
            sock.sendall(text)


exchange(role == "client")
if role == "server":
    time.sleep(0.2)  # bytes that are not acknowledged are counted by one counter of two: then its place is unknown
    local, peer = sock.getsockname(), sock.getpeername()
    with socket.socket(fileno=os.dup(sock.fileno())) as ours:
        try:
            check(ours)
        except Impossible:
            print("refused", flush=True)
            signal.pause()
        refill(ours, b"put in front", local, peer, End.OPEN, shut=False, lives=True)
    assert sock.recv(100) == b"put in front"
print("ready", flush=True)
while signal.sigwait({signal.SIGUSR1, signal.SIGTERM}) == signal.SIGUSR1:
    exchange(role == "client")
    print(ROUNDS, flush=True)
