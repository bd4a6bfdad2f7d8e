/* SPDX-License-Identifier: Apache-2.0
 *
 * loop_system.c - what the loop's threads lock and sleep on, for the explorer: POSIX threads, eventfds, poll and futex_waitv, all of them states in memory.
 *
 * The C library's functions that the loop calls are wrapped by the linker (tests/hostedbuild.py). Which thread holds the lock, and who sleeps on what,
 * is part of the world that the explorer copies; a call that may sleep is a point at which others may come first.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include "loop_inside.h"

static void *(*started[2])(void *);

void loop_threads_begin(void) { memset(started, 0, sizeof started); }

/* -------------------------------------------------------------------- POSIX threads */

static bool unlocked(long nothing) { return (void)nothing, !l.lock; }

int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
    (void)m;
    host_point("lock");
    while (l.lock)
        host_sleep(unlocked, 0, false);
    l.lock = 1 + mc_thread();
    return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
    (void)m;
    mc_rmw(&l.lock, 4, MC_XCHG, 0); /* a full barrier, of this thread */
    host_changed();
    return 0;
}

static bool released(long thread) { return l.released >> thread & 1; }

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    (void)c;
    l.waiting |= 1u << mc_thread();
    __wrap_pthread_mutex_unlock(m);
    host_wait(released, mc_thread(), false);
    l.released &= ~(1u << mc_thread());
    return __wrap_pthread_mutex_lock(m);
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
    (void)c;
    l.released |= l.waiting;
    l.waiting = 0;
    host_changed();
    return 0;
}

int __wrap_pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *a) { return (void)m, (void)a, 0; }
int __wrap_pthread_cond_init(pthread_cond_t *c, const pthread_condattr_t *a) { return (void)c, (void)a, 0; }
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old) { return (void)how, (void)set, (void)old, 0; }

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *a, void *(*what)(void *), void *arg)
{
    u32 n = started[0] ? 1 : 0;

    (void)a, (void)arg;
    started[n] = what;
    *thread = n;
    return 0;
}

void loop_thread(u32 n, struct sd_device *d)
{
    started[n](d);
    l.ended |= 1u << n;
    host_changed();
}

static bool has_ended(long thread) { return l.ended >> thread & 1; }

int __wrap_pthread_join(pthread_t thread, void **value)
{
    (void)value;
    if (!has_ended((long)thread))
        host_sleep(has_ended, (long)thread, false);
    return 0;
}

/* ------------------------------------------------------------------------ system calls */

int __wrap_eventfd(unsigned count, int flags)
{
    (void)count, (void)flags;
    return l.event[0]++ ? KICK : NEWS;
}

int __wrap_eventfd_write(int fd, eventfd_t n)
{
    (void)n;
    host_point("eventfd_write");
    l.event[fd - KICK] = 1;
    host_changed();
    return 0;
}

int __wrap_eventfd_read(int fd, eventfd_t *n)
{
    host_point("eventfd_read");
    *n = l.event[fd - KICK];
    l.event[fd - KICK] = 0;
    return 0;
}

int __wrap_close(int fd) { return (void)fd, 0; }
int __wrap_sched_yield(void) { return mc_relax(), 0; }
int __wrap_nanosleep(const struct timespec *t, struct timespec *left) { return (void)t, (void)left, mc_relax(), 0; }

int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
    (void)clock;
    *t = (struct timespec){(time_t)(w.now_ns / 1000000000), (long)(w.now_ns % 1000000000)};
    return 0;
}

static bool readable_fd(int fd) { return fd == CHANNEL ? l.told : fd >= 0 && l.event[fd - KICK]; }
static bool poll_ends(long with_channel) { return readable_fd(KICK) || (with_channel && readable_fd(CHANNEL)); }

int __wrap_poll(struct pollfd *p, unsigned long n, int ms)
{
    int ready = 0;

    host_point("poll");
    if (ms && !poll_ends(p[1].fd == CHANNEL))
        host_sleep(poll_ends, p[1].fd == CHANNEL, ms > 0);
    for (unsigned long i = 0; i < n; i++)
        ready += (p[i].revents = (short)(readable_fd(p[i].fd) ? 1 : 0));
    return ready;
}

struct waiter { /* of threads.c */
    u64 value, address;
    u32 flags, reserved;
};

static bool futex_woken(long nothing) { return (void)nothing, l.woken; }

static long futex_waitv(const struct waiter *v, u32 n, bool timed)
{
    if (!n)
        return -EINVAL;
    host_point("futex_waitv");
    for (u32 i = 0; i < n; i++) {
        if (loop_is_gone((void *)(uintptr_t)v[i].address))
            return -EFAULT;
        if (*(volatile u32 *)v[i].address != v[i].value)
            return -EAGAIN;
        l.slept_on[i] = v[i].address;
    }
    l.sleepers = n;
    l.woken = 0;
    host_sleep(futex_woken, 0, timed);
    l.sleepers = l.woken = 0;
    memset(l.slept_on, 0, sizeof l.slept_on);
    return 0;
}

bool loop_wake_at(u64 at)
{
    for (u32 i = 0; i < l.sleepers; i++)
        if (l.slept_on[i] == at && !l.woken) {
            l.woken = 1;
            host_changed();
            return true;
        }
    return false;
}

long __wrap_syscall(long nr, ...)
{
    va_list more;
    u64 a, b, c, d;
    long r = 0;

    va_start(more, nr);
    a = va_arg(more, u64), b = va_arg(more, u64), c = va_arg(more, u64), d = va_arg(more, u64);
    va_end(more);
    (void)c;
    if (nr == SYS_futex) {
        host_point("futex wake");
        loop_wake_at(a);
    } else {
        r = futex_waitv((const struct waiter *)a, (u32)b, d != 0);
    }
    errno = r < 0 ? (int)-r : 0;
    return r < 0 ? -1 : r;
}

