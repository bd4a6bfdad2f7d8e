/* SPDX-License-Identifier: Apache-2.0
 *
 * rx.h - one receive, shared by rx.c (the ring) and rx_tcp.c (the kernel and the switch).
 *
 * A receive ends when it has `target` bytes (tcp_recvmsg: 1 or, with MSG_WAITALL, all), at the end of the stream, or with nothing more to
 * wait for. It may begin on TCP and end in the ring: each of the steps adds to `got` and answers -ERANGE, which is no errno of recv, when
 * the next byte comes from somewhere else.
 */
#ifndef SD_RX_H
#define SD_RX_H

#include "sock/sock.h"

/* One receive as the program asked for it, and how far it is. */
struct rx {
    struct iovec *iov;
    struct msghdr *msg; /* recvmsg: the program's own, with room for control messages; NULL */
    u64 asked;          /* of the kernel, the last time */
    bool told;          /* the kernel has filled it */
    u64 n, len;
    u64 target;
    u64 got;
    u64 seen;  /* MSG_PEEK: where the byte behind the last one that was shown stands, on the ring, or before it on TCP */
    u64 since; /* tsc at the first wait, for SO_RCVTIMEO */
    u32 flags;
    bool nb, peek, drop; /* drop: MSG_TRUNC, bytes are thrown away instead of copied */
    u32 napped; /* 1: counted as a napper ([N3] of poll/nap.c) */
    bool later; /* messages of the same call have come before it: any handler ends it, also one with SA_RESTART */
};

static inline long sd_rx_result(const struct rx *w, long r)
{
    return w->got ? (long)w->got : r;
}

/* There are no more bytes. A recvmmsg may have kept an error for a receive that finds none. 0: it has not. */
static inline long sd_rx_kept(struct sock *s, const struct rx *w)
{
    return w->got ? (long)w->got : -(long)sd_kept_error(s);
}

long sd_kernel_rx(int fd, struct rx *w, u32 flags, u64 limit);
long sd_plain_rx(struct sock *s, int fd, struct rx *w);      /* all on the kernel: the program's own call */
long sd_switching_rx(struct sock *s, int fd, struct rx *w);  /* attached, the peer still sends on TCP */
i64 sd_rx_bytes(struct sock *s, int fd);
long sd_switching_peek(struct sock *s, int fd, struct rx *w);
/* MSG_PEEK, and all of the ring was looked at: how many bytes follow by TCP; -ERANGE: the ring's are others since. `most` of them are waited for, 0: none. */
long sd_peek_behind(struct sock *s, int fd, const struct rx *w, u64 most);
/* A wait that nothing ends at the right byte goes on. False: the stream's end has come, a handler, or SO_RCVTIMEO. */
bool sd_rx_another_ms(int fd, struct rx *w);
bool sd_has_mark(int fd); /* there is one in what is unread, of urgent data that may have been read: FIONREAD counts up to it, where that is not wanted inline */
bool sd_at_mark(int fd); /* the next byte of TCP is urgent, or stands behind one that is: where something was read already no call goes on there */

#endif
