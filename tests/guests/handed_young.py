# SPDX-License-Identifier: Apache-2.0
"""Gives a connection with unread bytes to a program that cannot see its ring.

Before that, as the arguments say: so many messages that are read whole; or, if less than 0, so many of which one byte
each is read, so that the connection has moved when not all of TCP's bytes are read. Then as many bytes as the second
argument says. Prints what the program has got.
"""

import array
import os
import socket
import subprocess
import sys
import tempfile
import time

TAKER = r"""
import array, socket, sys
way = socket.socket(socket.AF_UNIX); way.connect(sys.argv[1])
_, [[_, _, rights]], _, _ = way.recvmsg(1, socket.CMSG_SPACE(4))
conn = socket.socket(fileno=array.array("i", rights)[0])
got = b""
while part := conn.recv(4096): got += part
conn.sendall(b"got " + got)
"""

warm, unread = map(int, sys.argv[1:])
listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()
for _ in range(warm):
    near.sendall(b"warm")
    assert far.recv(4) == b"warm"
    far.sendall(b"k")
    assert near.recv(1) == b"k"
    time.sleep(0.02)
for _ in range(-warm):
    near.sendall(b"early")
    assert len(far.recv(1)) == 1
    far.sendall(b"k")
    assert near.recv(1) == b"k"
    time.sleep(0.02)
with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as ways:
    ways.bind(f"{folder}/way")
    ways.listen()
    taker = subprocess.Popen([sys.executable, "-I", "-c", TAKER, f"{folder}/way"])
    way, _ = ways.accept()
for number in range(unread):
    near.sendall(bytes([65 + number]))
way.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [far.fileno()]))])
far.close()
near.shutdown(socket.SHUT_WR)
answer = b""
while part := near.recv(4096):
    answer += part
taker.wait()
print(answer, flush=True)
os._exit(0)
