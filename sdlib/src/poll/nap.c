/* SPDX-License-Identifier: Apache-2.0
 *
 * nap.c - short sleeps on the rings themselves, for peers that can only run on this CPU, and for others that mostly answer soon.
 *
 * sched_yield gives the CPU to somebody of the same group of the scheduler. Programs of two sessions (autogroup) or of two cgroups are in different ones, as
 * servers and their clients mostly are: then it comes back at once, and the peer runs only when we sleep. A sleep on the descriptor is ended by a
 * byte through TCP; one on a word of the ring by a futex, for a fifth of that. But who naps hears of nothing else. So:
 *
 *   - only for connections whose peers are all on the ring, and no signal mask to wait with;
 *   - for NAP_NS at most. Longer than a tick: a timer that ends before has to be programmed each time, 1.5 us in a virtual machine;
 *   - if a peer is on another CPU, only where the average sleeper was rung for soon lately (sd_rung_soon), behind a spin in vain; and if there are others to be heard, for ACROSS_NS
 *     at most: it is deaf for hardly longer than the wait that it expects. Of longer waits little would be saved, and a new connection would wait for them;
 *   - after one that nothing has ended not for the next waits, twice as many each time;
 *   - not where the kernel has told of something else lately: a server with one client on the ring has its others, and its upstreams, on TCP.
 *
 * [N1] The napper counts itself in rx_armed, and only if nobody else is counted then puts into `nap_at` where it sleeps; then 1 into `nap`, there; issues the barrier of
 *      [W1] (or relies on [W3]), looks again, and sleeps as long as `nap` is 1. Afterwards it puts 0 into `nap` and `nap_at`, ends its count, and looks.
 *      A poster that finds itself asked for a bell exchanges `nap` for 0, and wakes the futex if it was 1. If it was 0, the napper has been woken, or is about to look.
 *      Either way it needs no bell if one alone was counted, *before* `nap_at` was read: that was the napper, and others who count themselves behind it
 *      look at the ring behind what was posted; or it was another one, then the napper has found two and has not put anything into `nap_at`.
 *      Words that were left by siglongjmp are cleared by who counts himself next (sd_arm). A napper that is still there sleeps on to the end of its nap: woken, it
 *      would come to sleep in the kernel behind him, and of threads in one epoll set the last is woken first.
 * [N2] Of a set of connections the napper sleeps on one word for each process at the other ends: that of the first connection with it, its *home*. Producers who are asked for
 *      a bell put a handle of the connection into `handle`: who they are, and its number in their own table. The napper copies that of the home into the `nap_at` of
 *      all its connections with the same process of the same tree (the tree is the monitor's word, so a peer can claim to be somebody else in its own tree
 *      only). A poster takes it for what it has handed out itself, and looks whether it still means a connection with that tree; else it rings the bell, and
 *      the napper hears of it at the end of its nap. Another thread may close the home meanwhile: it stays mapped ([F1] of fd.c).
 * [N3] Who sleeps in recv or poll goes on with the file though another thread closes the descriptor; that only the kernel can do. So such a napper counts itself in
 *      `napping` of its connections until it has come to sleep there, or its call is over, and who closes the descriptor ends its nap and waits for that. (In epoll_wait what
 *      is closed is out of the set, which needs no sleeper.)
 */
#include "poll/poll.h"
#include "ring/bell.h"
#include "ring/cork.h"
#include "ring/switch.h"
#include "sock/far.h"
#include "sock/sock.h"

#define NAP_NS 5000000ull
#define ACROSS_NS 600000ull
#define HOLD_FIRST 16
#define HOLD_MOST 1024
#define HOLD_ASK 64 /* where it was not possible: asking costs little, and connections that were on their way to the ring have arrived since */
#define YIELD_AGAIN 64 /* waits without a yield, after naps that were ended by a peer whom about YIELDS_VAIN yields more than not had not let run */
#define YIELDS_VAIN 4
#define AWAIT_NS 50000
#define AWAITS 200 /* longer than a nap lasts; who has left by siglongjmp is not waited for */
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

