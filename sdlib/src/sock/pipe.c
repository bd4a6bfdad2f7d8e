/* SPDX-License-Identifier: Apache-2.0
 *
 * pipe.c - splice: from a pipe into the ring, and from the ring into a pipe.
 *
 * What the kernel refuses anyway (no pipe at either end, offsets of pipes and sockets) is passed on to it as it is: it moves no byte. What it
 * would carry and the ring cannot does not exist.
 */
#include "sock/far.h"
#include "sock/feed.h"

#define BOUNCE 4096
#define S_IFMT 0170000u
#define S_IFIFO 0010000u
#define RWF_NOWAIT 8
#define SPLICE_F_NONBLOCK 2u
#define SPLICE_F_MORE 4u
#define SPLICE_F_ALL 15u

/* Flags of splice: as the kernel has them, or more if the pipe is not to be waited for. -1: it would refuse the call. */
static i64 pipe_flags(int fd, u64 given, bool write)
{
    u64 st[18]; /* struct stat: st_mode is in the fourth word */
    u32 flags = (u32)given;
    long open;

    if ((flags & ~SPLICE_F_ALL) || SYS2(__NR_fstat, fd, st) < 0 || ((u32)st[3] & S_IFMT) != S_IFIFO || (open = SYS2(__NR_fcntl, fd, F_GETFL)) < 0)
        return -1;
    if (((u32)open & O_ACCMODE) == (write ? 0 : O_WRONLY))
        return -1; /* the wrong end of it */
    return flags | ((u32)open & O_NONBLOCK ? SPLICE_F_NONBLOCK : 0);
}

/* An address at which nothing can be read or written: the page below our own stacks. A call of the kernel that waits first, and then fails on it, has done
 * nothing but wait, and goes on behind handlers with SA_RESTART. ppoll never does. */
static void *nowhere(void) { return (void *)(sd_self()->lo - 8); }

/* Room in the pipe, which the kernel waits for before it looks at the socket: as vmsplice does. */
static long wait_space(int out, bool nb)
{
    struct pollfd p = {out, POLLOUT, 0};
    struct timespec64 now = {0, 0};
    struct iovec v = {nowhere(), 1};
    long r = SYS5(__NR_ppoll, &p, 1, &now, 0, 8);

    if (r < 0 || (r == 0 && nb))
        return r ? r : -EAGAIN;
    if (r == 0 && (r = SYS4(__NR_vmsplice, out, &v, 1, 0)) != -EFAULT)
        return r; /* SIGPIPE has come with EPIPE */
    return p.revents & POLLERR ? sd_broken_pipe(0) : 0;
}

/* Waits until the pipe has something, or no writer. */
static long wait_pipe(int in)
{
    long r = SYS3(__NR_read, in, nowhere(), 1);

    return r == -EFAULT ? 0 : r;
}

/* Reads or writes without waiting. A pipe that the kernel has spliced once, while the connection was on TCP, says EOPNOTSUPP to RWF_NOWAIT from then on
 * (pipe_clear_nowait(), fs/splice.c): there we look first. A piece is no longer than what a pipe that has room takes at once. */
static long pipe_now(u32 nr, int fd, struct iovec *v, short events)
{
    struct pollfd p = {fd, events, 0};
    struct timespec64 now = {0, 0};
    long r = SYS6(nr, fd, v, 1, -1, -1, RWF_NOWAIT);

    if (r != -EOPNOTSUPP)
        return r;
    return SYS5(__NR_ppoll, &p, 1, &now, 0, 8) == 0 ? -EAGAIN : SYS6(nr, fd, v, 1, -1, -1, 0);
}

/* A piece was counted as if it had been a call of its own. */
static void unsized(struct sock *s, u32 dir, u64 n)
{
    g.proc->sizes[dir][sd_size_class(n)]--;
    if (dir)
        s->b->messages_rx--;
    else
        s->b->messages_tx--;
}

/* All of the bounce buffer: its bytes are no longer in the pipe. */
static long put_all(struct sock *s, int fd, u8 *data, u64 n, u32 flags)
{
    u64 done = 0;

    while (done < n) {
        struct iovec v = {data + done, n - done};
        struct pollfd p = {fd, POLLOUT, 0};
        struct timespec64 ms = {0, 1000000};
        long r = sd_tx(s, fd, &v, 1, flags);
        if (r == -EAGAIN || r == -EINTR)
            SYS5(__NR_ppoll, &p, 1, &ms, 0, 8);
        else if (r < 0)
            return r;
        else if (r > 0) {
            done += (u64)r;
            unsized(s, 0, (u64)r);
        }
    }
    return 0;
}

/* May something be sent by TCP without waiting? Who may wait does so in the send. */
static i64 tcp_room(int fd, bool nb)
{
    struct pollfd p = {fd, POLLOUT, 0};
    struct timespec64 now = {0, 0};

    return !nb || SYS5(__NR_ppoll, &p, 1, &now, 0, 8) != 0 ? BOUNCE : 0;
}

