/* SPDX-License-Identifier: Apache-2.0
 *
 * calls.c - the data calls: arguments in, sd_rx / sd_tx, value out.
 *
 * All of one shape: find the socket, hold it, do it, let it go. A descriptor that is not ours goes to the kernel as it is.
 */
#include "base/user.h"
#include "sock/rx.h"
#include "sock/sock.h"

#define HOLD(s, fd) \
    struct sock *s = sd_sock_enter(fd); \
    (void)t; \
    if (!s) \
        return SD_PASS

/* What the kernel would refuse at once. What looks good and is not mapped is found where it is used (base/user.h). */
static bool bad(u64 p, u64 len) { return len && (p < 4096 || (p + len) >> 47); }

/* Of what is read before anything is moved, and where a count may have to be told. */
static bool readable(u64 p, u64 len)
{
    if (bad(p, len))
        return false;
    for (; len > 4096; p += 4096, len -= 4096)
        if (!sd_readable((u8 *)p))
            return false;
    return !len || sd_readable_all((u8 *)p, len);
}

/* Room for what is received. MSG_TRUNC throws it away, and looks only whether the addresses are a program's: proxies say NULL. */
static bool bad_room(u64 p, u64 len, u32 flags) { return flags & MSG_TRUNC ? len && (p + len) >> 47 : bad(p, len); }

/* The same for a vector: 0, -EFAULT, or -EINVAL for a length that is no ssize_t. */
static long bad_iov(const struct iovec *iov, u64 n, u32 flags)
{
    if (!readable((u64)iov, n * sizeof *iov))
        return -EFAULT;
    for (u64 i = 0; i < n; i++) {
        if ((i64)iov[i].len < 0)
            return -EINVAL;
        if (bad_room((u64)iov[i].base, iov[i].len, flags))
            return -EFAULT;
    }
    return 0;
}

static long done(struct sock *s, long r)
{
    sd_sock_put(s);
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
    if (c->upgrade == SD_UPGRADE_AFTER_OPS ? ops >= c->upgrade_n : c->upgrade != SD_UPGRADE_NEVER)
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
    if (bad(f->rsi, f->rdx))
        return done(s, -EFAULT);
    return done(s, f->rdx ? sd_rx(s, (int)f->rdi, &v, 1, 0) : 0);
}

SD_CALL(sd_write)
{
    HOLD(s, f->rdi);
    if (plain(s))
        return as_it_is(s, f, 0);
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    if (bad(f->rsi, f->rdx))
        return done(s, -EFAULT);
    return done(s, sd_tx(s, (int)f->rdi, &v, 1, 0));
}

static long vector_in(struct sock *s, struct sd_frame *f, u32 flags)
{
    struct iovec *iov = (struct iovec *)f->rsi;
    long r;

    if (f->rdx > MAX_IOV || !f->rdx)
        return SD_PASS;
    if ((r = bad_iov(iov, f->rdx, 0)) || !sd_iov_bytes(iov, f->rdx))
        return r; /* read(2) of nothing does not wait, recv(2) of nothing does */
    return sd_rx(s, (int)f->rdi, iov, f->rdx, flags);
}

static long vector_out(struct sock *s, struct sd_frame *f, u32 flags)
{
    struct iovec *iov = (struct iovec *)f->rsi;
    long r;

    if (f->rdx > MAX_IOV || !f->rdx)
        return SD_PASS;
    if ((r = bad_iov(iov, f->rdx, 0)))
        return r;
    return sd_tx(s, (int)f->rdi, iov, f->rdx, flags);
}

SD_CALL(sd_readv)
{
    HOLD(s, f->rdi);
    if (plain(s))
        return as_it_is(s, f, 1);
    return done(s, vector_in(s, f, 0));
}

