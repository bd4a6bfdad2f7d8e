/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_cool.c - how registrations become cold: armed, so that a doorbell makes the kernel report them; and hot again, for a nap (epoll.h).
 */
#include "poll/epoll.h"
#include "sock/sock.h"

#define COLD 32               /* registrations that may have to be heated for a nap anyhow */

static u32 awaited(struct reg *r)
{
    if (load_rlx(&r->s->b->tx_wait))
        r->tx_full = true; /* a send found no room; from now on it is we who wait */
    u32 want = reg_wanted(r);
    if ((r->want & EPOLLET) && !r->fresh && !r->tx_full)
        want &= ~(u32)(POLLOUT | POLLWRNORM); /* the edge comes after a send that found no room, and that arms itself */
    return want;
}

/* `name`: of the sleep, 0: none. True: a membarrier has to follow. */
static bool arm(struct reg *r, u64 name)
{
    reg_disarm(r);
    store_rlx(&r->armed, SD_ARM_BARRIER); /* who eats a bell that is rung for us sees it: sd_ep_touched(). A barrier follows, in any case */
    u32 armed = sd_arm(r->s, awaited(r));
    if (name && (armed & 1)) {
        store_rlx(&r->ep->named, 1); /* [E5] before a peer can see it */
        armed |= SD_ARM_NAMED;
        sd_rx_asleep(&r->s->e, name); /* [W4] */
    }
    store_rlx(&r->armed, armed);
    /* What is waited for decides what the kernel is asked. It must be asked anew where it has reported a doorbell by an edge that nobody has eaten, say
     * because bytes of TCP stood before it then: no other one is sent as long as that one lies there. */
    reg_sync(r, (r->kmask & EPOLLET) && load_rlx(&r->s->b->rx_mode) == SD_MODE_RING && r->s->seg && sd_bell_due(&r->s->e) && !sd_bell_stays(r->s));
    if (((r->want | r->kmask) & EPOLLET) && sd_bell_stays(r->s))
        sd_bell_was_heard(r->s, r->live); /* [B3] an edge comes with the next one */
    return armed & SD_ARM_BARRIER;
}

static u32 waited_for(const struct reg *r)
{
    return reg_wanted(r) | (r->want & EPOLLET);
}

/* Armed: nothing is sure to wake us; what the kernel was asked then is as true as what it would be asked now. */
static bool needs_timer(const struct reg *r)
{
    return (reg_wanted(r) & ~r->kmask & POLLIN) || sd_needs_timer(r->s, waited_for(r));
}

/* The name of the sleep that is about to begin, 0: it has none. */
static u64 name_of_sleep(struct ep *ep, enum cool how)
{
    if (how != COOL_SLEEP || ep->watched || ep->nhot < 2 || load_rlx(&ep->parked))
        return 0;
    if (unlikely(ep->anonymous)) {
        ep->anonymous--;
        return 0;
    }
    return sd_sleep_name();
}

/* [E5] Will lie in `slept`, and no other process may eat its doorbell. */
static bool may_name(const struct reg *r, u32 place)
{
    return place < WARM && r->naps < NAPS && !(r->want & EPOLLEXCLUSIVE) && load_rlx(&r->s->b->users) <= 1 && !r->s->b->far;
}

/* Arms the hot registrations (COOL_IDLE: those that were idle for long), all with one barrier. */
static void arm_hot(struct ep *ep, enum cool how)
{
    bool barrier = false;
    u64 name = name_of_sleep(ep, how);
    struct reg *r = ep->hot;
    u32 place = 0;
    for (u32 i = 0; i < ep->nhot; i++, r = r->hot_next) {
        if (how == COOL_IDLE && r->idle < IDLE_ROUNDS)
            continue;
        place += r->naps < NAPS;
        barrier |= arm(r, name && may_name(r, place) ? name : 0);
    }
    if (barrier)
        sd_membarrier();
}