/* `tcp`: not into the ring, but by our hands all the same, since no pipe gives its bytes twice and the trace is to have them. */
static long from_pipe(struct sock *s, int fd, int in, u64 count, bool nb, u32 flags, bool tcp)
{
    bool full_nb = load_rlx(&s->b->nonblock); /* SPLICE_F_NONBLOCK is of the pipe */
    u8 bounce[BOUNCE];
    u64 sent = 0, deadline = 0;
    long r = 0;

    while (sent < count && !(r = tcp ? 0 : sd_feed_open(s, fd))) {
        i64 room = tcp ? tcp_room(fd, full_nb) : sd_tx_look(&s->e);
        if (!room && tcp) {
            r = -EAGAIN;
            break;
        }
        if (room < 0) {
            sd_drop(s, fd);
            r = -ECONNRESET;
            break;
        }
        if (!tcp && (u64)room < sd_tx_least(&s->e)) {
            if ((r = sd_feed_no_room(s, fd, full_nb, &deadline)))
                break;
            fd = sd_fd_after_wait(s, fd);
            continue;
        }
        struct iovec v = {bounce, min_u64(min_u64((u64)room, sizeof bounce), count - sent)};
        r = pipe_now(__NR_preadv2, in, &v, POLLIN);
        if (r == -EAGAIN && !sent && !nb) {
            if ((r = wait_pipe(in)))
                break;
            continue;
        }
        if (r <= 0)
            break;
        u64 n = (u64)r;
        if ((r = put_all(s, fd, bounce, n, flags)))
            break;
        sent += n;
    }
    return sent ? (long)sent : r;
}

static long into_pipe(struct sock *s, int fd, int out, u64 count, bool nb)
{
    u8 bounce[BOUNCE];
    u64 moved = 0;
    long r = count ? wait_space(out, nb) : 0;

    if (r)
        return r;
    while (moved < count) {
        struct iovec v = {bounce, min_u64(count - moved, sizeof bounce)};
        r = sd_rx(s, fd, &v, 1, MSG_PEEK | (moved ? MSG_DONTWAIT : 0)); /* SPLICE_F_NONBLOCK is of the pipe, not of the socket */
        if (r <= 0)
            break;
        u64 had = v.len = (u64)r;
        r = nb || moved ? pipe_now(__NR_pwritev2, out, &v, POLLOUT) : SYS6(__NR_pwritev2, out, &v, 1, -1, -1, 0);
        if (r <= 0)
            break;
        v.len = (u64)r;
        r = sd_rx(s, fd, &v, 1, (sd_tracing(SD_TRACE_BYTES) ? 0 : MSG_TRUNC) | MSG_DONTWAIT); /* what the pipe took is consumed */
        if (r > 0)
            unsized(s, 1, (u64)r);
        moved += v.len;
        if (v.len < had)
            break;
    }
    return moved ? (long)moved : r;
}

static long splice_out(struct sock *s, struct sd_frame *f)
{
    i64 flags = f->rsi || f->r10 || (i64)f->r8 < 0 ? -1 : pipe_flags((int)f->rdi, f->r9, false);
    bool tcp;
    long r;

    if (flags < 0)
        return SD_PASS;
    do {
        tcp = !sd_feed_switch(s, (int)f->rdx);
        if (tcp && !sd_tracing(SD_TRACE_BYTES))
            r = sd_feed_plain(s, f);
        else
            r = from_pipe(s, (int)f->rdx, (int)f->rdi, f->r8, flags & SPLICE_F_NONBLOCK, flags & SPLICE_F_MORE ? MSG_MORE : 0, tcp);
    } while (r == -ERANGE);
    if (r > 0)
        sd_sized(s, 0, (u64)r);
    return r;
}

static long splice_in(struct sock *s, struct sd_frame *f)
{
    i64 flags = f->rsi || f->r10 || (i64)f->r8 < 0 ? -1 : pipe_flags((int)f->rdx, f->r9, true);
    long r;

    if (flags < 0)
        return SD_PASS;
    sd_tick(s, (int)f->rdi);
    if ((sd_attached(s) && load_rlx(&s->b->rx_mode) != SD_MODE_BACK) || sd_tracing(SD_TRACE_BYTES))
        return into_pipe(s, (int)f->rdi, (int)f->rdx, f->r8, flags & SPLICE_F_NONBLOCK);
    if (!sd_rx_plain_enter(s))
        return -ERANGE;
    r = SYS6(__NR_splice, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);
    sd_plain_leave(s, SD_OWES_RX, r);
    return r;
}

SD_CALL(sd_splice)
{
    struct sock *in = sd_sock_enter(f->rdi);
    struct sock *out = in ? NULL : sd_sock_enter(f->rdx);
    long r = SD_PASS;

    (void)t;
    if (out)
        r = splice_out(out, f);
    else if (in)
        do
            r = splice_in(in, f);
        while (r == -ERANGE);
    if (in && r > 0)
        sd_sized(in, 1, (u64)r);
    if (in)
        sd_sock_put(in);
    if (out)
        sd_sock_put(out);
    return r;
}

/* sendfile: out of a connection it goes into pipes only, and is a splice. */
long sd_sendfile_in(const struct sd_frame *f, struct sd_tcb *t)
{
    struct sd_frame as = *f;

    if (f->rdx || !sd_sock_of((u32)f->rsi) || pipe_flags((int)f->rdi, 0, true) < 0)
        return SD_PASS;
    as.rdi = (u32)f->rsi, as.rdx = f->rdi, as.r8 = f->r10;
    as.r9 = 0;
    as.rsi = as.r10 = 0;
    return sd_splice(&as, t);
}

SD_CALL(sd_tee)
{
    (void)f, (void)t;
    return SD_PASS; /* pipes only, by definition */
}
