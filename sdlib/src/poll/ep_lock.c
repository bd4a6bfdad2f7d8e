/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_lock.c - who may change what of an epoll (epoll.h, [E3] and [E4]).
 */
#include "poll/epoll.h"

#ifndef SPINS /* tests/hosted explores every single one */
#define SPINS 100
#endif
#define LOCK_US 2000          /* a holder is never away for longer, unless it has left by siglongjmp */
#define LOCK_SEIZE 500        /* so many vain tries at the same holder: it has left */

static _Atomic u32 structure;

void ep_structure_close(void)
{
    for (;;) {
        u32 holder = load_rlx(&structure);
        if (holder == g.pid)
            SYS0(__NR_sched_yield);
        else if (cas_u32(&structure, holder, g.pid)) /* free, or held by a thread that was left behind by fork */
            return;
    }
}

void ep_structure_open(void) { store_rel(&structure, 0); }

void ep_structure_lock(u64 *old)
{
    *old = sd_signals_block();
    ep_structure_close();
}

void ep_structure_unlock(const u64 *old)
{
    ep_structure_open();
    sd_signals_restore(*old);
}

static void owned(struct ep *ep, struct sd_tcb *t)
{
    ep->owner_level = t->level;
    ep->seq++;
    ep->vain = 0;
}

static NOINLINE bool ep_lock_slow(struct ep *ep, struct sd_tcb *t)
{
    u64 end = sd_tsc() + LOCK_US * g.tsc_per_us;
    do {
        for (u32 i = 0; i < SPINS; i++) {
            if (load_rlx(&ep->owner) == 0 && cas_u32(&ep->owner, 0, t->tid)) {
                owned(ep, t);
                return true;
            }
            cpu_relax();
        }
        SYS0(__NR_sched_yield);
    } while (sd_tsc() < end);
    if (ep->vain_seq != ep->seq)
        ep->vain = 0;
    ep->vain_seq = ep->seq;
    if (++ep->vain < LOCK_SEIZE)
        return false;
    store_rel(&ep->owner, t->tid);
    owned(ep, t);
    return true;
}

static inline __attribute__((always_inline)) bool lock(struct ep *ep, struct sd_tcb *t)
{
    if (load_rlx(&ep->owner) == t->tid) {
        if (t->level > ep->owner_level)
            return false;
        owned(ep, t); /* left by siglongjmp */
        return true;
    }
    if (!g.mt)
        store_rlx(&ep->owner, t->tid);
    else if (!cas_u32(&ep->owner, 0, t->tid))
        return ep_lock_slow(ep, t);
    owned(ep, t);
    return true;
}

/* False: a frame below us on this thread, or a thread that is gone, is in there. */
bool ep_lock(struct ep *ep, struct sd_tcb *t) { return lock(ep, t); }

static NOINLINE void take_over(struct ep *ep)
{
    if (load_rlx(&ep->pending))
        ep_drain(ep);
    else if (ep_sleeps_by_name(ep))
        ep_anonymous(ep);
}

bool ep_enter(struct ep *ep, struct sd_tcb *t)
{
    if (!lock(ep, t))
        return false;
    if (unlikely(load_rlx(&ep->pending) != NULL || load_rlx(&ep->named)))
        take_over(ep);
    return true;
}

/* Who could not take the lock has left a note and relies on us to read it: look once the lock is free again. The exchange is a full
 * barrier, so either we see the note or its author sees the lock free. */
void ep_leave(struct ep *ep, struct sd_tcb *t)
{
    if (!g.mt) {
        store_rel(&ep->owner, 0);
    } else {
        atomic_exchange(&ep->owner, 0);
    }
    while (unlikely(load_acq(&ep->pending) != NULL) && ep_lock(ep, t)) {
        ep_drain(ep);
        atomic_exchange(&ep->owner, 0);
    }
}
