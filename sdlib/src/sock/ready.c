/* SPDX-License-Identifier: Apache-2.0
 *
 * ready.c - readiness of an attached socket, and what it takes to sleep on it.
 */
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/rx.h"

/* SO_RCVLOWAT. What was seen last may be old: sd_rx_avail() only looks again when there is nothing. */
static bool enough(struct sock *s, u64 n)
{
    u64 low = sd_low_water(s);

    if (likely(n >= low))
        return true;
    s->e.rx_tail_seen = load_acq(&s->e.rx->tail); /* [R1] */
    return s->e.rx_tail_seen - load_rlx(&s->e.rx->head) >= low;
}

/* The kernel's low-water mark is 1, for the doorbells' sake: while the bytes still come by TCP, what it calls readable may be too little. */
static bool low_on_tcp(const struct sock *s)
{
    return unlikely(s->b->rcvlowat > 1) && load_rlx(&s->b->rx_mode) == SD_MODE_TCP;
}

/* There are bytes, too few, and the doorbell stays for others, to whom they are enough. */
static bool low_on_ring(const struct sock *s)
{
    return unlikely(s->b->rcvlowat > 1) && load_rlx(&s->b->rx_mode) == SD_MODE_RING && sd_bell_stays(s) && !sd_rx_news_of(&s->e, sd_low_water(s));
}

static u32 tcp_ready(struct sock *s, int fd, u32 kev)
{
    u32 end = kev & (POLLRDHUP | POLLHUP | POLLERR);
    i32 q = 0;
    i64 n = sd_rx_bytes(s, fd); /* those of the ring with them, if they are next */

    if (n < 0 && SYS3(__NR_ioctl, fd, FIONREAD, &q) == 0)
        n = q;
    return (kev & ~(u32)(POLLIN | POLLRDNORM)) | (end || n >= (i64)s->b->rcvlowat ? POLLIN | POLLRDNORM : 0);
}

/* The way back has ended, and what the kernel has said may have been of doorbells. */
static u32 back_ready(int fd, u32 kev)
{
    i32 q = 0;

    SYS3(__NR_ioctl, fd, FIONREAD, &q);
    return (kev & ~(u32)(POLLIN | POLLRDNORM)) | (q > 0 || (kev & POLLRDHUP) ? POLLIN | POLLRDNORM : 0);
}

/* Bytes that the peer has put on the ring behind those of TCP: more than what the kernel has told of. */
static u32 behind_tcp(struct sock *s, int fd)
{
    i32 q = 0;

    if (likely(!sd_sw_published(&s->e)) || !sd_rx_news(&s->e, 0))
        return 0;
    return SYS3(__NR_ioctl, fd, FIONREAD, &q) == 0 && q > 0 ? POLLIN | POLLRDNORM : 0;
}

/* A recvmmsg has kept an error for the next call. */
static u32 kept(const struct sock *s)
{
    return unlikely(load_rlx(&s->b->latched) & LATCH_KEPT) && load_rlx(&s->b->rx_err) ? POLLERR : 0;
}

static NOINLINE u32 latched_ready(const struct sock *s, u32 kev, u32 latched)
{
    const struct sd_block *b = s->b;
    u32 out = kept(s);

    if (!(latched & LATCH_FIN))
        return out;
    out |= POLLIN | POLLRDNORM | POLLRDHUP;
    if (load_rlx(&b->rx_err))
        out |= POLLERR;
    /* Closed in both directions, or dead: known to the kernel, to us (b->latched has HUP after a reset), or to both. */
    out |= kev & POLLHUP ? POLLHUP : latched & POLLHUP;
    if (b->tx_shut)
        out |= POLLHUP;
    return out;
}

