/* SPDX-License-Identifier: Apache-2.0
 *
 * doorbell.c - bells are sent, slept for and eaten; the end of the stream, which the kernel tells (sock.h).
 *
 * The protocol is ring/bell.h. Those who eat exclude each other by the receiving token.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/sock.h"

/* ---- [W4] which sleeps we have ended already. By a hash that only this program can compute, so that a peer which names another one's sleep
 * ends its own alone: the tree that it belongs to is the monitor's word. All that descend from one process by fork share the secret, and note it where
 * all of them look, for a sleeper may have a connection with each of them, as a client of a server that forks has. They may overwrite each other's; that
 * costs a bell. */
static _Atomic u64 *place_of(u64 as) { return &g.area[0]->told[as % SD_TOLD]; }

static u64 told_as(const struct sock *s, u64 sleep)
{
    return sd_mix(sd_mix(sleep ^ g.secret) + s->b->peer_tree);
}

static void tell(const struct sock *s, u64 sleep)
{
    u64 as = told_as(s, sleep);

    if (s->b->peer_tree >> 31)
        store_rel(place_of(as), as);
}

static bool was_told(const struct sock *s)
{
    u64 sleep = sd_is_far(s) ? 0 : sd_tx_sleep(&s->e), as;

    if (!sleep || !(s->b->peer_tree >> 31))
        return false;
    as = told_as(s, sleep);
    return load_acq(place_of(as)) == as;
}

/* In a direction that is on the ring. */
void sd_send_bell(struct sock *s, int fd, struct sd_hold *h, u32 more)
{
    u64 sleep;
    long r;
    u8 byte;

    if (sd_is_far(s)) {
        sd_far_nudge(s);
        return;
    }
    sleep = sd_tx_sleep(&s->e);
    if (!sd_bell_take(&s->e)) {
        sd_tx_unplan(&s->e); /* a sleeper that has not heard the last bell may be dead: see sd_peer_left() */
        return;
    }
    store_rlx(&s->e.tx->rung_at, sd_tsc());
    byte = sd_bell_byte(&s->e); /* [S6] */
    r = sd_revocable(h, __NR_sendmsg, fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL | more);
    if (r == 1) {
        COUNT_OF(s, bells_tx);
        if (sleep && !more) /* else the kernel may hold it back */
            tell(s, sleep);
        return;
    }
    /* EAGAIN: the peer has unread TCP bytes, is awake by them and will look at the ring. EINTR: thrown out. Others: it is gone. */
    sd_bell_give_back(&s->e);
    if (r != -EAGAIN && r != -EINTR)
        s->kcheck |= 1;
}

static void ring_bell(struct sock *s, int fd, u32 more)
{
    struct sd_hold h;

    if (s->b->tx_shut)
        return; /* who waits for room knows that nobody can ring: sd_no_bells() */
    if (load_rlx(&s->b->tx_mode) == SD_MODE_TCP)
        sd_try_switch_tx(s, fd); /* a bell may only ring in a direction that has switched */
    if (!sd_bell_enter(s, &h))
        return;
    sd_send_bell(s, fd, &h, more);
    sd_leave(&h);
}

void sd_ring_bell(struct sock *s, int fd)
{
    sd_nap_end(s); /* whatever else the bell is for */
    ring_bell(s, fd, 0);
}

void sd_ring_bell_late(struct sock *s, int fd)
{
    sd_nap_end(s);
    ring_bell(s, fd, MSG_MORE);
}

#define OFTEN_US 1000

/* The reader sleeps. If it does so often, it shall not need a membarrier for it [W3]. */
void sd_wake_reader(struct sock *s, int fd)
{
    u64 now = sd_tsc(), before = s->woken_tsc;

    s->woken_tsc = now;
    sd_tell_cpu(&s->e); /* who only sends never waits, and its reader would spin for it on the CPU that it needs */
    if (now - before < OFTEN_US * g.tsc_per_us && load_rlx(&s->b->users) <= 1 && sd_fence_begin(&s->e)) {
        if (g.mt)
            sd_membarrier_threads(); /* those that have not seen yet that they have to fence */
        sd_fence_say(&s->e);
        sd_fence();
        if (load_rlx(&s->b->users) > 1) /* somebody has come in who does not know */
            sd_fence_end(&s->e);
    }
    if (!sd_is_far(s))
        sd_nap_offer(s);
    if (sd_nap_end(s) || was_told(s))
        sd_tx_unplan(&s->e); /* it may be dead: see sd_peer_left() */
    else
        ring_bell(s, fd, 0);
}

