/* SPDX-License-Identifier: Apache-2.0
 *
 * nap.c - short sleeps on the rings themselves, for peers that can only run on this CPU.
 *
 * sched_yield gives the CPU to somebody of the same group of the scheduler. Programs of two sessions (autogroup) or of two cgroups are in different ones, as
 * servers and their clients mostly are: then it comes back at once, and the peer runs only when we sleep. A sleep on the descriptor is ended by a
 * byte through TCP; one on a word of the ring by a futex, for a fifth of that. But who naps hears of nothing else. So:
 *
 *   - only who has no other connection on the ring in the set that it waits for, and no signal mask to wait with; in a program with threads only in epoll_wait,
 *     for who sleeps in recv or poll goes on with a file that another thread closes;
 *   - for NAP_NS at most. Longer than a tick: a timer that ends before has to be programmed each time, 1.5 us in a virtual machine;
 *   - after one that nothing has ended not for the next waits, twice as many each time;
 *   - not where the kernel has told of something else lately: a server with one client on the ring has its others, and its upstreams, on TCP.
 *
 * [N1] The napper counts itself in rx_armed, puts 1 into `nap`, issues the barrier of [W1] (or relies on [W3]), looks again, and sleeps as long as `nap` is 1;
 *      afterwards it puts 0 there and ends its count. A poster that finds itself asked for a bell exchanges `nap` for 0. If it was 1, the napper was counted
 *      then, and will look: its futex is woken, or does not sleep any more. Was it the only one who was counted, no bell is needed: whoever counts himself later
 *      looks at the ring behind that. In all other cases the bell is rung as ever. A word that was left by siglongjmp is cleared by who counts himself next (sd_arm).
 */
#include "poll/poll.h"
#include "ring/bell.h"
#include "ring/cork.h"
#include "ring/switch.h"
#include "sock/far.h"
#include "sock/sock.h"

#define NAP_NS 5000000ull
#define HOLD_FIRST 16
#define HOLD_MOST 1024
#define YIELD_AGAIN 64 /* waits without a yield, after naps that were ended by a peer whom about YIELDS_VAIN yields more than not had not let run */
#define YIELDS_VAIN 4
#define OTHERS_US 200000 /* so often at most has one of those to wait for a nap's end */

static u32 hold, held, vain, without; /* races between threads only cost accuracy */

bool sd_yields_pay(void)
{
    if (likely(!without))
        return true;
    without--;
    return false;
}

bool sd_yield_won(bool won)
{
    if (unlikely(won && vain))
        vain--;
    return won;
}

bool sd_nap_pays(u64 left, u64 *others)
{
    if (left < NAP_NS || !g.cfg->spin_us || unlikely(g.cfg->without & (SD_WITHOUT_nap | SD_WITHOUT_yield)))
        return false;
    if (unlikely(*others) && sd_tsc() - *others < OTHERS_US * g.tsc_per_us)
        return false;
    *others = 0;
    if (likely(!hold))
        return true;
    hold--;
    return false;
}

/* Nothing is under way that only the kernel would tell of. */
static bool settled(const struct sock *s)
{
    const struct sd_block *b = s->b;

    if (load_rlx(&b->rx_mode) != SD_MODE_RING || load_rlx(&b->tx_mode) != SD_MODE_RING || load_rlx(&b->latched) || s->kcheck)
        return false;
    if (sd_bell_due(&s->e))
        return false; /* somebody has to eat it: until then the kernel takes the socket for readable */
    return !load_acq(&s->e.rx->prod_hint) && !load_rlx(&s->e.tx->go_back) && !sd_back_published(&s->e);
}

bool sd_nap_possible(const struct sock *s)
{
    if (!settled(s) || sd_is_far(s) || load_rlx(&s->b->users) > 1 || s->b->exclusive)
        return false;
    return !sd_rx_news(&s->e, 0) && !sd_cork_pending(&s->e) && !load_rlx(&s->e.rx->rx_armed) && sd_peer_here(s);
}

/* What a handler does to it is what it does to the call that waits: FUTEX_WAIT with a time-out ends with EINTR as the poll family does; futex_waitv goes on
 * behind a handler with SA_RESTART as recv does, and has an absolute time-out for that. */
static long sleep_on(const struct sock *s, bool restarts)
{
    struct futex_waitv on = {1, (u64)&s->e.rx->nap, FUTEX2_SIZE_U32, 0};
    struct timespec64 ts = {0, NAP_NS};

    if (!restarts)
        return SYS6(__NR_futex, &s->e.rx->nap, FUTEX_WAIT, 1, &ts, 0, 0);
    sd_ns_ts(sd_now_ns() + NAP_NS, &ts);
    return SYS5(__NR_futex_waitv, &on, 1, 0, &ts, CLOCK_MONOTONIC);
}

static void learn(long r)
{
    if (r == -ETIMEDOUT) {
        held = held ? held * 2 : HOLD_FIRST;
        hold = held = held < HOLD_MOST ? held : HOLD_MOST;
    } else if (r >= 0) {
        held = 0;
        if (!without && ++vain == YIELDS_VAIN) {
            without = YIELD_AGAIN;
            vain--; /* one more says whether it is still so */
        }
    }
}

long sd_nap(struct sock *s, bool restarts)
{
    u32 pid = g.pid, armed = sd_arm(s, POLLIN);
    long r = -EAGAIN;

    store_rel(&s->e.rx->nap, 1); /* [N1] */
    if (armed & SD_ARM_BARRIER)
        sd_membarrier();
    else
        sd_fence();
    if (!sd_rx_news(&s->e, 0) && settled(s)) {
        COUNT(naps);
        r = sleep_on(s, restarts);
    }
    atomic_exchange(&s->e.rx->nap, 0); /* [N1] */
    if (likely(pid == g.pid)) /* else a handler has forked: it is our parent who was counted */
        sd_disarm(s, armed);
    learn(r);
    return r == -ETIMEDOUT ? 0 : r == -EINTR ? r : 1;
}

bool sd_nap_end(struct sock *s)
{
    struct sd_dir *d = s->e.tx;
    bool alone;

    if (likely(!load_acq(&d->nap)) || atomic_exchange(&d->nap, 0) != 1) /* [N1] */
        return false;
    alone = load_acq(&d->rx_armed) == 1;
    SYS6(__NR_futex, &d->nap, FUTEX_WAKE, 1, 0, 0, 0);
    return alone;
}