/* Arms the hot registrations and looks again. True: one is ready, nothing was changed. False: they are cold now, apart from those that need a timer. */
bool ep_cool(struct ep *ep, enum cool how, bool *timer)
{
    struct reg *r, *next;
    bool idle_only = how == COOL_IDLE;
    *timer = false;
    if (load_rlx(&ep->named))
        ep_warm_up(ep, 1);
    else if (!idle_only)
        ep->nslept = 0;
    u32 count = ep->nhot;
    if (!count)
        return false;
    arm_hot(ep, how);
    r = ep->hot;
    for (u32 i = 0; i < count; i++, r = next) {
        next = r->hot_next;
        if (idle_only && r->idle < IDLE_ROUNDS)
            continue;
        if (reg_due(r)) {
            reg_disarm(r);
            if (!idle_only) {
                if (load_rlx(&ep->named))
                    ep_warm_up(ep, 0);
                return true; /* the caller scans; the others stay hot, what is armed costs one bell */
            }
            r->idle = 0;
            continue;
        }
        if (!idle_only)
            r->s->b->parks++;
        if (needs_timer(r)) {
            *timer = true;
        } else if (!(r->want & EPOLLEXCLUSIVE)) { /* another set may eat its doorbell, and does not tell */
            hot_del(ep, r);
            if (!idle_only && ep->nslept < WARM && r->naps < NAPS)
                ep->slept[ep->nslept++] = r;
        }
    }
    return false;
}

void ep_chill_all(struct ep *ep)
{
    struct reg *r, *next;
    u32 count = ep->nhot;
    if (!count)
        return;
    arm_hot(ep, COOL_ALL);
    r = ep->hot;
    for (u32 i = 0; i < count; i++, r = next) {
        next = r->hot_next;
        if (reg_due(r) || needs_timer(r))
            reg_kick(r);
        else if (!(r->want & EPOLLEXCLUSIVE))
            hot_del(ep, r);
    }
}

void reg_heat(struct ep *ep, struct reg *r)
{
    reg_disarm(r);
    hot_add(ep, r);
    if (ep_slept_on(ep))
        ep_chill_all(ep);
}

/* -------------------------------------------------------------------- naps */

/* May the set be napped on as far as r goes? */
static bool nap_allows(struct reg *r, bool across)
{
    return !r->dead && !(r->want & EPOLLEXCLUSIVE) && !(awaited(r) & POLLOUT) && sd_nap_possible(r->s, across);
}

/* Those that are cold wait for doorbells, which a napper does not hear, so they are to be hot. Not where that are most: cost follows the hot ones. */
static bool nap_heats(struct ep *ep)
{
    struct reg *r = ep->hot;
    bool across = sd_rung_soon(&ep->learn, true);
    bool may = ep->nhot && ep->nhot <= SD_NAP_SET && ep->tagged <= 2 * ep->nhot + COLD;
    for (u32 i = 0; may && i < ep->nhot; i++, r = r->hot_next)
        may = nap_allows(r, across);
    for (u32 i = 0; may && i < ep->cap; i++) {
        r = ep->tab[i];
        if (!r || r->dead || r->ghost || r->off || r->hot || !translated(r->s))
            continue;
        may = on_ring(r->s);
        if (may) {
            reg_disarm(r);
            hot_add(ep, r);
            may = nap_allows(r, across);
        }
    }
    return may;
}

u32 ep_to_nap_on(struct ep *ep, struct sock **set)
{
    bool may = ep->cap <= SD_NAP_SET && !ep_slept_on(ep) && load_rlx(&ep->waits) == 1 && nap_heats(ep);
    struct reg *r = ep->hot;
    u32 n = 0;
    for (; may && n < ep->nhot; r = r->hot_next)
        set[n++] = r->s;
    if (!may && !ep_has_due(ep))
        sd_nap_cannot();
    for (u32 i = 0; may && i < n; i++)
        atomic_fetch_add(&set[i]->held, 1);
    return may ? n : 0;
}
