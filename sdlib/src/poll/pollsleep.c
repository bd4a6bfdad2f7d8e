/* SPDX-License-Identifier: Apache-2.0
 *
 * pollsleep.c - what poll and select do while nothing is ready: spin, nap, and sleep in the kernel with every ring armed.
 */
#include "poll/pollset.h"

#define LOOK_AT 8             /* sockets asked whether spinning pays */
#define TIMER_NS 1000000ull   /* see sd_needs_timer */
#define SNOOZE_NS 10000000ull

static bool worth_spinning(const struct sd_pollset *p, bool *here)
{
    u32 left = LOOK_AT;
    bool pays = false;
    *here = false;
    for (u32 i = 0; i < p->n && left && !(pays && *here); i++) {
        const struct sock *s = p->item[i].s;
        if (!s)
            continue;
        pays |= sd_spin_pays(s);
        *here |= sd_peer_here(s);
        left--;
    }
    return pays;
}

/* Closed meanwhile, or another file has the number: what the kernel has said is of that one. */
static bool is_stale(const struct sd_pollset *p)
{
    for (u32 i = 0; i < p->n; i++)
        if (p->item[i].s && sd_sock_of((u32)p->k[i].fd) != p->item[i].s)
            return true;
    return false;
}

/* There are others to be heard beside the connections of ours. */
static bool deaf(const struct sd_pollset *p) { return p->ours != p->n; }

/* All of the program's sockets, if no room is waited for and each may be napped on. */
static u32 to_nap_on(const struct sd_pollset *p, struct sock **set)
{
    u32 n = 0;
    for (u32 i = 0; i < p->n; i++) {
        const struct sd_pollitem *it = &p->item[i];
        if (!it->s && !it->ep)
            continue;
        if (it->ep || n == SD_NAP_SET || (sd_bits_fold(it->want) & POLLOUT) || !sd_nap_possible(it->s, sd_rung_soon(&sd_learn_process, deaf(p))))
            return 0;
        set[n++] = it->s;
    }
    return n;
}

static long nap(struct sd_pollset *p, u64 left, bool masked)
{
    struct sock *set[SD_NAP_SET];
    u32 n = !masked && p->ours <= SD_NAP_SET && sd_nap_pays(left, &sd_poll_others) ? to_nap_on(p, set) : 0;
    p->napped = n && sd_nap_enter(set, n); /* [N3] until all of them sleep in the kernel, or the wait is over */
    long r = n && !(p->napped && is_stale(p)) ? sd_nap(set, n, false, deaf(p), &sd_learn_process, p->began) : 0;
    return r <= 0 ? r : sd_pollset_ready(p) ? sd_pollset_ask(p) : 0;
}

void sd_pollset_nap_over(struct sd_pollset *p, u32 sleeper)
{
    for (u32 i = 0; i < p->n && unlikely(p->napped); i++)
        if (p->item[i].s)
            sd_nap_leave(&p->item[i].s, 1, sleeper);
    p->napped = false;
}

/* To peers that can only run on this CPU. */
static long give_way(struct sd_pollset *p, u64 left, bool masked)
{
    bool again = sd_yields_pay(), ready = false;
    u32 tries = 0;
    p->called = true;
    while (!ready && again) {
        again = sd_yield(&tries);
        ready = sd_pollset_ready(p);
    }
    return sd_yield_won(ready) ? sd_pollset_ask(p) : nap(p, left, masked);
}

long sd_pollset_spin(struct sd_pollset *p, u64 left, bool masked)
{
    struct sd_spin sp;
    bool here;
    bool pays = worth_spinning(p, &here), held = pays && sd_spin_held(&sd_learn_process);
    if (!pays || held)
        return here || held ? give_way(p, left, masked) : 0;
    if (!sd_spin_begin(&sp, &sd_learn_process, left, here))
        return 0;
    long r = 0;
    while (r == 0 && sd_spin_more(&sp)) {
        if (sd_pollset_ready(p))
            r = sd_pollset_skips(p) ? sd_pollset_tell(p, false) : sd_pollset_ask(p);
        else if (sd_spin_ask_kernel(&sp))
            r = sd_pollset_ask(p);
    }
    sd_spin_end(&sp, r > 0);
    for (u32 i = 0; r >= 0 && i < p->n; i++)
        if (p->item[i].s && (!r || p->k[i].revents))
            sd_spun(p->item[i].s, r);
    return !r && sd_rung_soon(&sd_learn_process, deaf(p)) ? nap(p, left, masked) : r;
}

/* [W4] Nobody else may eat its doorbell. (In a program with threads nobody could tell a sleeper in poll that it was eaten.) */
static bool may_name(const struct sock *s, u32 armed)
{
    return (armed & 1) && !g.mt && load_rlx(&s->b->users) <= 1 && !s->b->far;
}

