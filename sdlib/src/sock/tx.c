/* SPDX-License-Identifier: Apache-2.0
 *
 * tx.c - sending: to the kernel, through the switch, into the ring.
 */
#include "poll/poll.h"
#include "ring/vec.h"
#include "sock/sock.h"

static long kernel_tx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags)
{
    struct sd_block *b = s->b;
    struct msghdr m = {.iov = iov, .iovlen = n};
    bool shared = g.mt || load_rlx(&b->users) > 1;
    long r;

    if (shared) {
        atomic_fetch_add(&b->tx_plain, 1);
        if (load_acq(&b->tx_mode) == SD_MODE_RING) { /* another thread has just switched */
            atomic_fetch_sub(&b->tx_plain, 1);
            return -ERANGE;
        }
    }
    r = n == 1 ? SYS6(__NR_sendto, fd, iov->base, iov->len, flags, 0, 0) : SYS3(__NR_sendmsg, fd, &m, flags);
    if (shared)
        atomic_fetch_sub(&b->tx_plain, 1);
    COUNT(calls_kernel);
    if (r > 0) {
        b->bytes_tcp += (u64)r;
        b->established = 1;
    }
    return r;
}

static u64 send_timeout_ns(int fd)
{
    i64 tv[2] = {0, 0};
    u32 len = sizeof tv;

    if (SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_SNDTIMEO_OLD, tv, &len) < 0)
        return 0;
    return (u64)tv[0] * 1000000000ull + (u64)tv[1] * 1000ull;
}

/* Arms for room. True if there is some already. */
static bool arm_room(struct sock *s)
{
    sd_tx_arm(&s->e, &s->b->tx_wait);
    sd_membarrier();
    return sd_tx_look(&s->e) != 0;
}

/* Sleeps until there may be room. 0, or -EINTR / -EAGAIN (SO_SNDTIMEO) for the program. */
static long wait_room(struct sock *s, int fd, u64 *deadline)
{
    struct sd_block *b = s->b;
    u64 t0 = sd_tsc(), budget = (u64)g.cfg->spin_us * g.tsc_per_us;
    long r;

    if (budget && sd_spin_pays(s)) {
        while (sd_tsc() - t0 < budget) {
            if (load_acq(&s->e.tx->head) != s->e.tx_head_seen)
                return 0;
            cpu_relax();
        }
    } else if (budget) { /* the reader is on this CPU, or spinning has not paid: let it run */
        SYS0(__NR_sched_yield);
        if (load_acq(&s->e.tx->head) != s->e.tx_head_seen)
            return 0;
    }
    /* A program that only sends never looks at the other direction, but its doorbells come from there. */
    if (load_rlx(&b->rx_mode) == SD_MODE_TCP)
        sd_rx_poll_switch(s, fd);
    if (!*deadline) {
        u64 to = send_timeout_ns(fd);
        *deadline = to ? sd_now_ns() + to : (u64)-1;
    }
    if (arm_room(s))
        return 0;
    if (*deadline == (u64)-1 && load_rlx(&b->rx_mode) == SD_MODE_RING && !sd_bells_over(&s->e) &&
        !(load_rlx(&b->latched) & LATCH_FIN)) {
        /* Restarts and cancellation come from the kernel; the only bytes that can arrive are doorbells and the FIN. */
        r = sd_park(s, fd);
        if (r == -EINTR)
            return r;
        if (r != -EAGAIN) {
            if (r < 0)
                atomic_fetch_or(&b->latched, LATCH_FIN | POLLRDHUP | POLLERR | POLLHUP);
            else
                sd_look_at_kernel(s, fd);
            return 0;
        }
    }
    /* Unread TCP bytes, or nobody who can ring: look again every millisecond. */
    struct timespec64 ms = {0, 1000000};
    COUNT(parks);
    COUNT(calls_kernel);
    u64 now = sd_now_ns();
    if (now >= *deadline)
        return -EAGAIN;
    r = SYS5(__NR_ppoll, 0, 0, &ms, 0, 8);
    return r == -EINTR ? r : 0;
}

static i64 ring_put(struct sock *s, struct iovec *iov, u64 n, u64 skip)
{
    struct sd_block *b = s->b;
    i64 put;
    u32 held = sd_lock(s, &b->tx_lock);

    for (;;) {
        u64 from = load_rlx(&s->e.tx->tail);
        put = 0;
        if (unlikely(load_rlx(&b->tx_mode) != SD_MODE_RING))
            break;
        put = sd_tx_gather(&s->e, iov, n, skip);
        if (put <= 0 || sd_tx_commit(&s->e, from, (u64)put))
            break;
    }
    if (put > 0)
        b->bytes_shm_tx += (u64)put;
    sd_unlock(&b->tx_lock, held);
    return put;
}

