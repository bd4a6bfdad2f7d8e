/* SPDX-License-Identifier: Apache-2.0
 *
 * room.c - waiting for room in a ring that is full.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/sock.h"

static u64 send_timeout_ns(int fd)
{
    i64 tv[2] = {0, 0};
    u32 len = sizeof tv;

    if (SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_SNDTIMEO_OLD, tv, &len) < 0)
        return 0;
    return (u64)tv[0] * 1000000000ull + (u64)tv[1] * 1000ull;
}

/* After arming: only the peer's word counts. */
static bool room_now(struct sock *s, u64 need)
{
    i64 room = sd_tx_look(&s->e);

    return room < 0 || (u64)room >= need;
}

/* Arms for room. True if there is as much already. */
bool sd_arm_room(struct sock *s, u64 need)
{
    sd_tx_arm(&s->e, &s->b->tx_wait);
    sd_membarrier();
    return room_now(s, need);
}

#define LOOK 1

/* With SO_SNDTIMEO. Behind a handler such a send ends with EINTR, whatever the handler's flags, and so does ppoll. */
static long sleep_until(int fd, u64 deadline)
{
    struct pollfd p = {fd, POLLIN, 0};
    struct timespec64 ts;
    struct sd_tcb *t = sd_self();
    u64 now = sd_now_ns();
    long r;

    if (now >= deadline)
        return -EAGAIN;
    t->wakeable = SD_WAKE_AS(0);
    r = SYS5(__NR_ppoll, &p, 1, sd_ns_ts(deadline - now, &ts), 0, 8);
    t->wakeable = 0;
    return r > 0 ? LOOK : r;
}

/* Nobody rings, or nobody would know that we sleep: sd_park(). */
static bool must_look(const struct sock *s, u64 sleeper)
{
    return sd_no_bells(s) || sleeper == SD_PARK_UNKNOWN || sd_cork_pending(&s->e) || (sleeper != SD_NOT_PARKED && sd_bell_stays(s));
}

/* Armed. 0: look again; LOOK: something has come; -EINTR or -EAGAIN (SO_SNDTIMEO) for the program. */
static long sleep_for_room(struct sock *s, int fd, u64 deadline, u64 sleeper)
{
    long r;

    if (deadline == (u64)-1 && !sd_no_bells(s)) {
        /* Restarts and cancellation come from the kernel; the only bytes that can arrive are doorbells and the FIN. */
        r = sd_park(s, fd, sleeper);
        if (r == -EINTR)
            return r;
        if (r >= 0)
            return LOOK;
        if (r != -EAGAIN) {
            sd_latch_end(s, sd_fd_after_wait(s, fd), (u32)-r);
            return 0;
        }
    }
    COUNT_OF(s, parks);
    COUNT(calls_kernel);
    if (!must_look(s, sleeper))
        return sleep_until(fd, deadline);
    /* Unread TCP bytes, or nobody who can ring: look again every millisecond. */
    if (sd_now_ns() >= deadline)
        return -EAGAIN;
    r = sd_sleep_ns(1000000);
    return r == -EINTR ? r : 0;
}

/* Sleeps until there may be room. 0, or -EINTR / -EAGAIN (SO_SNDTIMEO) for the program. */
long sd_wait_room(struct sock *s, int fd, u64 *deadline, u64 need)
{
    u64 t0 = sd_tsc(), budget = (u64)g.cfg->spin_us * g.tsc_per_us;
    long r;

    if (budget && sd_spin_pays(s)) {
        while (sd_tsc() - t0 < budget) {
            if (load_acq(&s->e.tx->head) != s->e.tx_head_seen)
                return 0;
            cpu_relax();
        }
    } else if (budget) { /* the reader is on this CPU, or spinning has not paid: let it run */
        bool again;
        u32 tries = 0;
        do {
            again = sd_yield(&tries);
            if (load_acq(&s->e.tx->head) != s->e.tx_head_seen)
                return 0;
        } while (again);
    }
    /* A program that only sends never looks at the other direction, but its doorbells come from there. */
    if (load_rlx(&s->b->rx_mode) == SD_MODE_TCP)
        sd_rx_poll_switch(s, fd);
    if (!*deadline) {
        u64 to = send_timeout_ns(fd);
        *deadline = to ? sd_now_ns() + to : (u64)-1;
    }
    struct sd_rouse rouse = sd_rouse_begin(&sd_self()->bell);
    u32 armed = sd_owe_armed(s, 0);
    u64 sleeper = sd_sleeper_enter(s, SD_NEEDS_ROOM);
    sd_membarrier();
    r = room_now(s, need) ? 0 : sleep_for_room(s, fd, *deadline, sleeper);
    sd_rouse_end(&rouse);
    sd_sleeper_leave(s, sleeper);
    sd_owed_armed(s, armed);
    if (r == LOOK)
        sd_look_at_kernel(s, sd_fd_after_wait(s, fd)); /* [F4] */
    return r < 0 ? r : 0;
}