SD_CALL(sd_writev)
{
    HOLD(s, f->rdi);
    if (plain(s))
        return as_it_is(s, f, 0);
    return done(s, vector_out(s, f, 0));
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

SD_CALL(sd_preadv2)
{
    u32 flags;
    long r = rw_flags(f, &flags);

    HOLD(s, f->rdi);
    return done(s, r && sd_attached(s) ? r : r ? SD_PASS : vector_in(s, f, flags));
}

SD_CALL(sd_pwritev2)
{
    u32 flags;
    long r = rw_flags(f, &flags);

    HOLD(s, f->rdi);
    return done(s, r && sd_attached(s) ? r : r ? SD_PASS : vector_out(s, f, flags));
}

/* TCP names no sender: what the kernel does with the program's length, after the bytes were taken. */
static long no_name(i32 *len)
{
    if (bad((u64)len, sizeof *len))
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
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    if (bad_room(f->rsi, f->rdx, (u32)f->r10))
        return done(s, -EFAULT);
    long r = sd_rx(s, (int)f->rdi, &v, 1, (u32)f->r10);
    if (r >= 0 && f->r8) {
        long e = no_name((i32 *)f->r9);
        r = e ? e : r;
    }
    return done(s, r);
}

/* A connected stream ignores the address, but looks at it. */
static long bad_name(u64 name, i32 len)
{
    if (!name)
        return 0;
    if (len < 0 || len > 128)
        return -EINVAL;
    return bad(name, (u64)len) ? -EFAULT : 0;
}

SD_CALL(sd_sendto)
{
    HOLD(s, f->rdi);
    if (!((u32)f->r10 & ~(u32)PLAIN_OUT) && plain(s))
        return as_it_is(s, f, 0);
    struct iovec v = {(u8 *)f->rsi, f->rdx};
    struct msghdr m = {.iov = &v, .iovlen = 1, .name = (void *)f->r8, .namelen = (i32)f->r9};
    long r;
    if (bad(f->rsi, f->rdx))
        return done(s, -EFAULT);
    if ((r = bad_name(f->r8, m.namelen)))
        return done(s, r);
    return done(s, sd_tx_msg(s, (int)f->rdi, &m, (u32)f->r10));
}

/* Also TCP_CM_INQ. */
void sd_inq_set(struct sock *s, int fd)
{
    if (sd_get_int(fd, SOL_TCP, TCP_INQ))
        s->b->opt_saved |= SD_SAVED_INQ;
    else
        s->b->opt_saved &= ~SD_SAVED_INQ;
}

/* The end of the stream has come, which the kernel counts as one byte more. */
static bool end_is_there(const struct sock *s)
{
    return (load_rlx(&s->b->latched) & LATCH_FIN) || (load_rlx(&s->e.rx->prod_hint) & (SD_HINT_SHUT_WR | SD_HINT_CLOSED));
}

/* A control message with what is left to be read, for who has set TCP_INQ. */
static void tell_inq(struct sock *s, int fd, struct msghdr *m, u64 room)
{
    struct { u64 len; i32 level, type, inq, pad; } c = {20, SOL_TCP, TCP_INQ, 0, 0};
    i64 n = sd_rx_bytes(s, fd);

    m->controllen = 0;
    m->flags &= ~(u32)MSG_CTRUNC;
    if (!m->control || room < c.len)
        m->flags |= MSG_CTRUNC;
    if (!m->control || room < 16)
        return;
    if (n < 0)
        n = sd_unread(s, fd);
    c.inq = (i32)n + end_is_there(s);
    c.len = min_u64(c.len, room);
    if (!sd_touch_all(m->control, c.len))
        return;
    sd_copy(m->control, (const u8 *)&c, c.len);
    m->controllen = min_u64(sizeof c, room);
}

static long recv_one(struct sock *s, int fd, struct msghdr *m, u32 flags, bool later)
{
    long r;

    if (!readable((u64)m, sizeof *m))
        return -EFAULT;
    if (m->iovlen > MAX_IOV)
        return -EMSGSIZE;
    if ((r = bad_iov(m->iov, m->iovlen, flags)))
        return r;
    u64 room = m->controllen;
    bool told = false;
    r = sd_rx_msg(s, fd, m, flags, later, &told);
    if (r >= 0 && !told) {
        if (!sd_touch_all(m, sizeof *m))
            return -EFAULT;
        m->namelen = 0;
        m->controllen = 0;
        m->flags = flags & MSG_CMSG_CLOEXEC;
    }
    if (unlikely(s->b->opt_saved & SD_SAVED_INQ) && r >= 0 && sd_attached(s) && load_rlx(&s->b->rx_mode) != SD_MODE_BACK)
        tell_inq(s, fd, m, room); /* the kernel knows of doorbells */
    return r;
}

SD_CALL(sd_recvmsg)
{
    struct sock *s = sd_sock_enter(f->rdi);

    if (!s)
        return sd_pass_recv(f, t);
    return done(s, recv_one(s, (int)f->rdi, (struct msghdr *)f->rsi, (u32)f->rdx, false));
}

static long send_one(struct sock *s, int fd, struct msghdr *m, u32 flags)
{
    long r;

    if (!readable((u64)m, sizeof *m))
        return -EFAULT;
    if (m->iovlen > MAX_IOV)
        return -EMSGSIZE;
    if ((r = bad_iov(m->iov, m->iovlen, 0)))
        return r;
    return sd_tx_msg(s, fd, m, flags);
}

SD_CALL(sd_sendmsg)
{
    struct sock *s = sd_sock_enter(f->rdi);

    if (!s)
        return sd_pass_send(f, t);
    return done(s, send_one(s, (int)f->rdi, (struct msghdr *)f->rsi, (u32)f->rdx));
}

/* Between messages only, as in the kernel; the wait for one is not bounded. */
struct mm_time {
    struct timespec64 *user;
    u64 end;
};

static long mm_time_init(struct mm_time *t, struct timespec64 *user)
{
    *t = (struct mm_time){.user = user};
    if (!user)
        return 0;
    if (bad((u64)user, sizeof *user))
        return -EFAULT;
    if (user->sec < 0 || user->nsec < 0 || user->nsec >= 1000000000)
        return -EINVAL;
    t->end = user->sec < (1ll << 33) ? sd_now_ns() + (u64)user->sec * 1000000000 + (u64)user->nsec : (u64)-1;
    return 0;
}

static bool mm_time_over(struct mm_time *t)
{
    u64 now;

    if (!t->user)
        return false;
    now = sd_now_ns();
    u64 left = t->end > now ? t->end - now : 0;
    *t->user = (struct timespec64){(i64)(left / 1000000000), (i64)(left % 1000000000)};
    return !left;
}

/* Unlike recvmsg, this call looks for a pending error before it looks for bytes. */
static long pending_error(struct sock *s, int fd)
{
    u32 err;

    if (sd_attached(s) && load_rlx(&s->b->rx_mode) == SD_MODE_RING) {
        if (likely(!(load_rlx(&s->b->latched) & (LATCH_FIN | LATCH_KEPT))))
            return 0;
        err = sd_kept_error(s);
        if (err)
            return -(long)err;
    }
    i32 v = sd_sockopt_int(fd, SO_ERROR);
    if (v <= 0)
        v = (i32)sd_kept_error(s);
    return v > 0 ? -(long)v : 0;
}

/* The kernel's socket gets the error of a bad pointer, as the kernel would have given it to it: behind a message of no bytes. */
static void fault_in_kernel(int fd)
{
    struct iovec nowhere = {(void *)8, 1};
    struct mmsghdr v[2] = {{.hdr = {.iovlen = 0}}, {.hdr = {.iov = &nowhere, .iovlen = 1}}};

    SYS5(__NR_recvmmsg, fd, v, 2, MSG_DONTWAIT | MSG_PEEK, 0);
}

/* Messages have come before it, so the next call that has nothing better to say tells of it, as the kernel does: also of a bad pointer, and of a handler. */
static void keep_error(struct sock *s, int fd, long r)
{
    i64 tv[2] = {0, 0};
    u32 len = sizeof tv;

    if (r == -EAGAIN)
        return;
    if (load_rlx(&s->b->rx_mode) == SD_MODE_BACK && (r == -EFAULT || r == -EINTR)) {
        if (r == -EFAULT)
            fault_in_kernel(fd);
        return;
    }
    if (r == -EINTR && SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_RCVTIMEO_OLD, tv, &len) == 0 && !tv[0] && !tv[1])
        r = -ERESTARTSYS; /* which then comes up as it is, Linux has seen no reason to hide it */
    store_rel(&s->b->rx_err, (u32)-r);
    atomic_fetch_or(&s->b->latched, LATCH_KEPT);
}

