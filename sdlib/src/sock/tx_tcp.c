/* SPDX-License-Identifier: Apache-2.0
 *
 * tx_tcp.c - sending by the kernel: all of a message, or what is left of one that a ring has begun.
 */
#include "poll/poll.h"
#include "sock/sock.h"

/* Another thread reads the stream's position. It may be stopped while it does: the token throws it out, and then its mode is void. */
static NOINLINE void await_switch(struct sock *s, u32 mode)
{
    struct sd_hold h;

    sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);
    cas_u32(&s->b->tx_mode, mode, SD_MODE_TCP);
    sd_leave(&h);
}

/* Before a kernel send of a socket that others use: the direction must not switch while it is under way. False: it is no TCP any more. */
bool sd_tx_plain_enter(struct sock *s)
{
    struct sd_block *b = s->b;
    bool shared = sd_shared(s);
    u32 mode;

    sd_owe_plain(s, shared ? SD_OWES_TX : 0); /* [K1] */
    if (!shared)
        return load_rlx(&b->tx_mode) != SD_MODE_RETIRE && load_rlx(&b->tx_mode) != SD_MODE_RING;
    mode = load_acq(&b->tx_mode);
    if (mode == SD_MODE_TCP || mode == SD_MODE_BACK)
        return true;
    sd_owed_plain(s, SD_OWES_TX);
    if ((mode & 0xff) == SD_MODE_SWITCH)
        await_switch(s, mode);
    return false;
}

long sd_kernel_tx(struct sock *s, int fd, struct msghdr *m, u32 flags)
{
    long r;

    if (unlikely(flags & MSG_FASTOPEN) && load_rlx(&g.cfg->perform))
        return -EOPNOTSUPP; /* as where the kernel is told not to: connections are made by connect only (birth.c) */
    if (!sd_tx_plain_enter(s))
        return -ERANGE;
    if (m->iovlen == 1 && !m->controllen)
        r = SYS6(__NR_sendto, fd, m->iov->base, m->iov->len, flags, m->name, min_u64((u64)m->namelen, 128)); /* sendmsg reads no more of a name */
    else
        r = SYS3(__NR_sendmsg, fd, m, flags);
    if (unlikely(flags & MSG_FASTOPEN) && (r >= 0 || r == -EINPROGRESS))
        s->b->role = 1;
    sd_plain_leave(s, SD_OWES_TX, r);
    if (unlikely(s->regs) && (r == -EAGAIN || (r > 0 && (u64)r < sd_iov_bytes(m->iov, m->iovlen))))
        sd_ep_full(s); /* which the kernel knows, but not of what a set has told already when the connection moves ([E6] of poll/epoll.h) */
    if (sd_tracing(SD_TRACE_BYTES) && r > 0)
        sd_saw_tcp(s, fd, 0, m->iov, 0, (u64)r);
    return r;
}

/* The rest of a message that a ring has taken the first *done bytes of. It has begun, so nothing is an error of it any more. */
long sd_kernel_rest(struct sock *s, int fd, struct msghdr *m, u32 flags, u64 *done)
{
    struct msghdr rest = {.iov = m->iov, .iovlen = m->iovlen};
    u64 skip = *done, asked;
    struct iovec first;
    long r;

    while (rest.iovlen && skip >= rest.iov->len) {
        skip -= rest.iov->len;
        rest.iov++;
        rest.iovlen--;
    }
    if (!rest.iovlen)
        return (long)*done;
    if (skip) {
        first = (struct iovec){rest.iov->base + skip, rest.iov->len - skip};
        rest.iov = &first;
        rest.iovlen = 1;
    }
    asked = sd_iov_bytes(rest.iov, rest.iovlen);
    r = sd_kernel_tx(s, fd, &rest, flags | MSG_NOSIGNAL);
    if (r == -ERANGE)
        return r;
    *done += r > 0 ? (u64)r : 0;
    return r == (long)asked ? -ERANGE : (long)*done; /* perhaps there is more */
}
