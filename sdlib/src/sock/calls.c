/* SPDX-License-Identifier: Apache-2.0
 *
 * calls.c - the data calls: arguments in, sd_rx / sd_tx, value out.
 *
 * All of one shape: find the socket, hold it, do it, let it go. A descriptor that is not ours goes to the kernel as it is.
 */
#include "sock/sock.h"

#define HOLD(s, fd) \
    struct sock *s = sd_sock_enter(fd); \
    (void)t; \
    if (!s) \
        return SD_PASS

/* What the kernel would refuse at once. A pointer that looks good and is not mapped ends in the program's own SIGSEGV. */
static bool bad(u64 p, u64 len) { return len && (p < 4096 || (p + len) >> 47); }

static long done(struct sock *s, long r)
{
    sd_sock_put(s);
    return r;
}

SD_CALL(sd_read)
{
    HOLD(s, f->rdi);
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    if (bad(f->rsi, f->rdx))
        return done(s, -EFAULT);
    return done(s, f->rdx ? sd_rx(s, (int)f->rdi, &v, 1, 0) : 0);
}

SD_CALL(sd_write)
{
    HOLD(s, f->rdi);
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    if (bad(f->rsi, f->rdx))
        return done(s, -EFAULT);
    return done(s, sd_tx(s, (int)f->rdi, &v, 1, 0));
}

SD_CALL(sd_readv)
{
    HOLD(s, f->rdi);
    if (f->rdx > MAX_IOV || !f->rdx)
        return done(s, SD_PASS);
    return done(s, sd_rx(s, (int)f->rdi, (struct iovec *)f->rsi, f->rdx, 0));
}

SD_CALL(sd_writev)
{
    HOLD(s, f->rdi);
    if (f->rdx > MAX_IOV || !f->rdx)
        return done(s, SD_PASS);
    return done(s, sd_tx(s, (int)f->rdi, (struct iovec *)f->rsi, f->rdx, 0));
}

#define RWF_NOWAIT 8
/* Only offset -1 makes sense on a socket; anything else is the kernel's ESPIPE. */
SD_CALL(sd_preadv2)
{
    HOLD(s, f->rdi);
    if (f->r10 != (u64)-1 || f->rdx > MAX_IOV || !f->rdx || (f->r9 & ~(u64)RWF_NOWAIT))
        return done(s, SD_PASS);
    return done(s, sd_rx(s, (int)f->rdi, (struct iovec *)f->rsi, f->rdx, f->r9 ? MSG_DONTWAIT : 0));
}

SD_CALL(sd_pwritev2)
{
    HOLD(s, f->rdi);
    if (f->r10 != (u64)-1 || f->rdx > MAX_IOV || !f->rdx || (f->r9 & ~(u64)RWF_NOWAIT))
        return done(s, SD_PASS);
    return done(s, sd_tx(s, (int)f->rdi, (struct iovec *)f->rsi, f->rdx, f->r9 ? MSG_DONTWAIT : 0));
}

SD_CALL(sd_recvfrom)
{
    HOLD(s, f->rdi);
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    if (bad(f->rsi, f->rdx))
        return done(s, -EFAULT);
    long r = sd_rx(s, (int)f->rdi, &v, 1, (u32)f->r10);
    if (r >= 0 && f->r8 && f->r9)
        *(i32 *)f->r9 = 0; /* TCP names no sender */
    return done(s, r);
}

SD_CALL(sd_sendto)
{
    HOLD(s, f->rdi);
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    if (bad(f->rsi, f->rdx))
        return done(s, -EFAULT);
    return done(s, sd_tx(s, (int)f->rdi, &v, 1, (u32)f->r10));
}

static long recv_one(struct sock *s, int fd, struct msghdr *m, u32 flags)
{
    long r;

    if (m->iovlen > MAX_IOV)
        return -EMSGSIZE;
    if (flags & MSG_ERRQUEUE)
        return SYS3(__NR_recvmsg, fd, m, flags);
    r = sd_rx(s, fd, m->iov, m->iovlen, flags & ~(u32)MSG_CMSG_CLOEXEC);
    if (r >= 0) {
        m->namelen = 0;
        m->controllen = 0;
        m->flags = flags & MSG_CMSG_CLOEXEC;
    }
    return r;
}

SD_CALL(sd_recvmsg)
{
    HOLD(s, f->rdi);
    return done(s, recv_one(s, (int)f->rdi, (struct msghdr *)f->rsi, (u32)f->rdx));
}

static long send_one(struct sock *s, int fd, struct msghdr *m, u32 flags)
{
    if (m->iovlen > MAX_IOV)
        return -EMSGSIZE;
    if (m->controllen) { /* timestamps and the like belong to the kernel's stream */
        if (load_rlx(&s->b->tx_mode) == SD_MODE_RING)
            sd_tx_back(s, fd, SD_REASON_flag);
        return SYS3(__NR_sendmsg, fd, m, flags);
    }
    return sd_tx(s, fd, m->iov, m->iovlen, flags);
}

SD_CALL(sd_sendmsg)
{
    HOLD(s, f->rdi);
    return done(s, send_one(s, (int)f->rdi, (struct msghdr *)f->rsi, (u32)f->rdx));
}

SD_CALL(sd_recvmmsg)
{
    struct mmsghdr *v = (struct mmsghdr *)f->rsi;
    u64 i, n = f->rdx;
    u32 flags = (u32)f->r10;
    long r = 0;

    HOLD(s, f->rdi);
    if (f->r8) /* a time-out that is looked at between messages only */
        return done(s, sd_attached(s) ? -ENOSYS : SD_PASS);
    for (i = 0; i < n; i++) {
        r = recv_one(s, (int)f->rdi, &v[i].hdr, flags & ~(u32)MSG_WAITFORONE);
        if (r < 0)
            break;
        v[i].len = (u32)r;
        if (r == 0) {
            i++;
            break;
        }
        if (flags & MSG_WAITFORONE)
            flags |= MSG_DONTWAIT;
    }
    return done(s, i ? (long)i : r);
}

SD_CALL(sd_sendmmsg)
{
    struct mmsghdr *v = (struct mmsghdr *)f->rsi;
    u64 i, n = min_u64(f->rdx, MAX_IOV);
    long r = 0;

    HOLD(s, f->rdi);
    for (i = 0; i < n; i++) {
        r = send_one(s, (int)f->rdi, &v[i].hdr, (u32)f->r10);
        if (r < 0)
            break;
        v[i].len = (u32)r;
        if ((u64)r < sd_iov_bytes(v[i].hdr.iov, v[i].hdr.iovlen)) {
            i++;
            break;
        }
    }
    return done(s, i ? (long)i : r);
}
