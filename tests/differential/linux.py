# SPDX-License-Identifier: Apache-2.0
"""Constants of the kernel's interface, under short names: those that Python has are spread over three modules."""

from __future__ import annotations

from typing import Final

OOB: Final = 0x1
PEEK: Final = 0x2
TRUNC: Final = 0x20
DONTWAIT: Final = 0x40
EOR: Final = 0x80
WAITALL: Final = 0x100
CONFIRM: Final = 0x800
ERRQUEUE: Final = 0x2000
NOSIGNAL: Final = 0x4000
MORE: Final = 0x8000
WAITFORONE: Final = 0x10000
ZEROCOPY: Final = 0x4000000
FASTOPEN: Final = 0x20000000
CMSG_CLOEXEC: Final = 0x40000000

SOL_SOCKET: Final = 1
SO_ERROR: Final = 4
SO_SNDBUF: Final = 7
SO_RCVBUF: Final = 8
SO_KEEPALIVE: Final = 9
SO_OOBINLINE: Final = 10
SO_LINGER: Final = 13
SO_REUSEPORT: Final = 15
SO_RCVLOWAT: Final = 18
SO_RCVTIMEO: Final = 20
SO_TIMESTAMP: Final = 29
SO_SNDTIMEO: Final = 21
SO_ACCEPTCONN: Final = 30
SO_ZEROCOPY: Final = 60
SO_RCVTIMEO_NEW: Final = 66
SO_SNDTIMEO_NEW: Final = 67
SOL_TCP: Final = 6
TCP_NODELAY: Final = 1
TCP_CORK: Final = 3
TCP_NOTSENT_LOWAT: Final = 25
TCP_DEFER_ACCEPT: Final = 9
TCP_INFO: Final = 11
TCP_QUICKACK: Final = 12
TCP_ULP: Final = 31

FIONREAD: Final = 0x541B
FIONBIO: Final = 0x5421
FIOASYNC: Final = 0x5452
SIOCOUTQ: Final = 0x5411
SIOCOUTQNSD: Final = 0x894B
SIOCATMARK: Final = 0x8905

F_DUPFD: Final = 0
F_GETFD: Final = 1
F_SETFD: Final = 2
F_GETFL: Final = 3
F_SETFL: Final = 4
F_SETOWN: Final = 8
F_GETOWN: Final = 9
F_SETSIG: Final = 10
F_DUPFD_CLOEXEC: Final = 1030
O_NONBLOCK: Final = 0o4000
O_ASYNC: Final = 0o20000
O_CLOEXEC: Final = 0o2000000

SHUT_RD, SHUT_WR, SHUT_RDWR = 0, 1, 2

IN: Final = 0x1
PRI: Final = 0x2
OUT: Final = 0x4
ERR: Final = 0x8
HUP: Final = 0x10
RDNORM: Final = 0x40
RDBAND: Final = 0x80
WRNORM: Final = 0x100
WRBAND: Final = 0x200
RDHUP: Final = 0x2000
EXCLUSIVE: Final = 1 << 28
ONESHOT: Final = 1 << 30
ET: Final = 1 << 31
EVERYTHING: Final = IN | PRI | OUT | RDHUP | RDNORM | WRNORM

SA_RESTART: Final = 0x10000000
