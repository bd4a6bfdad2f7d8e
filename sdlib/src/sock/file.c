/* SPDX-License-Identifier: Apache-2.0
 *
 * file.c - sendfile: a file straight into the ring.
 *
 * What the kernel refuses anyway (a file that has no position, a bad pointer) is passed on to it as it is: it moves no byte.
 */
#include "base/user.h"
#include "ring/cork.h"
#include "ring/dates.h"
#include "sock/far.h"
#include "sock/feed.h"

#define BOUNCE 4096
#define S_IFMT 0170000u
#define S_IFREG 0100000u
#define NEAR 16384 /* a call for each page would take longer than the copy */

/* As pread(). The kernel stores as anybody does: where we store past the caches, bytes take the way over a few lines that stay in ours (ring.h). */
static long read_file(const struct sd_end *e, int in, u8 *to, u64 n, i64 off)
{
    u8 near[NEAR];
    u64 done = 0;
    long r;

    if (!sd_tx_past(e, n))
        return SYS4(__NR_pread64, in, to, n, off);
    do {
        r = SYS4(__NR_pread64, in, near, min_u64(n - done, sizeof near), off + (i64)done);
        if (r > 0 && sd_copy_past(to + done, near, (u64)r))
            return -EFAULT;
        done += r > 0 ? (u64)r : 0;
    } while (r == sizeof near && done < n);
    return done ? (long)done : r;
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
        room = room > 0 && (u64)room < behind + sd_tx_least(&s->e) ? 0 : room - (room > 0 ? (i64)behind : 0);
        r = room <= 0 ? FULL : read_file(&s->e, in, s->e.tx_ring + at, min_u64(min_u64((u64)room, s->e.bytes - at), most), off);
    }
    if (r > 0 && !hold)
        sd_tx_dated(&s->e, from); /* [O1] */
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

long sd_feed_open(struct sock *s, int fd)
{
    if (s->b->tx_shut)
        return sd_after_shutdown(fd, 0);
    if (load_rlx(&s->b->latched) & POLLERR)
        return sd_after_reset(s, 0);
    if (load_rlx(&s->b->tx_mode) != SD_MODE_RING || sd_must_go_back(s))
        return -ERANGE;
    return 0;
}

long sd_feed_no_room(struct sock *s, int fd, bool nb, u64 *deadline)
{
    if (!nb)
        return sd_wait_room(s, fd, deadline, sd_tx_least(&s->e));
    if (sd_arm_room(s, sd_tx_least(&s->e)))
        return 0;
    sd_ep_full(s);
    return -EAGAIN;
}

static long from_file(struct sock *s, int fd, int in, i64 *off, u64 count, bool nb)
{
    u64 sent = 0, deadline = 0;
    long r = 0;

    while (sent < count && !(r = sd_feed_open(s, fd))) {
        u64 tail = load_rlx(&s->e.tx->tail);
        r = piece(s, fd, in, *off, count - sent);
        if (r == FULL) {
            sd_uncork(s, fd);
            if ((r = sd_feed_no_room(s, fd, nb, &deadline)))
                break;
            fd = sd_fd_after_wait(s, fd);
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

long sd_feed_plain(struct sock *s, const struct sd_frame *f)
{
    long r;

    if (!sd_tx_plain_enter(s))
        return -ERANGE;
    r = SYS6((u32)f->rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);
    sd_plain_leave(s, SD_OWES_TX, r);
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

bool sd_feed_switch(struct sock *s, int fd)
{
    sd_tick(s, fd);
    if (load_rlx(&s->b->latched) & POLLERR)
        return true; /* sd_feed_open() tells the program */
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RETIRE)
        sd_tx_back(s, fd, SD_REASON_stalled);
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RING && (s->b->tx_shut ? sd_must_go_back(s) : sd_must_leave(s, fd))) {
        if (load_rlx(&s->b->latched) & POLLERR)
            return true;
        sd_tx_leave(s, fd);
    }
    return load_rlx(&s->b->tx_mode) == SD_MODE_RING || (sd_attached(s) && sd_try_switch_tx(s, fd));
}

/* What the kernel would say of such a file, 0: it sends. An ordinary one that has bytes is sent; of others (devices, /proc) the kernel is asked, with a pipe in the
 * place of the connection. */
static long refusal(int in, i64 at, bool own_position)
{
    u64 st[18]; /* struct stat: st_mode is in the fourth word, st_size the seventh */
    i32 pipe[2];
    long r = SYS2(__NR_fstat, in, st);

    if (r < 0 || (((u32)st[3] & S_IFMT) == S_IFREG && (i64)st[6] > 0))
        return r;
    if (SYS2(__NR_pipe2, pipe, O_CLOEXEC) < 0)
        return 0; /* no descriptor is left: read(2) decides */
    r = SYS4(__NR_sendfile, pipe[1], in, &at, 1);
    SYS1(__NR_close, pipe[0]);
    SYS1(__NR_close, pipe[1]);
    return r >= 0 ? 0 : r == -ESPIPE && own_position ? -EINVAL : r; /* we have given it an offset */
}

/* Has the file a position? Where it is; a program that gives its own saves the call, and pread() says the same of a file that has none. */
static i64 position(const struct sd_frame *f, const i64 *off)
{
    return off && f->r10 ? 0 : SYS3(__NR_lseek, (int)f->rsi, 0, 1);
}

SD_CALL(sd_sendfile)
{
    struct sock *s = sd_sock_enter(f->rdi);
    i64 *off = (i64 *)f->rdx, pos;
    u64 sent = 0;
    bool midway; /* through it, the connection has gone back to TCP */
    long r;

    if (!s)
        return sd_sendfile_in(f, t);
    pos = position(f, off);
    if (pos < 0 || (i64)f->r10 < 0 || (off && sd_bad_ptr(off))) {
        sd_sock_put(s);
        return SD_PASS;
    }
    do {
        i64 at = off ? *off : pos;
        struct sd_frame rest = *f;
        rest.r10 -= sent;
        midway = false;
        if (!sd_feed_switch(s, (int)f->rdi)) {
            r = sd_feed_plain(s, &rest);
            if (sd_tracing(SD_TRACE_BYTES) && r > 0)
                saw_file(s, (int)f->rdi, (int)f->rsi, at, (u64)r);
        } else if (!sent && (r = refusal((int)f->rsi, at, !off))) {
            break;
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
        sd_sized(s, 0, (u64)r);
    sd_sock_put(s);
    return r;
}
