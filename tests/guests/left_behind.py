"""A connection whose peer has sent its last bytes goes to another program, which reads what is left, and how it ends.

    give WAY COUNT HOW   makes it, warm; the peer sends COUNT bytes, then HOW: close, shut, keep, stay (a child has
                         it), or back (to TCP, and seven bytes more); the other end goes to WAY
    take WAY             receives it
    rob WAY              takes it out of the process by pidfd_getfd: WAY says which, and its descriptor
"""

import array
import ctypes
import errno
import fcntl
import os
import socket
import sys
import time

WARM = 40
_NR_PIDFD_GETFD = 438


def exactly(conn: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = conn.recv(size - len(data))
        assert part, data
        data += part
    return data


def warm() -> tuple[socket.socket, socket.socket]:
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    for conn in (near, far):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in range(WARM):
        near.sendall(b"warm %2d" % number)
        far.sendall(exactly(far, 7))
        assert exactly(near, 7) == b"warm %2d" % number
        time.sleep(0.003)  # the connection moves meanwhile
    return near, far


def give(path: str, count: int, how: str) -> None:
    near, far = warm()
    near.sendall(b"z" * count)
    if how == "close":
        near.close()
    elif how == "shut":
        near.shutdown(socket.SHUT_WR)
    elif how == "stay":
        until, ours = os.pipe()
        if os.fork() == 0:
            far.close()
            os.close(ours)
            os.read(until, 1)  # its end
            os._exit(0)
        near.close()
    elif how != "keep":
        fcntl.fcntl(near, fcntl.F_SETFL, fcntl.fcntl(near, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO is the kernel's
        near.sendall(b"z" * 7)
        fcntl.fcntl(near, fcntl.F_SETFL, fcntl.fcntl(near, fcntl.F_GETFL) & ~os.O_ASYNC)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + "~")
    listener.listen()
    os.rename(path + "~", path)
    way, _ = listener.accept()
    who = way.recv(1)
    if who == b"r":
        way.send(b"%d %d" % (os.getpid(), far.fileno()))
    else:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [far.fileno()]))
        way.sendmsg([b"x"], [rights])
    if way.recv(1) == b"n":  # it has not got it: then all must be here
        print(spend(far), flush=True)


def spend(conn: socket.socket) -> str:
    conn.settimeout(5)
    total = 0
    try:
        while part := conn.recv(10_000):
            assert not part.strip(b"z"), part
            total += len(part)
    except OSError as error:
        return f"{total} {errno.errorcode.get(error.errno or 0, 'timeout')}"
    return f"{total} end"


def take(path: str, who: bytes) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)
    way = socket.socket(socket.AF_UNIX)
    way.connect(path)
    way.send(who)
    if who == b"r":
        pid, fd = map(int, way.recv(100).split())
        got = ctypes.CDLL(None, use_errno=True).syscall(_NR_PIDFD_GETFD, os.pidfd_open(pid), fd, 0)
        if got < 0:
            print(f"refused {errno.errorcode[ctypes.get_errno()]}", flush=True)
            way.send(b"n")
            return
    else:
        _, [[_, _, rights]], _, _ = way.recvmsg(1, socket.CMSG_SPACE(4))
        got = array.array("i", rights)[0]
    print(spend(socket.socket(fileno=got)), flush=True)
    way.send(b"y")


if sys.argv[1] == "give":
    give(sys.argv[2], int(sys.argv[3]), sys.argv[4])
else:
    take(sys.argv[2], b"r" if sys.argv[1] == "rob" else b"t")