static bool arm_all(struct sd_pollset *p, bool *timer)
{
    u64 sleep = !g.mt && p->ours > 1 ? sd_sleep_name() : 0;
    bool barrier = false;
    *timer = false;
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        if (it->s) {
            u32 want = sd_bits_fold(it->want);
            if (!(it->armed & HELD))
                atomic_fetch_add(&it->s->held, 1);
            p->holds = true;
            it->armed = sd_arm(it->s, want) | HELD;
            if (sleep && may_name(it->s, it->armed)) {
                it->armed |= SD_ARM_NAMED;
                sd_rx_asleep(&it->s->e, sleep);
            }
            if (g.mt) {
                atomic_fetch_add(&it->s->parked, 1);
                it->armed |= COUNTED;
            }
            barrier |= it->armed & SD_ARM_BARRIER;
        }
    }
    if (barrier)
        sd_membarrier();
    bool ready = sd_pollset_ready(p);
    for (u32 i = 0; i < p->n && !ready; i++)
        if (p->item[i].s) /* after the last look, which may have seen the end of who would ring */
            *timer |= sd_needs_timer(p->item[i].s, sd_bits_fold(p->item[i].want));
    return ready;
}

/* `pid`: who has armed them. A handler may have forked meanwhile: what its parent has counted is not the child's to take back, and to sleep on it does not
 * go, since poll is never restarted. */
static void disarm_all(struct sd_pollset *p, u32 pid)
{
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        if (it->armed & COUNTED)
            atomic_fetch_sub(&it->s->parked, 1);
        if (it->armed && likely(pid == g.pid))
            sd_disarm(it->s, it->armed);
        it->armed &= HELD;
    }
}

#define NEWS (POLLIN | POLLRDNORM | POLLRDHUP | POLLOUT | POLLWRNORM | POLLWRBAND)

/* All that the kernel has to say of it is a reset for a doorbell. */
static bool only_a_bell(const struct sd_pollitem *it)
{
    return !(it->want & NEWS) && !sd_without_bells(it->s, POLLHUP);
}

/* A descriptor is hung up, which poll always reports but select did not ask for: sleep without it for a while. */
static bool snooze(struct sd_pollset *p)
{
    bool any = false;
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        if (p->k[i].fd >= 0 && !it->ep && (it->s ? only_a_bell(it) : !(it->care & POLLHUP))) {
            p->k[i].fd = ~p->k[i].fd;
            any = true;
        }
    }
    return any;
}

static void unsnooze(struct sd_pollset *p)
{
    for (u32 i = 0; i < p->n; i++)
        if (p->k[i].fd < 0 && (p->item[i].s || !(p->item[i].care & POLLHUP)))
            p->k[i].fd = ~p->k[i].fd;
}

/* Of what the kernel has reported. */
static u64 rung_at(const struct sd_pollset *p)
{
    for (u32 i = 0; i < p->n; i++)
        if (p->item[i].s && p->k[i].revents && sd_sock_of((u32)p->k[i].fd) == p->item[i].s)
            return load_rlx(&p->item[i].s->e.rx->rung_at);
    return 0;
}

long sd_pollset_park(struct sd_pollset *p, u64 left, const struct sd_mask *m, bool *idle)
{
    struct timespec64 ts;
    bool timer;
    u32 pid = g.pid;
    struct sd_rouse rouse = sd_rouse_begin(p->k);
    if (arm_all(p, &timer)) {
        sd_rouse_end(&rouse);
        disarm_all(p, pid);
        return is_stale(p) ? 0 : sd_pollset_ask(p);
    }
    for (u32 i = 0; i < p->n; i++)
        if (p->item[i].s)
            p->item[i].s->b->parks++;
    timer |= sd_pollset_events(p); /* after arming: what is waited for decides what the kernel is asked */
    bool dozing = *idle && snooze(p);
    left = min_u64(left, timer ? TIMER_NS : SD_FOREVER);
    left = min_u64(left, dozing ? SNOOZE_NS : SD_FOREVER);
    COUNT(parks);
    p->called = true;
    u64 from = sd_tsc();
    sd_ep_follow();
    sd_self()->wakeable = SD_WAKE_AS(0);
    sd_pollset_nap_over(p, sd_self()->tid);
    long r = SYS5(__NR_ppoll, p->k, p->n, sd_ns_ts(left, &ts), m->set, 8);
    sd_self()->wakeable = 0;
    sd_rouse_end(&rouse);
    disarm_all(p, pid);
    if (dozing)
        unsnooze(p);
    if (r > 0)
        sd_spin_parked(&sd_learn_process, p->began, from, rung_at(p));
    long n = r < 0 ? r : is_stale(p) ? 0 : sd_pollset_tell(p, true);
    *idle = r > 0 && n == 0 && !dozing;
    return n;
}
