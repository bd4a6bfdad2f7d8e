/* SPDX-License-Identifier: Apache-2.0
 *
 * threads.c - the loop in threads of its own, so that no byte and no doorbell waits for Python (sd_verbs.h).
 *
 * Programs wake us by a futex, the device by a descriptor, and no call of Linux waits for both. So there are two threads: the *caller's* sleeps on the bell
 * words of the connections that are called, with futex_waitv(), and the *device's* in poll(). Whoever wakes up runs the loop until it finds nothing,
 * arms, looks once more ([W1] of ring/bell.h), and sleeps again. Whoever holds the lock has everything, Python too, which holds it but while it sleeps
 * itself, and goes first when it wants it.
 *
 * `called`: those that have done something last, as many as one futex_waitv() takes. Their programs see `direct` in the copy and wake us by one system
 * call (sock/far.c); all others have their supervisor nudge Python, which watches them, and that calls them. Whoever is uncalled is looked at once
 * more: either we see its bell word, or it sees `direct` 0. `control` stands among the bell words, for when others are to be slept on.
 *
 * A connection stays armed while it is called: a message is a look at a word that does not change, an exchange and one call. While much goes by
 * nobody needs to say anything (`attend`), and we doze between looks.
 *
 * Credits that nobody waits for go out CREDIT_NS after the first of them. What Python is to hear of waits in `queue`, in order.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "verbs/threads.h"

#ifndef __NR_futex_waitv
#define __NR_futex_waitv 449
#endif

struct waiter { /* struct futex_waitv, which not all headers have */
    u64 value, address;
    u32 flags, reserved;
};

/* ------------------------------------------------------------------------- Python */

void sd_device_hold(struct sd_device *d)
{
    atomic_fetch_add(&d->threads->python_wants, 1);
    pthread_mutex_lock(&d->threads->lock);
    atomic_fetch_sub(&d->threads->python_wants, 1);
}

void sd_device_release(struct sd_device *d)
{
    struct sd_threads *t = d->threads;
    bool kick = t->dirty || t->full;

    if (t->full)
        sd_threads_wake_caller(t); /* it sleeps on nobody */
    t->dirty = t->full = false;
    pthread_cond_broadcast(&t->python_left);
    pthread_mutex_unlock(&t->lock);
    if (kick)
        eventfd_write(t->kick, 1);
}

void sd_threads_changed(struct sd_device *d)
{
    if (d->threads)
        d->threads->dirty = true;
}

int sd_threads_told(struct sd_device *d, struct sd_loop_event *events, u32 most)
{
    struct sd_threads *t = d->threads;
    u32 n = t ? (u32)min_u64(most, t->queued) : 0;
    eventfd_t count;

    if (!n)
        return 0;
    memcpy(events, t->queue, n * sizeof *events);
    memmove(t->queue, t->queue + n, (t->queued -= n) * sizeof *events);
    if (!t->queued)
        eventfd_read(t->news, &count);
    return (int)n;
}

/* ------------------------------------------------------------------------- the loop */

/* Once. True: there was something. */
static bool look(struct sd_device *d)
{
    struct sd_threads *t = d->threads;
    bool busy = false;
    int n;

    if (t->queued + 2 * BATCH > QUEUE) {
        t->full = true;
        return false;
    }
    d->untold = t->queued;
    n = sd_turn(d, t->queue + t->queued, 2 * BATCH, &busy);
    if (n && !t->queued)
        eventfd_write(t->news, 1);
    t->queued += (u32)n;
    if (busy)
        t->cq_armed = false; /* it may have told of what we have taken */
    return busy || n;
}

static void enter(struct sd_threads *t)
{
    pthread_mutex_lock(&t->lock);
    while (t->python_wants && !t->stop)
        pthread_cond_wait(&t->python_left, &t->lock);
}

static void away(struct sd_threads *t, u64 ns)
{
    struct timespec pause = {0, (long)ns};

    pthread_mutex_unlock(&t->lock);
    ns ? (void)nanosleep(&pause, NULL) : (void)sched_yield();
    enter(t);
}

