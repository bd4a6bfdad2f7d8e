# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md says what the behaviours of this session have shown."""

from __future__ import annotations

import pytest

from tests.differential import table
from tests.differential.runs import Runs
from tests.differential.worlds import BEHAVIOURS


@pytest.mark.timeout(900)  # alone, it runs all behaviours in two worlds
def test_page_is_current(runs: Runs) -> None:
    for name in BEHAVIOURS:
        runs.reference(name)
        runs.outcome("before", name)
    assert table.PAGE.read_text() == table.page(runs), "stale: make table"


def test_no_row_twice() -> None:
    rows = [row for behaviour in BEHAVIOURS.values() for row in behaviour.rows]
    assert len(rows) == len(set(rows)), sorted(row for row in rows if rows.count(row) > 1)


NAMED = """
recv MSG_PEEK|recv MSG_DONTWAIT|recv MSG_WAITALL|recv MSG_TRUNC|send MSG_NOSIGNAL|send MSG_MORE|send MSG_OOB
recv MSG_OOB|recv MSG_ERRQUEUE|recvmsg MSG_CMSG_CLOEXEC|send MSG_ZEROCOPY|setsockopt SO_RCVTIMEO|setsockopt SO_SNDTIMEO
setsockopt SO_RCVLOWAT|setsockopt SO_LINGER|getsockopt SO_ERROR|setsockopt SO_RCVBUF|setsockopt SO_SNDBUF
setsockopt TCP_NODELAY|setsockopt TCP_CORK|setsockopt TCP_QUICKACK|getsockopt TCP_INFO|setsockopt TCP_ULP|recvmmsg
sendmmsg|preadv2|pwritev2|sendfile|splice pipe to socket|splice socket to pipe|tee|ioctl FIONREAD|ioctl SIOCOUTQ
ioctl FIONBIO|ioctl FIOASYNC|O_NONBLOCK shared by dup|O_NONBLOCK shared by fork|fcntl O_ASYNC|fcntl F_SETOWN
shutdown SHUT_RD|shutdown SHUT_WR|shutdown SHUT_RDWR|shutdown SHUT_WR at both ends at once|close with bytes unread (RST)
close with nothing unread (FIN)|send SIGPIPE kills|send after shutdown (SIGPIPE)|connect O_NONBLOCK (EINPROGRESS)
connect refused|connect with a full backlog (timed out)|close at both ends at the same moment
close of a listener with a backlog (RST)|setsockopt SO_REUSEPORT|accept in several processes|select|poll|ppoll|pselect6
epoll level triggered|epoll EPOLLET|epoll EPOLLONESHOT|epoll EPOLLEXCLUSIVE in two processes|epoll of an epoll set
epoll EPOLLRDHUP|epoll EPOLLHUP|epoll EPOLLERR|epoll sets that share a descriptor|epoll of a dup in the same set
ppoll nanoseconds|pselect6 nanoseconds|epoll_pwait2 nanoseconds|ppoll signal mask|pselect6 signal mask
epoll_pwait signal mask|epoll with signalfd, inotify, timerfd, eventfd, UDP, unix and pipes
epoll: ready connections do not starve the kernel's descriptors, nor these those|dup|dup2|dup3|fcntl F_DUPFD
fcntl F_DUPFD_CLOEXEC|close_range|sendmsg SCM_RIGHTS|pidfd_getfd|readlink /proc/self/fd|RLIMIT_NOFILE lowered
descriptors 0 to 2 as sockets|io_uring_setup
""".strip().replace("\n", "|").split("|")
"""What users ask for by name: a row each, or one that begins so."""


def test_whatever_is_asked_for_has_a_row() -> None:
    rows = [f"{call} {flag}".strip() for each in BEHAVIOURS.values() for call, flag in each.rows]
    missing = [name for name in NAMED if not any(row == name or row.startswith(f"{name} ") for row in rows)]
    assert not missing
