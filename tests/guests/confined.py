# SPDX-License-Identifier: Apache-2.0
"""A program with little memory, or locked memory, and a connection to itself: confined.py HOW FOLDER.

HOW: `locked`, mlockall(MCL_FUTURE) before the first socket; `small`, RLIMIT_AS of a gigabyte; `free`, neither.
After some exchanges it makes FOLDER/ready, waits for FOLDER/stop, and sends itself what TCP's buffers hold in any case.
"""

import ctypes
import os
import resource
import socket
import sys
import time

HOW, FOLDER = sys.argv[1:]
MCL_FUTURE = 2
if HOW == "locked":
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_FUTURE):
        sys.exit(f"mlockall: {os.strerror(ctypes.get_errno())}")
elif HOW == "small":
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

listener = socket.create_server(("127.0.0.1", 0))
here = socket.create_connection(listener.getsockname())
there, _ = listener.accept()
for _ in range(100):
    here.sendall(b"ping")
    assert there.recv(4) == b"ping"
    there.sendall(b"pong")
    assert here.recv(4) == b"pong"
open(f"{FOLDER}/ready", "w").close()
while not os.path.exists(f"{FOLDER}/stop"):
    time.sleep(0.01)
data = os.urandom(200_000)
here.sendall(data)
got = b""
while len(got) < len(data):
    got += there.recv(1 << 20)
print("whole" if got == data else "different")
