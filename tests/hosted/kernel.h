/* SPDX-License-Identifier: Apache-2.0
 *
 * kernel.h - as much of a kernel as sdlib/src/sock asks for: one TCP connection, whose bytes take their time.
 */
#ifndef HOSTED_KERNEL_H
#define HOSTED_KERNEL_H

#include "sock/sock.h"

#define STREAM_BYTES 64
#define SIDES 2
#ifndef HOSTED_THREADS
#define HOSTED_THREADS 3
#endif
#define FD_OF(side) (10 + (int)(side))
#define SIDE_OF(fd) ((u32)((fd) - 10))
#define SETS 1
#define SET_FD(n) (20 + (int)(n))
#define HOSTED_POOL 8192

/* Direction d is written by side d. Bytes between `arrived` and `written` are on their way. */
struct stream {
    u8 data[STREAM_BYTES]; /* never more than that in a test's life */
    u32 written, arrived, read, cap;
    u32 fin, fin_arrived;
};

struct connection {
    struct stream dir[SIDES];
};

/* An epoll set (kernel_epoll.c). */
struct watch {
    u64 data;
    u32 mask, used;
};

struct set {
    struct watch of[SIDES];
    u32 line[SIDES]; /* sides that may be ready, in this order */
    u64 n;
    void *ep;        /* the library's */
};

struct futex {
    u64 at; /* somebody sleeps there */
    u32 woken, ends; /* ends: of a scenario: time-outs do */
};

/* Everything that a test's programs share; the explorer copies and restores it as one. */
struct world {
    struct connection net;
    struct sd_seg seg;
    struct sd_block block[SIDES];
    struct sock sock[SIDES];
    u8 ring[SIDES][8]; /* tiny, so that full and wrapped are the usual case */
    u64 now_ns;        /* moves when a time-out ends */
    struct futex futex;
    struct set set[SETS];
    u64 pool_used;
    u32 epoll_calls; /* of a scenario: what is not divisible by anything keeps the kernel from being asked out of turn */
    _Atomic u32 closed[SIDES]; /* its descriptor leads nowhere any more */
    u64 reset;            /* by connect() to nowhere; the net has no such thing */
    struct sd_tcb tcb[HOSTED_THREADS];
    /* Another connection of the same programs, for naps on both ([N2], poll/nap.c): nothing is sent on it. */
    struct second {
        struct sd_seg seg;
        struct sd_block block[SIDES];
        struct sock sock[SIDES];
    } second;
};

extern struct world w;
extern struct sd_area hosted_area; /* of it only the participants count: number 1 + thread */

/* Given by explore.c and the fuzzer. */
void host_point(const char *what);                        /* a system call begins: a full barrier, others may come first */
void host_wait(bool (*ready)(long), long arg, bool timed); /* sleep until ready(arg), or, if timed, until something has changed */
void host_sleep(bool (*ready)(long), long arg, bool timed); /* the time-out ends only when nothing else happens any more */
void host_changed(void);                                  /* the kernel's state has changed */
void host_membarrier(void);
bool host_dead(u32 tid);
void host_fail(const char *why);

void world_init(u32 start_at_ring, u32 ring_bytes);
#define ENT_SECOND 11
void world_second(void); /* as the first one is now, but that nothing is on its way */
bool net_deliver(u32 dir); /* one byte, or the FIN, arrives */
u32 net_bells_unread(u32 dir);
u32 net_ready(u32 side); /* POLL* */
extern bool hosted_supervised; /* of a scenario: somebody hears of SD_HC_NUDGE, and pairs what is offered (around.c) */
extern struct sd_config hosted_config;
/* Of a scenario: what the segment that is mapped next has in it; what comes of a nudge. */
extern void (*hosted_new_rings)(void), (*hosted_nudged)(void);
extern void (*hosted_readable)(u32 side); /* of a scenario: the kernel wakes who waits exclusively */
extern bool (*hosted_futex_wake)(u64 at); /* of others that sleep on words; true: one was woken */
extern u64 bells_sent; /* no part of the world: a statistic */
extern u32 bells_at_most; /* in one direction at a time; 2 where one that is being eaten does not count */

/* kernel_epoll.c */
extern u8 hosted_pool[HOSTED_POOL];
void sets_hear(u32 side, u32 what); /* something has happened to a socket */
bool set_ready(long fd);
void sets_forget(u32 side); /* it is closed */
void sets_forget_counts(void);
u32 sets_armed(u32 side); /* so many registrations are */
struct epoll_event;
long sys_epoll_ctl(long fd, long op, u32 side, const struct epoll_event *ev);
long sys_epoll_wait(long fd, struct epoll_event *e, long max, bool sleeps, bool timed);

#endif
