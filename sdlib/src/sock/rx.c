/* SPDX-License-Identifier: Apache-2.0
 *
 * rx.c - receiving: from the kernel, through the switch, from the ring.
 */
#include "sock/sock.h"

u64 sd_iov_bytes(const struct iovec *iov, u64 n)
{
    u64 sum = 0;

    for (u64 i = 0; i < n; i++)
        sum += iov[i].len;
    return sum;
}

/* The program's own call, at most `limit` bytes of it. */
static long kernel_rx(int fd, struct iovec *iov, u64 n, u32 flags, u64 limit)
{
    struct iovec one;
    struct msghdr m = {.iov = iov, .iovlen = n};

    if (n == 1 || sd_iov_bytes(iov, n) > limit) {
        /* A shorter answer is always allowed: give the first buffers only. */
        for (u64 i = 0; i < n; i++) {
            if (!iov[i].len)
                continue;
            one = (struct iovec){iov[i].base, min_u64(iov[i].len, limit)};
            return SYS6(__NR_recvfrom, fd, one.base, one.len, flags, 0, 0);
        }
    }
    return SYS3(__NR_recvmsg, fd, &m, flags);
}

static long plain_rx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags)
{
    struct sd_block *b = s->b;
    bool shared = g.mt || load_rlx(&b->users) > 1;
    long r;

    if (shared) {
        atomic_fetch_add(&b->rx_plain, 1); /* [A1] */
        if (load_acq(&b->state) == SD_BLOCK_ATTACHED && s->seg && load_acq(&s->seg->attached[b->side])) {
            atomic_fetch_sub(&b->rx_plain, 1);
            return -ERANGE; /* not an errno of recv: look again */
        }
    }
    r = kernel_rx(fd, iov, n, flags, (u64)-1 >> 1);
    if (shared)
        atomic_fetch_sub(&b->rx_plain, 1);
    COUNT(calls_kernel);
    if (r > 0) {
        b->bytes_tcp += (u64)r;
        b->established = 1;
    }
    return r;
}

/* Attached, but the peer still sends on TCP; it may switch at any moment, and then doorbells follow its bytes. What FIONREAD
 * counted before sw_ring was seen empty can only be bytes of the program. */
static long switching_rx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags, bool nb)
{
    u8 byte;
    i32 q = 0;
    long r;

    for (;;) {
        if (sd_rx_poll_switch(s, fd))
            return -ERANGE;
        SYS3(__NR_ioctl, fd, FIONREAD, &q);
        if (sd_sw_published(&s->e)) { /* published now: read up to it */
            if (sd_rx_poll_switch(s, fd))
                return -ERANGE;
            u64 left;
            i64 pos = sd_rx_pos(fd);
            SYS3(__NR_ioctl, fd, FIONREAD, &q);
            if (q > 0 && pos >= 0 && sd_sw_decide(&s->e, (u64)pos, &left) == SD_SW_DRAIN) {
                r = kernel_rx(fd, iov, n, (flags & ~(u32)MSG_WAITALL) | MSG_DONTWAIT, min_u64((u64)q, left));
                if (r != -EAGAIN)
                    return r;
            }
        } else if (q > 0) {
            return kernel_rx(fd, iov, n, (flags & ~(u32)MSG_WAITALL) | MSG_DONTWAIT, (u64)q);
        }
        r = SYS6(__NR_recvfrom, fd, &byte, 1, MSG_PEEK | (nb ? MSG_DONTWAIT : 0), 0, 0);
        if (r <= 0) {
            if (r == 0 && sd_rx_poll_switch(s, fd))
                return -ERANGE;
            return r;
        }
    }
}

/* The ring is empty and the program waits: spin, then park in recv on the program's own descriptor. */
static long wait_rx(struct sock *s, int fd)
{
    u64 budget = (u64)g.cfg->spin_us * g.tsc_per_us;
    u64 t0 = sd_tsc();
    long r;

    if (budget && sd_spin_pays(s)) {
        COUNT(spins);
        while (sd_tsc() - t0 < budget) {
            if (sd_rx_avail(&s->e)) {
                COUNT(spins_won);
                return 1;
            }
            cpu_relax();
        }
    } else if (budget) {
        SYS0(__NR_sched_yield);
        if (sd_rx_avail(&s->e))
            return 1;
    }
    u32 armed = sd_arm(s, POLLIN);
    sd_membarrier();
    if (sd_rx_news(&s->e)) {
        sd_disarm(s, armed);
        return 1;
    }
    r = sd_park(s, fd);
    sd_disarm(s, armed);
    if (r == -EAGAIN || r == -EINTR)
        return r; /* SO_RCVTIMEO, a handler without SA_RESTART */
    if (r < 0) { /* the error is consumed: keep it */
        atomic_fetch_or(&s->b->latched, LATCH_FIN | POLLRDHUP | POLLERR | POLLHUP);
        u32 err = sd_end_error(&s->e, (u32)-r);
        if (err)
            store_rel(&s->b->rx_err, err);
        return 1;
    }
    sd_look_at_kernel(s, fd);
    return 1;
}

