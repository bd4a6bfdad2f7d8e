/* SPDX-License-Identifier: Apache-2.0
 *
 * wait.c - deadlines, and how long to look at a ring before sleeping in the kernel.
 *
 * A spin that wins saves two system calls and a wake-up of several microseconds; one that loses burns a CPU that the
 * peer may need. So the budget is halved with each loss down to SPIN_MIN_US and doubled with each win, and with each
 * park where a longer spin would have won. Who rings says when: how long a park lasts tells nothing of that, for waking up may take longer than what was
 * waited for. And that is how long a spin may last at most, where it is longer than spin_us (virtual machines, deep sleep of a CPU): one in vain costs no more than the sleep behind it.
 *
 * More runnable threads than CPUs: a spin takes the time from the one that it waits for. A hole in the spinner's clock tells that it was
 * preempted; then the next waits only yield, and more of them each time that happens again. A peer that is known to need this CPU gets it at
 * every round of the spin.
 */
#include "poll/poll.h"

#define SPIN_MIN_US 2
#define PARK_SHORT_US 30
#define SPIN_KERNEL_US 10
#define PREEMPTED_US 40       /* longer than any round of a spin takes */
#define GIVEN_AWAY_US 500     /* longer than a peer has to do between two waits, mostly */
#define HOLD_FIRST 16
#define YIELDS 8
#define YIELDED_US 2
#define HOLD_MOST 1024
#ifndef SD_SOON_US
#define SD_SOON_US 300
#endif
#define LATE_US (4 * SD_SOON_US)
#define STRETCH 4             /* so many times spin_us at most */
#define SPIN_MOST_US 1000

struct sd_learn sd_learn_process;

bool sd_deadline_ts(struct sd_deadline *d, const struct timespec64 *ts)
{
    d->from_tsc = d->end_ns = 0;
    d->ns = SD_FOREVER;
    if (!ts)
        return true;
    if (ts->sec < 0 || ts->nsec < 0 || ts->nsec >= 1000000000)
        return false;
    if (ts->sec < (1ll << 33)) /* 270 years: the sum with the clock stays in range */
        d->ns = (u64)ts->sec * 1000000000 + (u64)ts->nsec;
    return true;
}

u64 sd_deadline_left(struct sd_deadline *d)
{
    if (d->ns == 0 || d->ns == SD_FOREVER)
        return d->ns;
    if (!d->from_tsc) {
        d->from_tsc = sd_tsc();
        return d->ns;
    }
    u64 now = sd_now_ns();
    if (!d->end_ns) {
        u64 us = (sd_tsc() - d->from_tsc) / (g.tsc_per_us + g.tsc_per_us / 64 + 1);
        d->end_ns = now + d->ns - min_u64(us * 1000, d->ns);
    }
    return d->end_ns > now ? d->end_ns - now : 0;
}

struct timespec64 *sd_ns_ts(u64 ns, struct timespec64 *ts)
{
    if (ns == SD_FOREVER)
        return NULL;
    ts->sec = (i64)(ns / 1000000000);
    ts->nsec = (i64)(ns % 1000000000);
    return ts;
}

/* In us. As long as waking up takes, if that is longer than what the policy says. */
static u32 spin_limit(const struct sd_learn *l)
{
    u32 us = g.cfg->spin_us; /* the supervisor may change it at any time */
    us = us < SPIN_MOST_US ? us : SPIN_MOST_US;
    u64 wake = min_u64(l->wake_us, min_u64((u64)us * STRETCH, SPIN_MOST_US));
    return wake > us ? (u32)wake : us;
}

bool sd_spin_begin(struct sd_spin *sp, struct sd_learn *l, u64 max_ns, bool yields)
{
    u32 limit = spin_limit(l);
    if (!limit || !max_ns)
        return false;
    u32 us = l->budget_us ? l->budget_us : limit;
    if (us > limit)
        us = limit;
    sp->learn = l;
    sp->preempted = false;
    sp->yields = yields && !(g.cfg->without & SD_WITHOUT_yield);
    sp->start = sp->last = sd_tsc();
    sp->end = sp->start + min_u64(us, max_ns / 1000 + 1) * g.tsc_per_us;
    sp->next_kernel = sp->start + SPIN_KERNEL_US * g.tsc_per_us;
    COUNT(spins);
    return true;
}

bool sd_spin_more(struct sd_spin *sp)
{
    if (sp->yields)
        SYS0(__NR_sched_yield);
    else
        cpu_relax();
    u64 now = sd_tsc();
    sp->preempted = now - sp->last > (sp->yields ? GIVEN_AWAY_US : PREEMPTED_US) * g.tsc_per_us;
    sp->last = now;
    return now < sp->end && !sp->preempted;
}

/* A yield that comes back at once has found nobody: the peer sleeps, and so should we. One that takes time has let somebody run, but that may
 * have been a third one. */