bool sd_nap_possible(const struct sock *s, bool across)
{
    if (!settled(s) || sd_is_far(s) || load_rlx(&s->b->users) > 1 || s->b->exclusive)
        return false;
    return !sd_rx_news(&s->e, 0) && !sd_cork_pending(&s->e) && !load_rlx(&s->e.rx->rx_armed) && (across || sd_peer_here(s));
}

/* ---------------------------------------------------------------- the napper */

struct home {
    struct sock *s;
    u64 handle; /* as read once */
};

struct naps {
    struct home home[SD_NAP_HOMES];
    u32 n;
    bool across; /* some peer can run on another CPU */
    bool deaf;   /* to others that are waited for */
    u32 armed[SD_NAP_SET];
};

/* [N2] What to put into nap_at of s; 0: too many processes are at the other ends. */
static u64 place_for(struct naps *p, struct sock *s)
{
    u64 handle = load_rlx(&s->e.rx->handle), known = s->b->peer_tree >> 31 ? handle >> 32 : 0;

    for (u32 i = 0; i < p->n && known; i++)
        if (p->home[i].handle >> 32 == known && p->home[i].s->b->peer_tree == s->b->peer_tree)
            return p->home[i].handle;
    if (p->n == SD_NAP_HOMES)
        return 0;
    p->home[p->n++] = (struct home){s, known ? handle : SD_NAP_OWN};
    return known ? handle : SD_NAP_OWN;
}

static long sleep_on_many(const struct naps *p, u64 ns)
{
    struct futex_waitv on[SD_NAP_HOMES];
    struct timespec64 ts;

    for (u32 i = 0; i < p->n; i++)
        on[i] = (struct futex_waitv){1, (u64)&p->home[i].s->e.rx->nap, FUTEX2_SIZE_U32, 0};
    sd_ns_ts(sd_now_ns() + ns, &ts);
    return SYS5(__NR_futex_waitv, on, p->n, 0, &ts, CLOCK_MONOTONIC);
}

/* A handler waits for one of them. */
static bool is_handled(u64 signals)
{
    struct ksigaction act;

    for (u32 sig = 1; sig <= 64; sig++)
        if ((signals >> (sig - 1) & 1) && SYS4(__NR_rt_sigaction, sig, NULL, &act, 8) == 0 && act.handler > 1)
            return true;
    return false;
}

/* Handlers run afterwards: they may be ones behind which futex_waitv would go on, and the call that waits may not. Every ACROSS_NS it is looked after them. */
static long sleep_undisturbed(const struct naps *p, u64 ns)
{
    u64 old, pending = 0, slept = 0;
    long r;

    do {
        old = sd_signals_block();
        r = sleep_on_many(p, ACROSS_NS);
        if (r < 0)
            SYS2(__NR_rt_sigpending, &pending, 8);
        if (unlikely(pending & ~old) && is_handled(pending & ~old))
            r = -EINTR;
        sd_signals_restore(old);
        slept += ACROSS_NS;
    } while (r == -ETIMEDOUT && slept < ns);
    return r;
}

/* What a handler does to it is what it does to the call that waits: FUTEX_WAIT with a time-out ends with EINTR as the poll family does; futex_waitv goes on
 * behind a handler with SA_RESTART as recv does, and has an absolute time-out for that. */
static long sleep_on(const struct naps *p, bool restarts)
{
    u64 ns = p->across && p->deaf ? ACROSS_NS : NAP_NS;
    struct timespec64 ts = {0, (i64)ns};

    if (!restarts && p->n == 1)
        return SYS6(__NR_futex, &p->home[0].s->e.rx->nap, FUTEX_WAIT, 1, &ts, 0, 0);
    return restarts || likely(!load_rlx(&sd_restarting)) ? sleep_on_many(p, ns) : sleep_undisturbed(p, ns);
}

