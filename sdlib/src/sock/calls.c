/* SPDX-License-Identifier: Apache-2.0
 *
 * calls.c - the data calls: arguments in, sd_rx / sd_tx, value out. Those with a message header: messages.c.
 *
 * All of one shape: find the socket, hold it, do it, let it go. A descriptor that is not ours goes to the kernel as it is.
 */
#include "sock/given.h"

#define HOLD(s, fd) \
    struct sock *s = sd_sock_enter(fd); \
    (void)t; \
    if (!s) \
        return SD_PASS

long sd_bad_iov(const struct iovec *iov, u64 n, u32 flags)
{
    long r = 0;

    if (!sd_is_given((u64)iov, n * sizeof *iov))
        return -EFAULT;
    for (u64 i = 0; i < n; i++) {
        if ((i64)iov[i].len < 0)
            return -EINVAL; /* of any of them, before the first address */
        if (sd_bad_room((u64)iov[i].base, n == 1 ? min_u64(iov[i].len, SD_MOST_BYTES) : iov[i].len, flags))
            r = -EFAULT;
    }
    return r;
}

/* A connection of this process alone that has no ring, and whose time to be offered has not come: the call is the kernel's, as it is. Short
 * connections live and die here. What sd_tick() would do with it has been done. */
static inline bool plain(struct sock *s)
{
    struct sd_block *b = s->b;
    const struct sd_config *c = g.cfg;
    u32 state = load_acq(&b->state), ops;

    if (s->seg || sd_shared(s) || load_rlx(&b->latched) || sd_tracing(SD_TRACE_BYTES) || state == SD_BLOCK_PAIRED || state == SD_BLOCK_ATTACHED)
        return false;
    if (state != SD_BLOCK_TCP || !c->accel || !b->established || g.no_supervisor)
        return true;
    ops = load_rlx(&b->ops) + 1;
    if (c->upgrade == SD_UPGRADE_AFTER_OPS ? ops >= c->upgrade_n && ops >= s->due : c->upgrade != SD_UPGRADE_NEVER)
        return false;
    store_rlx(&b->ops, ops);
    return true;
}

static long as_it_is(struct sock *s, struct sd_frame *f, u32 dir)
{
    long r = SYS6((u32)f->rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);

    COUNT(calls_kernel);
    if (r > 0) {
        s->b->bytes_tcp += (u64)r;
        s->b->established = 1;
        sd_sized(s, dir, (u64)r);
    }
    return r;
}

#define PLAIN_OUT (MSG_DONTWAIT | MSG_NOSIGNAL)
#define PLAIN_IN (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_WAITALL)

SD_CALL(sd_read)
{
    HOLD(s, f->rdi);
    if (plain(s))
        return as_it_is(s, f, 1);
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    if (sd_bad_range(f->rsi, f->rdx))
        return sd_done(s, -EFAULT);
    return sd_done(s, f->rdx ? sd_rx(s, (int)f->rdi, &v, 1, 0) : 0);
}

SD_CALL(sd_write)
{
    HOLD(s, f->rdi);
    if (plain(s))
        return as_it_is(s, f, 0);
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    if (sd_bad_range(f->rsi, f->rdx))
        return sd_done(s, -EFAULT);
    return sd_done(s, sd_tx(s, (int)f->rdi, &v, 1, 0));
}

static long vector_in(struct sock *s, struct sd_frame *f, u32 flags)
{
    struct iovec *iov = (struct iovec *)f->rsi;
    u32 n = (u32)f->rdx; /* as the kernel counts them */
    long r;

    if (n > MAX_IOV || !n)
        return SD_PASS;
    if ((r = sd_bad_iov(iov, n, 0)) || !sd_iov_bytes(iov, n))
        return r; /* read(2) of nothing does not wait, recv(2) of nothing does */
    return sd_rx(s, (int)f->rdi, iov, n, flags);
}

static long vector_out(struct sock *s, struct sd_frame *f, u32 flags)
{
    struct iovec *iov = (struct iovec *)f->rsi;
    u32 n = (u32)f->rdx;
    long r;

    if (n > MAX_IOV || !n)
        return SD_PASS;
    if ((r = sd_bad_iov(iov, n, 0)) || !sd_iov_bytes(iov, n))
        return r; /* also where the next byte would be an error */
    return sd_tx(s, (int)f->rdi, iov, n, flags);
}