static u32 rx_ready(struct sock *s, int fd, u32 kev)
{
    struct sd_block *b = s->b;
    u32 mask = POLLIN | POLLPRI | POLLRDHUP | POLLHUP | POLLERR | POLLRDNORM;
    u32 out = 0;
    i64 n;

    if (load_rlx(&b->rx_mode) == SD_MODE_TCP && !sd_rx_poll_switch(s, fd))
        return ((low_on_tcp(s) ? tcp_ready(s, fd, kev) : kev | behind_tcp(s, fd)) & mask) | kept(s);
    if (load_rlx(&b->rx_mode) == SD_MODE_RETIRE && !(sd_back_reached(&s->e) && sd_rx_back(s, fd)))
        return kev & (POLLRDHUP | POLLHUP | POLLERR); /* [S5] what is unread is on its way */
    if (load_rlx(&b->rx_mode) == SD_MODE_BACK)
        return kev & mask;
    n = sd_rx_avail(&s->e);
    if (n < 0) {
        sd_drop(s, fd);
        n = 0;
    }
    if (unlikely(n == 0 && sd_cork_pending(&s->e)) && sd_cork_over(s))
        n = sd_rx_avail(&s->e);
    if (n == 0 && sd_back_reached(&s->e) && sd_rx_back(s, fd)) /* before its errors are taken from the kernel, which tells them from here on */
        return back_ready(fd, kev & mask);
    if ((kev & (POLLIN | POLLRDHUP | POLLHUP | POLLERR)) || (n == 0 && (s->kcheck & 1)) || sd_end_comes(s)) {
        sd_look_at_kernel(s, fd);
        if (kev && !(kev & (POLLRDHUP | POLLHUP | POLLERR)))
            s->kcheck &= ~1u; /* the kernel was asked for these: no FIN stands behind the doorbell */
        if (s->kcheck & 1) /* it was a doorbell: what woke us may stand behind it */
            sd_look_at_kernel(s, fd);
        n = sd_rx_avail(&s->e);
        kev = sd_without_bells(s, kev);
    }
    if (n > 0 && enough(s, (u64)n))
        out |= POLLIN | POLLRDNORM;
    /* What is no end of the stream: urgent data, the error queue; and what came after its end, a reset for what we have sent since, which
     * may be seen together with the end. */
    out |= kev & (POLLPRI | POLLERR);
    if (n == 0 && sd_back_reached(&s->e) && sd_rx_back(s, fd))
        return back_ready(fd, kev & mask);
    u32 latched = load_rlx(&b->latched);
    return unlikely(latched & (LATCH_FIN | LATCH_KEPT)) ? out | latched_ready(s, kev, latched) : out;
}

/* A peer that reads no more, and cannot say so: where it is gone, the next send tells. */
static bool peer_died(struct sock *s, int fd)
{
    return sd_tsc() - s->asked_tsc > SD_LOOK_US * g.tsc_per_us && sd_peer_died(s, fd);
}

static u32 tx_ready(struct sock *s, int fd, u32 kev)
{
    struct sd_block *b = s->b;
    i64 room;

    if (load_rlx(&b->tx_mode) != SD_MODE_RING)
        return kev & (POLLOUT | POLLWRNORM);
    if (sd_tx_over(s) || (kev & (POLLERR | POLLHUP)))
        return POLLOUT | POLLWRNORM;
    room = sd_tx_look(&s->e);
    if (room < 0) {
        sd_drop(s, fd);
        return POLLOUT | POLLWRNORM;
    }
    if (!sd_tx_writable(&s->e, (u64)room))
        return (load_rlx(&b->latched) & LATCH_FIN) && peer_died(s, fd) ? POLLOUT | POLLWRNORM : 0;
    sd_tx_disarm(&s->e, &b->tx_wait);
    return POLLOUT | POLLWRNORM;
}

u32 sd_ready(struct sock *s, int fd, u32 kev)
{
    u32 out = rx_ready(s, fd, kev);

    return out | tx_ready(s, fd, kev);
}

/* [B2] The doorbell stays for others, who wait for room. */
static bool stays_for_room(const struct sock *s)
{
    return sd_bell_stays(s) && !sd_rx_news(&s->e, 0);
}