static void hold_back(u32 most)
{
    held = held ? held * 2 : HOLD_FIRST;
    hold = held = held < most ? held : most;
}

void sd_nap_cannot(void) { hold_back(HOLD_ASK); }

/* Across CPUs the average says it all, and yielding has not been tried. */
static void learn_across(const struct naps *p, long r, struct sd_learn *l, u64 since, u64 from)
{
    u64 rung = 0;

    if (r == -ETIMEDOUT)
        sd_spin_forgotten(l, p->deaf);
    for (u32 k = 0; r >= 0 && k < p->n; k++) {
        u64 at = load_rlx(&p->home[k].s->e.rx->rung_at);
        rung = at > rung ? at : rung; /* the latest: others may have rung for earlier sleeps only */
    }
    if (r >= 0)
        sd_spin_parked(l, since, from, rung);
}

static void learn(long r, bool alone)
{
    if (r == -ETIMEDOUT) {
        hold_back(HOLD_MOST);
    } else if (!alone) {
        sd_nap_cannot();
    } else if (r >= 0) {
        held = 0;
        if (!without && ++vain == YIELDS_VAIN) {
            without = YIELD_AGAIN;
            vain--; /* one more says whether it is still so */
        }
    }
}

/* Of threads that wait in one epoll set the last one is woken first, but who naps comes to sleep in the kernel later: no reason to nap there where it takes
 * what sleep_undisturbed() takes. */
static bool heeds_signals(const struct naps *p, bool restarts)
{
    return p->n == 1 || restarts || !(g.mt && p->deaf) || !load_rlx(&sd_restarting);
}

/* Counts us in all of them and says where we sleep. False: somebody else sleeps on one, or the homes do not suffice. */
static bool settle_down(struct naps *p, struct sock *const *set, u32 n, bool *barrier)
{
    bool may = true;

    for (u32 i = 0; i < n && may; i++) {
        u64 at = place_for(p, set[i]);
        p->across |= !sd_peer_here(set[i]);
        p->armed[i] = sd_arm(set[i], POLLIN);
        *barrier |= p->armed[i] & SD_ARM_BARRIER;
        may = at && load_acq(&set[i]->e.rx->rx_armed) == 1; /* [N1] */
        if (may)
            store_rel(&set[i]->e.rx->nap_at, at);
    }
    for (u32 k = 0; k < p->n; k++)
        store_rel(&p->home[k].s->e.rx->nap, 1);
    return may;
}

static bool all_quiet(struct sock *const *set, u32 n)
{
    for (u32 i = 0; i < n; i++)
        if (sd_rx_news(&set[i]->e, 0) || !settled(set[i]) || !load_rlx(&set[i]->e.rx->nap_at))
            return false; /* or somebody has come to sleep on it as well [N1] */
    return true;
}

/* `pid`: who has armed them. A handler may have forked: it is our parent who was counted, and who sleeps on. */
static void get_up(struct naps *p, struct sock *const *set, u32 n, u32 pid)
{
    if (unlikely(pid != g.pid))
        return;
    for (u32 k = 0; k < p->n; k++)
        atomic_exchange(&p->home[k].s->e.rx->nap, 0); /* [N1] */
    for (u32 i = 0; i < n; i++) {
        if (!p->armed[i])
            continue;
        store_rel(&set[i]->e.rx->nap_at, 0);
        sd_disarm(set[i], p->armed[i]);
    }
}

long sd_nap(struct sock *const *set, u32 n, bool restarts, bool deaf, struct sd_learn *l, u64 since)
{
    struct naps p;
    u32 pid = g.pid;
    bool barrier = false, alone;
    u64 from = 0;
    long r = -EAGAIN;

    p.n = 0;
    p.across = false;
    p.deaf = deaf;
    for (u32 i = 0; i < n; i++)
        p.armed[i] = 0;
    alone = settle_down(&p, set, n, &barrier) && heeds_signals(&p, restarts);
    if (barrier)
        sd_membarrier();
    else
        sd_fence();
    if (alone && all_quiet(set, n)) {
        COUNT(naps);
        from = sd_tsc();
        r = sleep_on(&p, restarts);
    }
    get_up(&p, set, n, pid);
    if (p.across && alone)
        learn_across(&p, from ? r : -EAGAIN, l, since, from);
    else
        learn(r, alone);
    return r == -ETIMEDOUT || !alone ? 0 : r == -EINTR ? r : 1;
}