bool sd_yield(u32 *tries)
{
    u64 from = sd_tsc();

    if (unlikely(g.cfg->without & SD_WITHOUT_yield))
        return false;
    SYS0(__NR_sched_yield);
    return ++*tries < YIELDS && sd_tsc() - from > YIELDED_US * g.tsc_per_us;
}

bool sd_spin_held(struct sd_learn *l)
{
    if (likely(!l->hold))
        return false;
    l->hold--;
    return true;
}

bool sd_spin_ask_kernel(struct sd_spin *sp)
{
    u64 now = sd_tsc();
    if (now < sp->next_kernel)
        return false;
    sp->next_kernel = now + SPIN_KERNEL_US * g.tsc_per_us;
    return true;
}

static void grow(struct sd_learn *l)
{
    u32 limit = spin_limit(l), us = l->budget_us * 2;
    if (us < l->avg_us * 3)
        us = l->avg_us * 3; /* straight to what has been enough before */
    if (us < SPIN_MIN_US)
        us = SPIN_MIN_US;
    l->budget_us = us < limit ? us : limit;
}

void sd_spin_end(struct sd_spin *sp, bool won)
{
    struct sd_learn *l = sp->learn;
    if (sp->preempted) {
        l->held = l->held ? l->held * 2 : HOLD_FIRST;
        l->hold = l->held = l->held < HOLD_MOST ? l->held : HOLD_MOST;
    } else if (won) {
        l->held = 0;
    }
    if (won) {
        u32 took = (u32)((sd_tsc() - sp->start) / (g.tsc_per_us ? g.tsc_per_us : 1));
        l->avg_us = (l->avg_us * 7 + took + 7) / 8;
        if (!l->budget_us)
            l->budget_us = spin_limit(l);
        COUNT(spins_won);
        grow(l);
    } else {
        u32 us = l->budget_us ? l->budget_us : spin_limit(l);
        l->budget_us = us / 2 > SPIN_MIN_US ? us / 2 : SPIN_MIN_US;
    }
}

static void learn_wait(struct sd_learn *l, u64 us)
{
    u32 took = (u32)min_u64(us, LATE_US) + 1; /* one that was late says little */

    l->wait_us = l->wait_us ? (l->wait_us * 7 + took) / 8 : took;
}

/* The least of late: where others run on the CPU waking up takes longer, and spinning would not help. */
static void learn_waking(struct sd_learn *l, u64 us)
{
    u32 took = (u32)min_u64(us, LATE_US);

    l->wake_us = took < l->wake_us ? took : l->wake_us + (took - l->wake_us) / 8;
}

void sd_spin_forgotten(struct sd_learn *l, bool deaf) { l->wait_us = deaf ? 2 * SD_SOON_US : LATE_US; }

bool sd_rung_soon(const struct sd_learn *l, bool deaf)
{
    return l->wait_us && l->wait_us <= (deaf ? SD_SOON_US : LATE_US * 3 / 4);
}

void sd_spin_parked(struct sd_learn *l, u64 since, u64 from, u64 rung)
{
    u64 now = sd_tsc(), us = g.tsc_per_us ? g.tsc_per_us : 1;

    if (rung - since > now - since) { /* it was not rung for */
        if (now - from < PARK_SHORT_US * us)
            grow(l);
        return;
    }
    learn_wait(l, (rung - since) / us);
    if (rung > from)
        learn_waking(l, (now - rung) / us);
    u32 limit = spin_limit(l);
    if (rung - since >= limit * us)
        return;
    u32 enough = (u32)((rung - since) / us) * 2;
    if (l->budget_us < enough)
        l->budget_us = enough < limit ? enough : limit;
}

u64 sd_sleep_name(void)
{
    static SD_FORKED u32 pid;
    static SD_FORKED _Atomic u64 last;
    u64 name;

    if (unlikely(pid != g.pid)) { /* a forked child goes on elsewhere; two threads may both begin, each at a place of its own */
        store_rlx(&last, sd_mix(sd_mix(sd_mix(g.secret + g.pid) + (u64)sd_self()) + sd_tsc()));
        pid = g.pid;
    }
    do {
        name = 1 + (g.mt ? atomic_fetch_add(&last, 1) : load_rlx(&last));
        if (!g.mt)
            store_rlx(&last, name);
    } while (unlikely(!name));
    return name;
}

bool sd_peer_here(const struct sock *s)
{
    u32 here = 1 + sd_cpu();
    return load_rlx(&s->e.tx->cons_cpu) == here || load_rlx(&s->e.rx->prod_cpu) == here;
}

bool sd_gives_way(const struct sock *s)
{
    const struct sd_config *cfg = g.cfg;

    return cfg->spin_us && !(cfg->without & SD_WITHOUT_yield) && !sd_spin_pays(s) && sd_peer_here(s) && sd_yields_pay();
}

void sd_mask_init(struct sd_mask *m, const void *set, u64 size)
{
    m->set = set;
    m->size = size;
    m->copied = false;
    if (set && size == 8 && !sd_bad_ptr(set) && sd_strip_sigsys(set, size, &m->copy)) {
        m->set = &m->copy;
        m->copied = true;
    }
}