void sd_latch_end(struct sock *s, int fd, u32 err)
{
    struct sd_block *b = s->b;
    if (unlikely(err == EFAULT || err == EINTR || err == ERESTARTSYS)) { /* kept by a recvmmsg before the connection moved */
        store_rel(&b->rx_err, err);
        atomic_fetch_or(&b->latched, LATCH_KEPT);
        return;
    }
    bool own = !err && load_rlx(&b->rx_shut); /* the program's end, not the peer's */
    /* What the peer has sent by TCP since is answered with a reset, of which both ends are told. */
    bool answered = err == ECONNRESET && load_rlx(&b->rx_shut) && sd_back_published(&s->e);
    u32 said = err;

    if (!own && sd_is_far(s) && !sd_far_settle(s)) { /* [H1] */
        if (!err && load_rlx(&b->tx_mode) != SD_MODE_BACK)
            g.proc->moved_back[sd_far_why(s)]++;
        err = err ? err : ECONNRESET;
    } else if (!own && !answered) {
        err = sd_end_error(&s->e, err);
    }
    if (!own)
        sd_cork_uncover(s->e.rx, s->e.bytes, s->e.bytes); /* nothing is held behind its end */
    if (err && !said) /* dead, though its kernel could not know of the bytes in the ring: ours shall know that it is over */
        SYS2(__NR_shutdown, fd, SHUT_RDWR);
    if (err)
        store_rel(&b->rx_err, err);
    atomic_fetch_or(&b->latched, LATCH_FIN | POLLRDHUP | (err ? POLLERR | POLLHUP : 0));
}

/* Sleeps in the kernel until something arrives on the descriptor (doorbell, FIN, error): recv's value for one peeked byte. */
long sd_park(struct sock *s, int fd, u64 sleeper)
{
    struct pollfd p = {fd, POLLIN, 0};
    struct timespec64 ms = {0, 1000000};
    struct sd_tcb *t = sd_self();
    long r;

    COUNT_OF(s, parks);
    COUNT(calls_kernel);
    if (sleeper != SD_NOT_PARKED && sd_bell_stays(s)) {
        /* We wait for more than there is, and others may not know yet of what there is: the bell, which stays for them, would wake us at once. */
        r = SYS5(__NR_ppoll, 0, 0, &ms, 0, 8);
        return r == -EINTR ? r : 1;
    }
    if (sleeper == SD_PARK_UNKNOWN || sd_cork_pending(&s->e)) { /* nobody knows that we sleep, so the bell may be eaten before we see it */
        r = SYS5(__NR_ppoll, &p, 1, &ms, 0, 8);
        return r < 0 ? r : 1;
    }
    t->wakeable = SD_WAKE_AS(1);
    r = SYS6(__NR_recvfrom, fd, &t->bell, 1, MSG_PEEK, 0, 0);
    t->wakeable = 0;
    return r;
}

static bool company(const struct sock *s)
{
    return sd_shared(s) && (load_rlx(&s->b->users) > 1 || load_rlx(&s->parked) || s->b->exclusive);
}

/* [B2] Somebody waits for room, and there is as much as makes a socket writable (ready.c). What was armed by a send that was told EAGAIN, and by a poll
 * that is over, counts, too: then others look every millisecond until somebody asks whether it is writable. */
static bool room_for_others(const struct sock *s)
{
    u64 used = load_rlx(&s->e.tx->tail) - load_acq(&s->e.tx->head); /* [W2] */

    return load_rlx(&s->e.tx->tx_armed) && used <= s->e.tx_bytes && sd_tx_writable(&s->e, s->e.tx_bytes - used);
}

/* What a doorbell was for, and somebody may not have seen yet. Fewer bytes than SO_RCVLOWAT says are for those only who receive, and wait for no more. */
static bool unseen(const struct sock *s)
{
    u64 head = load_acq(&s->e.rx->head), n = load_acq(&s->e.rx->tail) - head; /* in this order, as in sd_rx_news() */

    if (likely(n && n >= sd_low_water(s)))
        return true;
    return (n && sd_sleepers(s, n)) || room_for_others(s);
}

bool sd_bell_stays(const struct sock *s)
{
    return unlikely(sd_shared(s)) && sd_bell_due(&s->e) && company(s) && unseen(s);
}

/* Inside. The kernel has a second one: what it is behind the first one is known by `back`, looked at afterwards. How many bytes the first one has, or 0. */
static u64 doubled(struct sock *s, int fd)
{
    u8 two[2];

    if (sd_is_far(s))
        return sd_far_doubled(s, fd);
    return SYS6(__NR_recvfrom, fd, two, 2, MSG_DONTWAIT | MSG_PEEK, 0, 0) == 2 && !sd_back_published(&s->e);
}

/* [B3] Inside. One of two bells is eaten, or both are on the way and will be heard. */
static void eat_second(struct sock *s, int fd, struct sd_hold *h, u32 *more)
{
    u8 bell[sizeof(struct sd_mark)];
    u64 n = doubled(s, fd);

    if (n && sd_revocable(h, __NR_recvmsg, fd, bell, n, MSG_DONTWAIT) == (long)n && sd_bell_one_less(&s->e, SD_BELL_HEARD, more))
        COUNT_OF(s, bells_rx);
}

