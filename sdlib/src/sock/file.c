/* SPDX-License-Identifier: Apache-2.0
 *
 * file.c - sendfile and splice: files and pipes straight into the ring, and from it into a pipe.
 *
 * What the kernel refuses anyway (no pipe at either end of a splice, offsets of pipes and sockets, a sendfile from what has no position) is
 * passed on to it as it is: it moves no byte. What it would carry and the ring cannot does not exist.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/sock.h"

#define BOUNCE 4096
#define S_IFMT 0170000u
#define S_IFIFO 0010000u
#define RWF_NOWAIT 8
#define SPLICE_F_MORE 4

static bool is_pipe(int fd)
{
    u64 st[18]; /* struct stat: st_mode is in the fourth word */

    return SYS2(__NR_fstat, fd, st) == 0 && ((u32)st[3] & S_IFMT) == S_IFIFO;
}

/* One piece of the file straight into the ring, as much as lies in one part of it. Returns what pread() did; -ERANGE: the ring is not to be used
 * any more, or somebody else has put something there meanwhile: the file still has it; FULL: there is no room. */
#define FULL (-ENOBUFS)
static long piece(struct sock *s, int fd, int in, i64 off, u64 most)
{
    bool hold = sd_corked(s, 0);
    _Atomic u64 *index = hold ? &s->e.tx->held : &s->e.tx->tail;
    struct sd_hold h;
    u64 from = 0;
    i64 room = 0;
    long r = -ERANGE;

    sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RING) {
        u64 behind = 0;
        if (hold) {
            behind = sd_cork_begin(&s->e);
        } else {
            sd_cork_uncover(s->e.tx, s->e.bytes, s->e.bytes);
            sd_tx_begin(&s->e);
        }
        from = load_rlx(index);
        u64 at = (from - s->e.tx_base) & (s->e.bytes - 1);
        room = sd_tx_look(&s->e);
        room = room > 0 && (u64)room <= behind ? 0 : room - (room > 0 ? (i64)behind : 0);
        r = room <= 0 ? FULL : SYS4(__NR_pread64, in, s->e.tx_ring + at, min_u64(min_u64((u64)room, s->e.bytes - at), most), off);
    }
    if (r > 0 && !sd_commit_index(&h, index, from, from + (u64)r)) /* [R1] [C1] */
        r = -ERANGE;
    if (r > 0 && hold)
        sd_cork_put(s, fd);
    if (r > 0) {
        s->b->bytes_shm_tx += (u64)r;
        struct iovec here = {s->e.tx_ring + ((from - s->e.tx_base) & (s->e.bytes - 1)), (u64)r};
        if (sd_tracing(SD_TRACE_BYTES)) /* inside: nobody writes over it yet */
            sd_saw_ring(s, 0, from, &here, 0, (u64)r);
    }
    sd_leave(&h);
    if (room < 0)
        sd_drop(s, fd);
    return room < 0 ? -ECONNRESET : r;
}

/* Why no more can go into the ring now: 0: go on; -ERANGE: it is no longer on the ring. */
static long ring_open(struct sock *s, int fd)
{
    if (s->b->tx_shut)
        return sd_after_shutdown(fd, 0);
    if (load_rlx(&s->b->latched) & POLLERR)
        return sd_after_reset(s, 0);
    if (load_rlx(&s->b->tx_mode) != SD_MODE_RING || sd_must_go_back(s))
        return -ERANGE;
    return 0;
}

/* There is no room: 0 when there may be some, or what the program is told. */
static long no_room(struct sock *s, int fd, bool nb, u64 *deadline)
{
    if (!nb)
        return sd_wait_room(s, fd, deadline, 1);
    if (sd_arm_room(s))
        return 0;
    sd_ep_full(s);
    return -EAGAIN;
}

static long from_file(struct sock *s, int fd, int in, i64 *off, u64 count, bool nb)
{
    u64 sent = 0, deadline = 0;
    long r = 0;

    while (sent < count && !(r = ring_open(s, fd))) {
        u64 tail = load_rlx(&s->e.tx->tail);
        r = piece(s, fd, in, *off, count - sent);
        if (r == FULL) {
            sd_uncork(s, fd);
            if ((r = no_room(s, fd, nb, &deadline)))
                break;
            continue;
        }
        if (r <= 0 && r != -ERANGE)
            break;
        if (r > 0) {
            *off += r;
            sent += (u64)r;
            sd_cork_posted(s, fd, tail);
        }
    }
    return sent ? (long)sent : r;
}