SD_CALL(sd_readv)
{
    HOLD(s, f->rdi);
    if (plain(s))
        return as_it_is(s, f, 1);
    return sd_done(s, vector_in(s, f, 0));
}

SD_CALL(sd_writev)
{
    HOLD(s, f->rdi);
    if (plain(s))
        return as_it_is(s, f, 0);
    return sd_done(s, vector_out(s, f, 0));
}

#define RWF_NOWAIT 8u
#define RWF_APPEND 16u
#define RWF_NOAPPEND 32u
#define RWF_HARMLESS (1u | 2u | 4u | RWF_NOWAIT | RWF_APPEND | RWF_NOAPPEND) /* HIPRI, DSYNC, SYNC: a socket ignores them */

/* 0 and *flags for sd_rx or sd_tx, or the error. Only offset -1 makes sense on a socket; anything else is the kernel's ESPIPE. */
static long rw_flags(const struct sd_frame *f, u32 *flags)
{
    u32 rwf = (u32)f->r9;

    if (f->r10 != (u64)-1)
        return SD_PASS;
    if (rwf & ~RWF_HARMLESS)
        return -EOPNOTSUPP;
    if ((rwf & RWF_APPEND) && (rwf & RWF_NOAPPEND))
        return -EINVAL;
    *flags = rwf & RWF_NOWAIT ? MSG_DONTWAIT : 0;
    return 0;
}

/* The kernel looks at the flags after the vector, and at none of them where there is nothing to move. */
static long bad_flags(const struct sock *s, const struct sd_frame *f, long why)
{
    const struct iovec *iov = (const struct iovec *)f->rsi;
    u32 n = (u32)f->rdx;
    long r;

    if (why == SD_PASS || !sd_attached(s) || n > MAX_IOV || !n)
        return SD_PASS;
    r = sd_bad_iov(iov, n, 0);
    return r || !sd_iov_bytes(iov, n) ? r : why;
}

SD_CALL(sd_preadv2)
{
    u32 flags;
    long r = rw_flags(f, &flags);

    HOLD(s, f->rdi);
    return sd_done(s, r ? bad_flags(s, f, r) : vector_in(s, f, flags));
}

SD_CALL(sd_pwritev2)
{
    u32 flags;
    long r = rw_flags(f, &flags);

    HOLD(s, f->rdi);
    return sd_done(s, r ? bad_flags(s, f, r) : vector_out(s, f, flags));
}

/* TCP names no sender: what the kernel does with the program's length, after the bytes were taken. */
static long no_name(i32 *len)
{
    if (sd_bad_range((u64)len, sizeof *len))
        return -EFAULT;
    if (*len < 0)
        return -EINVAL;
    *len = 0;
    return 0;
}

SD_CALL(sd_recvfrom)
{
    HOLD(s, f->rdi);
    if (!((u32)f->r10 & ~(u32)PLAIN_IN) && plain(s))
        return as_it_is(s, f, 1);
    struct iovec v = {(u8 *)f->rsi, min_u64(f->rdx, SD_MOST_BYTES)};
    if (sd_bad_room(f->rsi, v.len, (u32)f->r10))
        return sd_done(s, -EFAULT);
    long r = sd_rx(s, (int)f->rdi, &v, 1, (u32)f->r10);
    if (r >= 0 && f->r8) {
        long e = no_name((i32 *)f->r9);
        r = e ? e : r;
    }
    return sd_done(s, r);
}

/* A connected stream ignores the address, but looks at it. */
static long bad_name(u64 name, i32 len)
{
    if (!name)
        return 0;
    if (len < 0 || len > 128)
        return -EINVAL;
    return !len || sd_is_given(name, (u64)len) ? 0 : -EFAULT;
}

SD_CALL(sd_sendto)
{
    HOLD(s, f->rdi);
    if (!((u32)f->r10 & ~(u32)PLAIN_OUT) && plain(s))
        return as_it_is(s, f, 0);
    struct iovec v = {(u8 *)f->rsi, min_u64(f->rdx, SD_MOST_BYTES)};
    struct msghdr m = {.iov = &v, .iovlen = 1, .name = (void *)f->r8, .namelen = (i32)f->r9};
    long r;
    if (sd_bad_range(f->rsi, v.len))
        return sd_done(s, -EFAULT);
    if ((r = bad_name(f->r8, m.namelen)))
        return sd_done(s, r);
    return sd_done(s, sd_tx_msg(s, (int)f->rdi, &m, (u32)f->r10));
}
