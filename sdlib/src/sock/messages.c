/* SPDX-License-Identifier: Apache-2.0
 *
 * messages.c - the data calls with a message header: recvmsg, sendmsg, and many at once. Those of sockets that are not ours may carry
 * descriptors of ours (pass.c).
 */
#include "sock/given.h"
#include "sock/rx.h"

#define MOST_NAME 128u /* struct sockaddr_storage: the kernel reads no more */
#define MSG_CMSG_COMPAT (1u << 31) /* what the kernel says to itself of programs of 32 bit: it refuses it of others, and moves nothing */

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

/* What the kernel says of a header before anything is moved. TCP looks at no name, but a sender's is read by then. */
static long bad_header(const struct msghdr *m, u32 flags, bool send)
{
    if (!sd_is_given((u64)m, sizeof *m))
        return -EFAULT;
    if (m->name && (i32)m->namelen < 0)
        return -EINVAL;
    if (send && m->name && m->namelen && !sd_is_given((u64)m->name, min_u64((u64)m->namelen, MOST_NAME)))
        return -EFAULT;
    if (m->iovlen > MAX_IOV)
        return -EMSGSIZE;
    return sd_bad_iov(m->iov, m->iovlen, send ? 0 : flags);
}

static long recv_one(struct sock *s, int fd, struct msghdr *m, u32 flags, bool later)
{
    long r = bad_header(m, flags, false);

    if (r)
        return r;
    u64 room = m->controllen;
    bool told = false;
    r = sd_rx_msg(s, fd, m, flags, later, &told);
    if (r >= 0 && !told) {
        if (!sd_touch_all(m, sizeof *m))
            return -EFAULT;
        if (m->name)
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
    if (unlikely((u32)f->rdx & MSG_CMSG_COMPAT))
        return sd_done(s, SD_PASS);
    return sd_done(s, recv_one(s, (int)f->rdi, (struct msghdr *)f->rsi, (u32)f->rdx, false));
}

static long send_one(struct sock *s, int fd, struct msghdr *m, u32 flags)
{
    long r = bad_header(m, flags, true);

    return r ? r : sd_tx_msg(s, fd, m, flags);
}

SD_CALL(sd_sendmsg)
{
    struct sock *s = sd_sock_enter(f->rdi);

    if (!s)
        return sd_pass_send(f, t);
    if (unlikely((u32)f->rdx & MSG_CMSG_COMPAT))
        return sd_done(s, SD_PASS);
    return sd_done(s, send_one(s, (int)f->rdi, (struct msghdr *)f->rsi, (u32)f->rdx));
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
    if (sd_bad_range((u64)user, sizeof *user))
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
    for (long i = 0; i < r && sd_is_given((u64)&v[i], sizeof v[i]); i++)
        if (v[i].len && !(f->r10 & MSG_PEEK)) {
            bytes += v[i].len;
            sd_sized(s, 1, v[i].len);
        }
    sd_plain_leave(s, SD_OWES_RX, (long)bytes);
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
    if (unlikely(flags & MSG_CMSG_COMPAT))
        return sd_done(s, SD_PASS);
    if (!sd_attached(s) && (r = recv_plain(s, f)) != -ERANGE)
        return sd_done(s, r);
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
    return sd_done(s, i ? (long)i : r);
}

SD_CALL(sd_sendmmsg)
{
    struct sock *s = sd_sock_enter(f->rdi);
    struct mmsghdr *v = (struct mmsghdr *)f->rsi;
    u64 i, n = min_u64((u32)f->rdx, MAX_IOV);
    long r = 0;

    if (!s)
        return sd_pass_send_many(f, t);
    if (unlikely((u32)f->r10 & MSG_CMSG_COMPAT))
        return sd_done(s, SD_PASS);
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
    return sd_done(s, i ? (long)i : r);
}