/* ---------------------------------------------------------------- beside other threads */

u32 sd_nap_enter(struct sock *const *set, u32 n)
{
    if (!g.mt)
        return 0;
    for (u32 i = 0; i < n; i++)
        atomic_fetch_add(&set[i]->napping, 1); /* [N3] */
    return n;
}

void sd_nap_leave(struct sock *const *set, u32 n, u32 sleeper)
{
    for (u32 i = 0; i < n; i++) {
        store_rel(&set[i]->napper, sleeper);
        atomic_fetch_sub(&set[i]->napping, 1);
    }
}

void sd_nap_disturb(struct sock *s)
{
    if (atomic_exchange(&s->e.rx->nap, 0) == 1)
        SYS6(__NR_futex, &s->e.rx->nap, FUTEX_WAKE, 1, 0, 0, 0);
}

void sd_nap_await(struct sock *s)
{
    for (u32 i = 0; i < AWAITS; i++) {
        if (load_acq(&s->napping) && s->seg)
            sd_nap_disturb(s);
        else if (!sd_task_runs(load_acq(&s->napper)))
            return; /* it sleeps there, or has never come so far */
        sd_sleep_ns(AWAIT_NS);
    }
}

/* ---------------------------------------------------------------- the poster */

/* [N2] Which process this is, to its peers; not 0, and no secret: a peer that makes it up finds nothing but its own connections. */
static u32 who(void)
{
    static SD_FORKED u32 pid, name;

    if (unlikely(pid != g.pid)) {
        name = (u32)sd_mix(sd_tsc() + g.pid) | 1;
        pid = g.pid;
    }
    return name;
}

static u64 handle_of(const struct sock *s)
{
    return load_rlx(&s->b->users) > 1 ? 0 : (u64)who() << 32 | s->ent;
}

void sd_nap_offer(struct sock *s)
{
    u64 handle = handle_of(s);

    if (unlikely(load_rlx(&s->e.tx->handle) != handle))
        store_rel(&s->e.tx->handle, handle);
}

/* The connection on whose word the peer of s sleeps, until sd_sock_put_numbered() if it is another one; NULL: not to be found. The peer may have put there whatever it likes. */
static struct sock *enter_home(struct sock *s, u64 at)
{
    struct sock *h;

    if (at == SD_NAP_OWN)
        return s;
    if (at >> 32 != who())
        return NULL;
    h = (u32)at == s->ent ? s : sd_sock_enter_numbered((u32)at);
    if (!h || (load_rlx(&h->e.tx->handle) == at && h->b->peer_tree == s->b->peer_tree))
        return h;
    if (h != s)
        sd_sock_put_numbered(h);
    return NULL;
}

bool sd_nap_end(struct sock *s)
{
    const struct sd_dir *d = s->e.tx;
    struct sock *home;
    bool alone;
    u64 at;

    if (likely(!load_acq(&d->nap_at)))
        return false;
    alone = load_acq(&d->rx_armed) == 1; /* [N1] before nap_at */
    at = load_acq(&d->nap_at);
    home = at ? enter_home(s, at) : NULL;
    if (!home)
        return false;
    if (atomic_exchange(&home->e.tx->nap, 0) == 1) { /* [N1] */
        store_rlx(&home->e.tx->rung_at, sd_tsc());
        SYS6(__NR_futex, &home->e.tx->nap, FUTEX_WAKE, 1, 0, 0, 0);
    }
    if (home != s)
        sd_sock_put_numbered(home);
    return alone;
}