#define LOOK_US 10000
#define FAST_SENDS 32

/* Nobody reads the ring of a peer that has gone, so bytes put there would be taken as sent for as long as they fit, where TCP says so with
 * the second send. A peer that closes leaves a hint; that it was killed only the kernel knows, which is asked every LOOK_US. */
static bool peer_left(struct sock *s, int fd)
{
    struct pollfd p = {fd, POLLRDHUP, 0};
    struct timespec64 zero = {0, 0};
    u64 now = sd_tsc();

    s->fast_sends = FAST_SENDS;
    if (!(load_rlx(&s->e.rx->prod_hint) & SD_HINT_CLOSED) && now - s->asked_tsc < LOOK_US * g.tsc_per_us)
        return false;
    s->asked_tsc = now;
    COUNT(calls_kernel);
    if (SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) != 1)
        return false;
    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING)
        sd_look_at_kernel(s, fd); /* FIN or reset, as it is told with our rings in mind */
    return true;
}

static long broken_pipe(u32 flags)
{
    struct sd_tcb *t = sd_self();

    if (!(flags & MSG_NOSIGNAL))
        SYS3(__NR_tgkill, SYS0(__NR_getpid), t->tid, SIGPIPE);
    return -EPIPE;
}

/* Reported once, then a broken pipe, as TCP does. */
static long after_reset(struct sock *s, u32 flags)
{
    u32 err = atomic_exchange(&s->b->rx_err, 0);

    return err ? -(long)err : broken_pipe(flags);
}

static long ring_tx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags, bool nb)
{
    u64 want = sd_iov_bytes(iov, n), sent = 0, deadline = 0;
    u64 calls = g.proc->ctr[SD_CTR_calls_kernel];

    for (;;) {
        if (s->b->tx_shut)
            return sent ? (long)sent : broken_pipe(flags);
        if (unlikely(load_rlx(&s->b->latched) & LATCH_FIN) || sd_back_asked(&s->e) || peer_left(s, fd)) {
            if (sent)
                return (long)sent;
            if (load_rlx(&s->b->latched) & POLLERR)
                return after_reset(s, flags);
            sd_tx_back(s, fd, sd_back_asked(&s->e) ? SD_REASON_call : SD_REASON_peer_fin);
            return -ERANGE;
        }
        i64 r = ring_put(s, iov, n, sent);
        if (unlikely(r < 0)) {
            sd_drop(s, fd);
            return sent ? (long)sent : -ECONNRESET;
        }
        sent += (u64)r;
        if (r > 0) {
            sd_tx_disarm(&s->e, &s->b->tx_wait);
            if (sd_data_wanted(&s->e))
                sd_ring_bell(s, fd);
        }
        if (sent == want)
            break;
        if (load_rlx(&s->b->tx_mode) != SD_MODE_RING)
            return sent ? (long)sent : -ERANGE;
        if (nb) {
            if (sent) {
                sd_ep_full(s); /* who waits for room now must be woken though nobody was told EAGAIN */
                return (long)sent;
            }
            if (arm_room(s))
                continue;
            if (load_rlx(&s->b->rx_mode) == SD_MODE_RING) {
                sd_look_at_kernel(s, fd); /* a dead peer never makes room */
                COUNT(calls_kernel);
                if (load_rlx(&s->b->latched) & LATCH_FIN)
                    continue;
            }
            return -EAGAIN;
        }
        long w = wait_room(s, fd, &deadline);
        if (w < 0)
            return sent ? (long)sent : w;
    }
    if (calls == g.proc->ctr[SD_CTR_calls_kernel])
        COUNT(calls_library);
    return (long)sent;
}

long sd_tx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags)
{
    struct sd_block *b = s->b;
    bool nb = (flags & MSG_DONTWAIT) || load_rlx(&b->nonblock);
    long r;

    sd_tick(s, fd);
    if (unlikely(load_rlx(&b->latched) & POLLERR))
        return after_reset(s, flags);
    if (unlikely(flags & (MSG_OOB | MSG_ZEROCOPY | MSG_FASTOPEN)) && load_rlx(&b->tx_mode) == SD_MODE_RING)
        sd_tx_back(s, fd, SD_REASON_flag);
    do {
        if (load_rlx(&b->tx_mode) == SD_MODE_RING || (sd_attached(s) && !(flags & (MSG_OOB | MSG_ZEROCOPY)) && sd_try_switch_tx(s, fd)))
            r = ring_tx(s, fd, iov, n, flags, nb);
        else
            r = kernel_tx(s, fd, iov, n, flags);
    } while (r == -ERANGE);
    return r;
}