u32 sd_kernel_want(const struct sock *s, u32 want)
{
    const struct sd_block *b = s->b;
    bool over = load_rlx(&b->latched) & LATCH_FIN; /* the kernel would always have something to say, and no doorbell comes */
    u32 edge = want & EPOLLET;

    want &= ~EPOLLET;
    if ((low_on_tcp(s) || (!edge && (low_on_ring(s) || stays_for_room(s)))) && (want & (POLLIN | POLLRDNORM)))
        want = (want & ~(u32)(POLLIN | POLLRDNORM)) | POLLRDHUP; /* see sd_needs_timer() */
    if (load_rlx(&b->rx_mode) == SD_MODE_RING && want && !over)
        want |= POLLRDHUP; /* tells whether a doorbell was all that has come */
    if (load_rlx(&b->tx_mode) == SD_MODE_RING && (want & (POLLOUT | POLLWRNORM | POLLWRBAND))) {
        want &= ~(u32)(POLLOUT | POLLWRNORM | POLLWRBAND);
        want |= over ? 0 : POLLIN; /* room comes as a doorbell */
    }
    return want | edge;
}

static u32 arm_out(struct sock *s)
{
    if (sd_shared(s)) { /* for itself: another one that sees room must not take it back */
        sd_room_arm(&s->e);
        return 2 | SD_ARM_BARRIER;
    }
    sd_tx_arm(&s->e, &s->b->tx_wait); /* taken back by whoever sees room */
    return SD_ARM_BARRIER;
}

u32 sd_arm(struct sock *s, u32 want)
{
    struct sd_block *b = s->b;
    u32 armed = 0;

    /* Also while the peer is on TCP: looking again may find that it has switched, and takes the count that the ring was born with. */
    if (load_rlx(&b->rx_mode) != SD_MODE_BACK && (want & (POLLIN | POLLRDNORM)) && s->seg) {
        if (unlikely(load_rlx(&s->e.rx->nap) || load_rlx(&s->e.rx->nap_at)))
            store_rel(&s->e.rx->nap_at, 0), store_rel(&s->e.rx->nap, 0); /* [N1] */
        armed |= sd_rx_arm(&s->e) ? 1 | SD_ARM_BARRIER : 1;
    }
    if (load_rlx(&b->tx_mode) == SD_MODE_RING && (want & (POLLOUT | POLLWRNORM)))
        armed |= arm_out(s);
    if (unlikely(g.cfg->without & SD_WITHOUT_batching) && (armed & SD_ARM_BARRIER)) {
        sd_membarrier();
        armed &= ~SD_ARM_BARRIER;
    }
    return armed ? armed | s->epoch << SD_ARM_EPOCH : 0;
}

void sd_disarm(struct sock *s, u32 armed)
{
    if (unlikely(((armed >> SD_ARM_EPOCH) ^ s->epoch) << SD_ARM_EPOCH))
        return;
    if (armed & SD_ARM_NAMED)
        sd_rx_awake(&s->e); /* [W4] */
    if (armed & 1)
        sd_rx_disarm(&s->e);
    if (armed & 2)
        sd_room_disarm(&s->e);
}

bool sd_needs_timer(const struct sock *s, u32 want)
{
    const struct sd_block *b = s->b;

    if ((want & (POLLIN | POLLRDNORM)) && (low_on_tcp(s) || (load_rlx(&b->rx_mode) == SD_MODE_RING && sd_cork_pending(&s->e))))
        return true;
    if ((want & EPOLLET) && (want & (POLLIN | POLLRDNORM)) && load_rlx(&b->rx_mode) == SD_MODE_TCP && s->seg && sd_sw_published(&s->e) && sd_bell_due(&s->e))
        return true; /* the last doorbell cannot be eaten, since bytes of the program stand before it */
    if ((want & (POLLIN | POLLRDNORM)) && load_rlx(&b->rx_mode) == SD_MODE_RING) {
        /* More bytes than there are have no doorbell of their own while the last one stays for others. An edge has, and the next one of those that wait
         * exclusively: [B3]. */
        if (!(want & EPOLLET) && (low_on_ring(s) || stays_for_room(s)))
            return true;
    }
    return (want & (POLLOUT | POLLWRNORM)) && load_rlx(&b->tx_mode) == SD_MODE_RING && (load_rlx(&b->tx_wait) || sd_shared(s)) && sd_no_bells(s);
}

bool sd_spin_pays(const struct sock *s)
{
    return load_rlx(&s->e.rx->prod_cpu) != sd_tell_cpu(&s->e);
}