/* Bytes into the buffers from `skip` on; consumes unless peek. */
static i64 ring_take(struct sock *s, struct iovec *iov, u64 n, u64 skip, bool peek)
{
    struct sd_block *b = s->b;
    i64 got;
    u32 held = sd_lock(s, &b->rx_lock);

    for (;;) {
        u64 from = load_rlx(&s->e.rx->head), pass = skip;
        got = 0;
        for (u64 i = 0; i < n; i++) {
            if (pass >= iov[i].len) {
                pass -= iov[i].len;
                continue;
            }
            i64 r = sd_rx_copy(&s->e, iov[i].base + pass, iov[i].len - pass, (u64)got);
            if (r < 0) {
                got = SD_BROKEN;
                break;
            }
            got += r;
            if ((u64)r < iov[i].len - pass)
                break;
            pass = 0;
        }
        if (got <= 0 || peek || sd_rx_commit(&s->e, from, (u64)got))
            break;
    }
    if (got > 0 && !peek)
        b->bytes_shm_rx += (u64)got;
    sd_unlock(&b->rx_lock, held);
    return got;
}

static long ring_rx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags, bool nb)
{
    struct sd_block *b = s->b;
    u64 want = sd_iov_bytes(iov, n), got = 0;
    bool peek = flags & MSG_PEEK;
    u64 calls = g.proc->ctr[SD_CTR_calls_kernel];

    for (;;) {
        i64 r = ring_take(s, iov, n, got, peek);
        if (unlikely(r < 0)) {
            sd_drop(s, fd);
            u32 err = got ? 0 : atomic_exchange(&b->rx_err, 0);
            return err ? -(long)err : (long)got;
        }
        got += (u64)r;
        if (r > 0 && !peek && sd_room_wanted(&s->e))
            sd_ring_bell(s, fd);
        if (got == want || (got && !(flags & MSG_WAITALL)) || (got && peek))
            break;
        if (sd_back_reached(&s->e)) {
            sd_rx_back(s, fd);
            return got ? (long)got : -ERANGE;
        }
        if (load_rlx(&b->latched) & LATCH_FIN) {
            if (load_acq(&s->e.rx->tail) != load_rlx(&s->e.rx->head))
                continue; /* stored before the FIN was sent */
            u32 err = got ? 0 : atomic_exchange(&b->rx_err, 0);
            return err ? -(long)err : (long)got;
        }
        if (nb) {
            if ((s->kcheck & 1) || sd_tsc() - s->checked_tsc > 50 * g.tsc_per_us) {
                sd_look_at_kernel(s, fd);
                COUNT(calls_kernel);
                if ((load_rlx(&b->latched) & LATCH_FIN) || load_acq(&s->e.rx->tail) != load_rlx(&s->e.rx->head))
                    continue;
            }
            return got ? (long)got : -EAGAIN;
        }
        long w = wait_rx(s, fd);
        if (w < 0)
            return got ? (long)got : w;
    }
    if (calls == g.proc->ctr[SD_CTR_calls_kernel])
        COUNT(calls_library);
    return (long)got;
}

long sd_rx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags)
{
    struct sd_block *b = s->b;
    bool nb = (flags & MSG_DONTWAIT) || load_rlx(&b->nonblock);
    long r;

    sd_tick(s, fd);
    if (unlikely(flags & (MSG_OOB | MSG_ERRQUEUE)))
        return kernel_rx(fd, iov, n, flags, (u64)-1 >> 1);
    do {
        if (load_rlx(&b->rx_mode) == SD_MODE_RING) {
            if (flags & MSG_TRUNC) { /* TCP: throw away instead of copying */
                u8 junk[256];
                struct iovec j = {junk, min_u64(sd_iov_bytes(iov, n), sizeof junk)};
                r = ring_rx(s, fd, &j, 1, flags & ~(u32)(MSG_TRUNC | MSG_WAITALL), nb);
            } else {
                r = ring_rx(s, fd, iov, n, flags, nb);
            }
        } else if (!sd_attached(s) || load_rlx(&b->rx_mode) == SD_MODE_BACK) {
            r = plain_rx(s, fd, iov, n, flags);
        } else {
            r = switching_rx(s, fd, iov, n, flags, nb);
            COUNT(calls_kernel);
            if (r > 0)
                b->bytes_tcp += (u64)r;
        }
    } while (r == -ERANGE);
    return r;
}