/* File or pipe straight into the ring: one copy instead of two. */
static long file_to_ring(struct sock *s, int fd, int in, i64 *off, u64 count, bool nb)
{
    u64 sent = 0, deadline = 0;

    while (sent < count) {
        if (s->b->tx_shut)
            return sent ? (long)sent : broken_pipe(0);
        if (load_rlx(&s->b->tx_mode) != SD_MODE_RING || (load_rlx(&s->b->latched) & LATCH_FIN))
            return sent ? (long)sent : -ERANGE;
        u32 held = sd_lock(s, &s->b->tx_lock);
        i64 room = sd_tx_look(&s->e);
        long r = 0;
        if (room > 0) {
            u64 from = load_rlx(&s->e.tx->tail), at = from & (s->e.bytes - 1);
            u64 len = min_u64(min_u64((u64)room, s->e.bytes - at), count - sent);
            r = off ? SYS4(__NR_pread64, in, s->e.tx_ring + at, len, *off) : SYS3(__NR_read, in, s->e.tx_ring + at, len);
            if (r > 0) {
                sd_tx_commit(&s->e, from, (u64)r);
                s->b->bytes_shm_tx += (u64)r;
            }
        }
        sd_unlock(&s->b->tx_lock, held);
        if (room < 0) {
            sd_drop(s, fd);
            return sent ? (long)sent : -ECONNRESET;
        }
        if (room > 0) {
            if (r <= 0)
                return sent ? (long)sent : r;
            sent += (u64)r;
            if (off)
                *off += r;
            sd_tx_disarm(&s->e, &s->b->tx_wait);
            if (sd_data_wanted(&s->e))
                sd_ring_bell(s, fd);
            if (!off)
                return (long)sent; /* a pipe: what was there */
            continue;
        }
        if (nb) {
            if (arm_room(s))
                continue;
            sd_ep_full(s);
            return sent ? (long)sent : -EAGAIN;
        }
        long w = wait_room(s, fd, &deadline);
        if (w < 0)
            return sent ? (long)sent : w;
    }
    return (long)sent;
}

/* Common to sendfile and splice into a socket of ours: on the ring, or SD_PASS for the kernel. */
static long feed(struct sock *s, int fd, int in, i64 *off, u64 count, bool nb)
{
    long r;

    sd_tick(s, fd);
    if (load_rlx(&s->b->tx_mode) != SD_MODE_RING && !(sd_attached(s) && sd_try_switch_tx(s, fd)))
        return SD_PASS;
    if (load_rlx(&s->b->latched) & LATCH_FIN) {
        sd_tx_back(s, fd, SD_REASON_peer_fin);
        return SD_PASS;
    }
    r = file_to_ring(s, fd, in, off, count, nb || load_rlx(&s->b->nonblock));
    return r == -ERANGE ? SD_PASS : r;
}

SD_CALL(sd_sendfile)
{
    struct sock *s = sd_sock_enter(f->rdi);
    i64 *off = (i64 *)f->rdx, pos;
    long r;

    (void)t;
    if (!s)
        return SD_PASS;
    if (off) {
        r = feed(s, (int)f->rdi, (int)f->rsi, off, f->r10, false);
    } else {
        pos = SYS3(__NR_lseek, (int)f->rsi, 0, 1);
        r = feed(s, (int)f->rdi, (int)f->rsi, pos >= 0 ? &pos : NULL, f->r10, false);
        if (r > 0 && pos >= 0)
            SYS3(__NR_lseek, (int)f->rsi, pos, 0);
    }
    sd_sock_put(s);
    return r;
}

SD_CALL(sd_splice)
{
    struct sock *in = sd_sock_enter(f->rdi);
    struct sock *out = in ? NULL : sd_sock_enter(f->rdx);
    bool nb = f->r9 & 2; /* SPLICE_F_NONBLOCK */
    long r = SD_PASS;

    (void)t;
    if (out && !f->rsi && !f->r10) {
        r = feed(out, (int)f->rdx, (int)f->rdi, NULL, f->r8, nb);
    } else if (in && !f->rsi && !f->r10) {
        sd_tick(in, (int)f->rdi);
        if (sd_attached(in) && load_rlx(&in->b->rx_mode) != SD_MODE_BACK) {
            u8 bounce[4096];
            struct iovec v = {bounce, min_u64(f->r8, sizeof bounce)};
            r = sd_rx(in, (int)f->rdi, &v, 1, MSG_PEEK | (nb ? MSG_DONTWAIT : 0));
            if (r > 0) {
                r = SYS3(__NR_write, (int)f->rdx, bounce, r);
                v.len = r > 0 ? (u64)r : 0;
                if (r > 0)
                    sd_rx(in, (int)f->rdi, &v, 1, MSG_DONTWAIT); /* what the pipe took is consumed */
            }
        }
    }
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