/* Until there is nothing more; the lock is held. */
static void run(struct sd_device *d)
{
    struct sd_threads *t = d->threads;
    u64 moved = d->moved, until = 0;
    u32 row = 0, dozes = 0;

    while (!t->stop) {
        bool found = look(d);
        sd_threads_pay(d);
        if (found && d->moved - moved >= MUCH && !t->spin_ns)
            dozes = DOZES;
        moved = d->moved;
        row = found ? row + 1 : 0;
        if (found && (row >= ROW || dozes || t->spin_ns))
            sd_threads_attend(d);
        if (found && t->spin_ns)
            until = sd_verbs_now() + t->spin_ns;
        if (t->full)
            return;
        if (t->python_wants)
            away(t, 0);
        else if (found)
            continue;
        else if (until && sd_verbs_now() < until)
            away(t, 0);
        else if (dozes && dozes--)
            away(t, DOZE_NS);
        else if (sd_threads_settle(d))
            return;
    }
}

/* In milliseconds; -1: for ever. */
static int pause_ms(const struct sd_threads *t)
{
    u64 now = t->pay_at ? sd_verbs_now() : 0;

    return !t->pay_at ? -1 : t->pay_at <= now ? 0 : (int)((t->pay_at - now) / 1000000 + 1);
}

static void *device_thread(void *arg)
{
    struct sd_device *d = arg;
    struct sd_threads *t = d->threads;

    enter(t);
    while (!t->stop) {
        run(d);
        struct pollfd p[] = {{t->kick, POLLIN, 0}, {t->full ? -1 : sd_device_fd(d), POLLIN, 0}};
        int ms = pause_ms(t);
        eventfd_t count;
        pthread_mutex_unlock(&t->lock);
        poll(p, 2, ms);
        if (p[0].revents)
            eventfd_read(t->kick, &count);
        enter(t);
        if (p[1].revents)
            t->cq_armed = false;
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static u32 whom(struct sd_threads *t, struct waiter *w)
{
    u32 n = 0;

    w[n++] = (struct waiter){load_acq(&t->control), (uintptr_t)&t->control, FUTEX_32, 0};
    for (u32 i = 0; !t->full && i < t->count; i++)
        w[n++] = (struct waiter){0, (uintptr_t)&sd_out_of(t->called[i])->bell, FUTEX_32, 0};
    return n;
}

static void *caller_thread(void *arg)
{
    struct sd_device *d = arg;
    struct sd_threads *t = d->threads;
    struct waiter w[CALLED_MOST + 1];

    enter(t);
    while (!t->stop) {
        run(d);
        if (t->stop)
            break; /* said while we ran, so its wake-up has come before we sleep */
        u32 n = whom(t, w);
        struct timespec until = {(time_t)(t->pay_at / 1000000000), (long)(t->pay_at % 1000000000)};
        bool forever = !t->pay_at;
        pthread_mutex_unlock(&t->lock);
        syscall(__NR_futex_waitv, w, n, 0, forever ? NULL : &until, CLOCK_MONOTONIC);
        enter(t);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* -------------------------------------------------------------------- start and stop */

static int start(struct sd_device *d, pthread_t *thread, void *(*what)(void *))
{
    sigset_t all, before;
    int r;

    sigfillset(&all); /* signals are Python's */
    sigdelset(&all, SIGRTMIN + 3); /* but for one (py/bell.c) */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(thread, NULL, what, d);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -r;
}

int sd_device_start(struct sd_device *d, uint64_t spin_ns)
{
    struct sd_threads *t = calloc(1, sizeof *t);
    int r;

    if (!t)
        return -ENOMEM;
    t->news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (t->news < 0 || t->kick < 0)
        return -errno;
    t->spin_ns = spin_ns;
    t->calls = syscall(__NR_futex_waitv, NULL, 0, 0, NULL, CLOCK_MONOTONIC) < 0 && errno == EINVAL; /* Linux 5.16 */
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->python_left, NULL);
    pthread_mutex_lock(&t->lock);
    d->threads = t;
    r = start(d, &t->device, device_thread);
    if (!r && t->calls && start(d, &t->caller, caller_thread))
        t->calls = false;
    return r;
}

int sd_device_news(struct sd_device *d) { return d->threads->news; }

void sd_device_stop(struct sd_device *d)
{
    struct sd_threads *t = d->threads;

    t->stop = true;
    sd_threads_wake_caller(t);
    eventfd_write(t->kick, 1);
    pthread_cond_broadcast(&t->python_left);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->device, NULL);
    if (t->calls)
        pthread_join(t->caller, NULL);
    while (t->count)
        sd_threads_uncall(t->called[0]);
    close(t->news);
    close(t->kick);
    d->threads = NULL;
    free(t);
}
