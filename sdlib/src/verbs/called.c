/* SPDX-License-Identifier: Apache-2.0
 *
 * called.c - on whose bell words the loop's threads sleep, what those have to say, and when they are told of what was read (threads.c).
 */
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "verbs/threads.h"

u64 sd_verbs_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

void sd_threads_wake_caller(struct sd_threads *t)
{
    atomic_fetch_add(&t->control, 1);
    syscall(SYS_futex, &t->control, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* ------------------------------------------------------------------ who is called */

/* That it has read is news if the other one may soon wait for room, or as long as it has not switched (mirror.py). */
static bool arm(struct sd_mirrored *m)
{
    bool room = !load_acq(&sd_out_of(m)->sw_ring) || m->landed - m->head_said > m->ring_bytes / 2;
    u32 wanted = room ? 3 : 1;

    if ((m->armed & wanted) == wanted)
        return false;
    m->armed = wanted;
    sd_copy_arm(m->copy, m->side, true, room);
    return true;
}

static SD_ATOMIC u32 *direct(const struct sd_mirrored *m) { return &((struct sd_seg *)m->copy)->direct; }

void sd_threads_uncall(struct sd_mirrored *m)
{
    struct sd_queue *q = m->queue;
    struct sd_threads *t = q ? q->device->threads : NULL;
    struct sd_mirrored *last;

    if (!m->called || !t)
        return;
    store_rel(direct(m), 0);
    sd_fence();
    last = t->called[--t->count];
    t->called[m->called - 1] = last;
    last->called = m->called;
    m->called = 0;
    sd_threads_wake_caller(t); /* its memory may go */
}

/* Nobody looks at it any more but for its program's word: so it is armed, and looked at behind a barrier of its own [W1]. */
static void make_way(struct sd_threads *t)
{
    struct sd_mirrored *oldest = t->called[0];

    for (u32 i = 1; i < t->count; i++)
        if (t->called[i]->last < oldest->last)
            oldest = t->called[i];
    sd_queue_unwatch(oldest->queue, oldest);
    oldest->watched = 0;
    arm(oldest);
    sd_py_membarrier();
    if (load_acq(&sd_out_of(oldest)->bell) || sd_mirrored_news(oldest) || sd_mirrored_held(oldest, false))
        sd_mirrored_watch(oldest, true); /* again, in the next round */
}

static void call(struct sd_threads *t, struct sd_mirrored *m)
{
    if (t->count == CALLED_MOST)
        make_way(t);
    t->called[t->count++] = m;
    m->called = t->count;
    m->last = ((struct sd_queue *)m->queue)->device->turns;
    store_rel(direct(m), 1);
    sd_threads_wake_caller(t);
}

void sd_mirrored_live(struct sd_mirrored *m, bool live)
{
    struct sd_queue *q = m->queue;

    m->live = live;
    if (!live)
        sd_threads_uncall(m);
    else if (q)
        sd_threads_changed(q->device);
}

/* ------------------------------------------------------------------ sleeping, credits */

void sd_threads_attend(struct sd_device *d)
{
    for (struct sd_queue *q = d->queues; q; q = q->next)
        for (u32 i = 0; i < q->watching; i++) {
            struct sd_mirrored *m = q->watched[i];
            if (m->armed & 1) {
                m->armed = !load_acq(&sd_out_of(m)->sw_ring) ? 2 : 0;
                sd_copy_arm(m->copy, m->side, false, m->armed);
            }
        }
}

static bool owes(const struct sd_mirrored *m) { return m->live && m->worded && load_acq(&sd_into(m)->head) != m->head_said; }

void sd_threads_pay(struct sd_device *d)
{
    struct sd_threads *t = d->threads;

    if (!t->pay_at || sd_verbs_now() < t->pay_at)
        return;
    t->pay_at = 0;
    for (struct sd_queue *q = d->queues; q; q = q->next)
        for (u32 i = 0; q->live && i < q->watching; i++)
            if (owes(q->watched[i]))
                sd_say_credit(q, q->watched[i]);
}

static void look_at(struct sd_threads *t, u64 when)
{
    if (when && (!t->pay_at || when < t->pay_at))
        t->pay_at = when;
}

bool sd_threads_settle(struct sd_device *d)
{
    struct sd_threads *t = d->threads;
    bool again = false, barrier = false, owing = false;

    for (struct sd_queue *q = d->queues; q; q = q->next)
        for (u32 i = 0, n = q->watching; q->live && i < n && i < q->watching; i++) { /* who has made way in vain comes again in the next round */
            struct sd_mirrored *m = q->watched[i];
            if (!m->live)
                continue;
            if (t->calls && !m->called) {
                call(t, m);
                again = true;
            }
            barrier |= arm(m);
            owing |= owes(m);
            look_at(t, sd_mirrored_held(m, false)); /* [C3]: armed in an earlier round, or there is another one */
        }
    if (barrier)
        sd_py_membarrier(); /* [W1] [W2] */
    if (!t->cq_armed) {
        sd_device_arm(d);
        t->cq_armed = again = true;
    }
    if (owing)
        look_at(t, sd_verbs_now() + CREDIT_NS);
    return !again && !barrier;
}