#define WAKES 1024 /* sleepers that one message has; what a peer has counted can be anything */

/* [B4] So many messages came while we were on our way, and each would have woken one more of those that wait exclusively. The kernel wakes one when the low-water mark is set
 * below what is unread; a doorbell is. */
static void wake_more(const struct sock *s, int fd, u32 more)
{
    u32 asleep = more ? load_rlx(&s->e.rx->rx_armed) : 0;

    for (u32 n = (u32)min_u64(min_u64(more, asleep), WAKES); n; n--)
        sd_set_int(fd, SOL_SOCKET, SO_RCVLOWAT, 1);
}

void sd_bell_was_heard(struct sock *s, int fd)
{
    struct sd_hold h;
    u32 more = 0;

    if (load_rlx(&s->b->rx_mode) != SD_MODE_RING)
        return;
    if (!sd_bell_hear(&s->e, &more)) {
        sd_take(s, SD_DIR_RX, SD_MARK_EAT, &h);
        if (load_rlx(&s->b->rx_mode) == SD_MODE_RING && !sd_back_published(&s->e))
            eat_second(s, fd, &h, &more);
        sd_leave(&h);
    }
    wake_more(s, fd, more);
}

/* Inside. What the kernel socket has: a doorbell (true: eaten), the end, or a byte that nobody needs. `over`: the end stands behind the doorbell. *more: for
 * wake_more(), where the doorbell stays. */
static bool look(struct sock *s, int fd, struct sd_hold *h, bool over, u32 *more)
{
    bool bell = sd_bell_due(&s->e), kept;
    u32 claimed, second = 0, first = 0;
    u8 byte;
    long r;

    if (bell && sd_back_published(&s->e))
        bell = false; /* what is left to eat is told by its position then: sd_rx_back() */
    if (bell && sd_bells_unread(s->e.rx) > 1)
        eat_second(s, fd, h, &second);
    kept = bell && company(s);
    claimed = kept ? sd_bell_claim(&s->e, &first) : 0;
    if (kept && !over && unseen(s)) {
        sd_bell_leave(&s->e);
        *more = first + second;
        return false;
    }
    if (sd_is_far(s)) {
        r = sd_far_look(s, fd, h, claimed, bell);
        bell = r == SD_FAR_BELL;
        if (claimed && !bell)
            sd_bell_leave(&s->e);
    } else {
        r = bell ? sd_revocable(h, __NR_recvmsg, fd, &byte, 1, MSG_DONTWAIT) : SYS6(__NR_recvfrom, fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK, 0, 0);
        if (claimed)
            r == 1 ? sd_bell_ate(&s->e, claimed) : sd_bell_leave(&s->e);
        else if (r == 1 && bell)
            sd_bell_eaten(&s->e);
        else if (r == 1 && !sd_back_published(&s->e) && !sd_bell_due(&s->e))
            sd_revocable(h, __NR_recvmsg, fd, &byte, 1, MSG_DONTWAIT); /* a bell whose word was given back, or no honest peer */
    }
    if (r > 0 && bell) {
        COUNT_OF(s, bells_rx);
        s->kcheck |= 1; /* a FIN may stand behind it */
        return true;
    }
    if (r == 0)
        sd_latch_end(s, fd, 0);
    else if (r < 0 && r != -EAGAIN && r != -EINTR)
        sd_latch_end(s, fd, (u32)-r);
    return false;
}

void sd_look_at_kernel(struct sock *s, int fd)
{
    struct sd_hold h;
    bool eaten = false, over = false;
    u32 more = 0;

    /* [B2] The end of the stream, which stands behind it, wakes everybody by itself. */
    if (sd_bell_stays(s)) {
        struct pollfd p = {fd, POLLRDHUP, 0};
        struct timespec64 zero = {0, 0};
        over = SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) > 0;
        if (!over) {
            if (unlikely(s->b->exclusive))
                sd_bell_was_heard(s, fd);
            return;
        }
    }
    s->kcheck &= ~1u;
    s->checked_tsc = sd_tsc();
    if (sd_is_far(s) && unlikely(load_rlx(&s->b->rx_shut)))
        sd_far_overhear(s, fd);
    if ((load_rlx(&s->b->latched) & LATCH_FIN) || load_rlx(&s->b->rx_mode) != SD_MODE_RING)
        return;
    sd_take(s, SD_DIR_RX, SD_MARK_EAT, &h);
    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING)
        eaten = look(s, fd, &h, over, &more);
    sd_leave(&h);
    wake_more(s, fd, more);
    if (eaten && s->regs)
        sd_ep_touched(s); /* an epoll that slept on this bell has to look at the ring instead */
    if (unlikely(sd_back_asked(&s->e)) && load_rlx(&s->b->tx_mode) == SD_MODE_RING && !sd_far_busy(s))
        sd_tx_back(s, fd, SD_REASON_call); /* the bell may have been for this: a peer that is about to stop using rings waits for it */
}
