# SPDX-License-Identifier: Apache-2.0
"""Two processes of different sessions talk on one CPU, or `apart`: each message finds its reader asleep.

epoll, poll: what they wait in; recv: the client in recv itself. pipe: the server also waits for a pipe, to which
somebody writes while it sleeps on the ring. asked: the server asks a third process through pipes for each answer.
killed: the client is killed then; closed, shut: it ends. Apart, an answer takes longer than anybody spins.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

WORK_S = 0.0001
how, apart = sys.argv[1], sys.argv[2:] == ["apart"]
ROUNDS = 500 if apart else 2000


def waiter(*files: int, briefly: bool = False) -> Callable[[], list[int]]:
    poll = select.poll() if how == "poll" else select.epoll()
    for fd in files:
        poll.register(fd, select.POLLIN)
    if briefly:
        return lambda: [fd for fd, _ in poll.poll(0.003)]
    return lambda: [fd for fd, _ in poll.poll()]


def connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setblocking(how == "recv")
    return sock


def take(sock: socket.socket, wait: Callable[[], list[int]]) -> bytes:
    while True:
        try:
            return sock.recv(100)
        except BlockingIOError:
            wait()


def received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(100)
    except ConnectionResetError:  # killed with unread bytes
        return b""


def work() -> None:
    begin = time.thread_time()
    while time.thread_time() - begin < WORK_S:
        pass


def serve(listener: socket.socket, pipe: int) -> None:
    if apart:
        os.sched_setaffinity(0, {max(cpus)})
    sock = listener.accept()[0]
    sock.setblocking(False)
    wait = waiter(sock.fileno(), pipe)
    while True:
        for fd in wait():
            if fd == pipe and how == "asked":
                sock.sendall(os.read(pipe, 100))
            elif fd == pipe:
                late = time.monotonic() - float(os.read(pipe, 20))
                assert late < 0.5, f"the pipe was not looked at for {late:.3f} s"
            elif data := received(sock):
                if apart:
                    work()
                if how == "asked":
                    os.write(question, data)
                else:
                    sock.sendall(data)
            else:
                os._exit(0)


def ask(port: int) -> None:
    sock = connected(port)
    wait = waiter(sock.fileno(), briefly=how == "asked")  # no sleep on the ring: those that count are the server's
    for n in range(ROUNDS):
        text = b"%d" % n
        sock.sendall(text)
        assert take(sock, wait) == text
    if how in ("killed", "pipe"):
        os.write(ready, b".")
        while True:  # keeps the CPU from the server, which sleeps on the ring
            sock.sendall(b"x")
            take(sock, wait)
    if how == "shut":
        sock.shutdown(socket.SHUT_WR)
        assert take(sock, wait) == b""
    sock.close()


def think() -> None:
    while text := os.read(questions, 100):
        os.write(tell, text)


def child(work: Callable[..., None], *args: object) -> int:
    pid = os.fork()
    if not pid:
        os.setsid()
        work(*args)
        os._exit(0)
    return pid


cpus = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(cpus)})
told, ready = os.pipe()
pipe, tell = os.pipe()
questions, question = os.pipe()
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
thinker = child(think)
server = child(serve, listener, pipe)
client = child(ask, port)
if how in ("killed", "pipe"):
    os.read(told, 1)
    for _ in range(20 if how == "pipe" else 0):
        os.write(tell, b"%20.6f" % time.monotonic())
        time.sleep(0.01)
    os.kill(client, signal.SIGKILL)
assert os.waitpid(server, 0)[1] == 0  # who is not told of a killed peer sleeps on
os.kill(thinker, signal.SIGKILL)
print("served", flush=True)