/* All on TCP: it is the kernel's. */
static long recv_plain(struct sock *s, const struct sd_frame *f)
{
    const struct mmsghdr *v = (const struct mmsghdr *)f->rsi;
    u64 bytes = 0;
    long r;

    sd_tick(s, (int)f->rdi);
    if (sd_attached(s) || load_rlx(&s->b->rx_err) || sd_tracing(SD_TRACE_BYTES) || !sd_rx_plain_enter(s))
        return -ERANGE;
    r = SYS5(__NR_recvmmsg, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
    for (long i = 0; i < r && readable((u64)&v[i], sizeof v[i]); i++)
        if (v[i].len && !(f->r10 & MSG_PEEK)) {
            bytes += v[i].len;
            sd_sized(s, 1, v[i].len);
        }
    sd_rx_plain_leave(s, (long)bytes);
    return r;
}

SD_CALL(sd_recvmmsg)
{
    struct sock *s = sd_sock_enter(f->rdi);
    struct mmsghdr *v = (struct mmsghdr *)f->rsi;
    u64 i, n = (u32)f->rdx;
    u32 flags = (u32)f->r10;
    struct mm_time time;
    long r;

    if (!s)
        return sd_pass_recv_many(f, t);
    if (!sd_attached(s) && (r = recv_plain(s, f)) != -ERANGE)
        return done(s, r);
    r = mm_time_init(&time, (struct timespec64 *)f->r8);
    if (!r)
        r = pending_error(s, (int)f->rdi);
    for (i = 0; i < n && !r; i++) {
        r = recv_one(s, (int)f->rdi, &v[i].hdr, flags & ~(u32)MSG_WAITFORONE, i > 0);
        if (r >= 0 && !sd_touch_all(&v[i].len, sizeof v[i].len))
            r = -EFAULT;
        if (r < 0)
            break;
        v[i].len = (u32)r;
        r = 0;
        if (flags & MSG_WAITFORONE)
            flags |= MSG_DONTWAIT;
        if (mm_time_over(&time)) {
            i++;
            break;
        }
    }
    if (i && r < 0)
        keep_error(s, (int)f->rdi, r);
    return done(s, i ? (long)i : r);
}

SD_CALL(sd_sendmmsg)
{
    struct sock *s = sd_sock_enter(f->rdi);
    struct mmsghdr *v = (struct mmsghdr *)f->rsi;
    u64 i, n = min_u64((u32)f->rdx, MAX_IOV);
    long r = 0;

    if (!s)
        return sd_pass_send_many(f, t);
    for (i = 0; i < n; i++) {
        r = send_one(s, (int)f->rdi, &v[i].hdr, (u32)f->r10);
        if (r >= 0 && !sd_touch_all(&v[i].len, sizeof v[i].len))
            r = -EFAULT;
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