/* Waits until the pipe has something, or no writer. */
static long wait_pipe(int in)
{
    struct pollfd p = {in, POLLIN, 0};
    long r = SYS5(__NR_ppoll, &p, 1, 0, 0, 8);

    return r < 0 ? r : 0;
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
static void unsized(u32 dir, u64 n) { g.proc->sizes[dir][sd_size_class(n)]--; }

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
            unsized(0, (u64)r);
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
    bool full_nb = nb || load_rlx(&s->b->nonblock);
    u8 bounce[BOUNCE];
    u64 sent = 0, deadline = 0;
    long r = 0;

    while (sent < count && !(r = tcp ? 0 : ring_open(s, fd))) {
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
        if (!room) {
            if ((r = no_room(s, fd, full_nb, &deadline)))
                break;
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

/* The kernel's own call, where both ends are on TCP. */
static long plain_call(struct sock *s, const struct sd_frame *f)
{
    long r;

    if (!sd_tx_plain_enter(s))
        return -ERANGE;
    r = SYS6((u32)f->rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);
    sd_tx_plain_leave(s, r);
    return r;
}

/* What the kernel has sent of a file, for the trace: read once more. */
static NOINLINE void saw_file(struct sock *s, int fd, int in, i64 at, u64 n)
{
    u8 bounce[BOUNCE];
    struct iovec v = {bounce, 0};
    u64 pos = sd_saw_place(s, fd, 0, n);

    while (n) {
        long r = SYS4(__NR_pread64, in, bounce, min_u64(n, sizeof bounce), at);
        if (r <= 0)
            break;
        v.len = (u64)r;
        sd_saw(s, 0, pos, &v, 0, (u64)r);
        at += r;
        pos += (u64)r;
        n -= (u64)r;
    }
}

/* Is the next byte to go into the ring? */
static bool to_ring(struct sock *s, int fd)
{
    sd_tick(s, fd);
    if (load_rlx(&s->b->latched) & POLLERR)
        return true; /* ring_open() tells the program */
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RETIRE)
        sd_tx_back(s, fd, SD_REASON_stalled);
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RING && sd_must_go_back(s))
        sd_tx_back(s, fd, sd_back_asked(&s->e) ? SD_REASON_call : SD_REASON_peer_fin);
    return load_rlx(&s->b->tx_mode) == SD_MODE_RING || (sd_attached(s) && sd_try_switch_tx(s, fd));
}

SD_CALL(sd_sendfile)
{
    struct sock *s = sd_sock_enter(f->rdi);
    i64 *off = (i64 *)f->rdx, pos;
    u64 sent = 0;
    bool midway; /* through it, the connection has gone back to TCP */
    long r;

    (void)t;
    if (!s)
        return SD_PASS;
    pos = SYS3(__NR_lseek, (int)f->rsi, 0, 1);
    if (pos < 0 || (off && sd_bad_ptr(off))) {
        sd_sock_put(s);
        return SD_PASS;
    }
    do {
        i64 at = off ? *off : pos;
        struct sd_frame rest = *f;
        rest.r10 -= sent;
        midway = false;
        if (!to_ring(s, (int)f->rdi)) {
            r = plain_call(s, &rest);
            if (sd_tracing(SD_TRACE_BYTES) && r > 0)
                saw_file(s, (int)f->rdi, (int)f->rsi, at, (u64)r);
        } else {
            r = from_file(s, (int)f->rdi, (int)f->rsi, &at, rest.r10, load_rlx(&s->b->nonblock));
            if (off)
                *off = at;
            else if (r > 0)
                pos = SYS3(__NR_lseek, (int)f->rsi, pos + r, 0);
            midway = r > 0 && (u64)r < rest.r10 && !load_rlx(&s->b->nonblock) && load_rlx(&s->b->tx_mode) != SD_MODE_RING;
        }
        sent += r > 0 ? (u64)r : 0;
    } while (r == -ERANGE || midway);
    r = sent ? (long)sent : r;
    if (r > 0)
        sd_sized(0, (u64)r);
    sd_sock_put(s);
    return r;
}

static long into_pipe(struct sock *s, int fd, int out, u64 count, bool nb)
{
    u8 bounce[BOUNCE];
    u64 moved = 0;
    long r = 0;

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
            unsized(1, (u64)r);
        moved += v.len;
        if (v.len < had)
            break;
    }
    return moved ? (long)moved : r;
}

static long splice_out(struct sock *s, struct sd_frame *f)
{
    bool tcp;
    long r;

    if (f->rsi || f->r10 || !is_pipe((int)f->rdi))
        return SD_PASS;
    do {
        tcp = !to_ring(s, (int)f->rdx);
        if (tcp && !sd_tracing(SD_TRACE_BYTES))
            r = plain_call(s, f);
        else
            r = from_pipe(s, (int)f->rdx, (int)f->rdi, f->r8, f->r9 & 2, f->r9 & SPLICE_F_MORE ? MSG_MORE : 0, tcp);
    } while (r == -ERANGE);
    if (r > 0)
        sd_sized(0, (u64)r);
    return r;
}

static long splice_in(struct sock *s, struct sd_frame *f)
{
    long r;

    if (f->rsi || f->r10 || !is_pipe((int)f->rdx))
        return SD_PASS;
    sd_tick(s, (int)f->rdi);
    if ((sd_attached(s) && load_rlx(&s->b->rx_mode) != SD_MODE_BACK) || sd_tracing(SD_TRACE_BYTES))
        return into_pipe(s, (int)f->rdi, (int)f->rdx, f->r8, f->r9 & 2);
    if (!sd_rx_plain_enter(s))
        return -ERANGE;
    r = SYS6(__NR_splice, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);
    sd_rx_plain_leave(s, r);
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
        sd_sized(1, (u64)r);
    if (in)
        sd_sock_put(in);
    if (out)
        sd_sock_put(out);
    return r;
}

SD_CALL(sd_tee)
{
    (void)f, (void)t;
    return SD_PASS; /* pipes only, by definition */
}
