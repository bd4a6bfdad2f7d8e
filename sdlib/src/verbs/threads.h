/* SPDX-License-Identifier: Apache-2.0
 *
 * threads.h - inside of src/verbs: the loop's threads, and on whom they sleep.
 */
#ifndef SD_VERBS_THREADS_H
#define SD_VERBS_THREADS_H

#include <pthread.h>
#include "verbs/verbs.h"

#ifndef SD_LOOP_QUEUE /* less, where every state is looked at (tests/hosted) */
#define SD_LOOP_QUEUE 512
#define SD_LOOP_CALLED 120
#endif
enum { QUEUE = SD_LOOP_QUEUE, CALLED_MOST = SD_LOOP_CALLED, ROW = 3, MUCH = 16384, DOZES = 4 };
#define CREDIT_NS 10000000ull
#define DOZE_NS 200000

struct sd_threads {
    pthread_mutex_t lock;
    pthread_cond_t python_left;
    pthread_t device, caller;
    _Atomic u32 python_wants, control;
    bool stop, full, dirty, cq_armed, calls;
    int news, kick; /* eventfds: for Python, for the device's thread */
    u64 spin_ns, pay_at;
    struct sd_mirrored *called[CALLED_MOST];
    u32 count, queued;
    struct sd_loop_event queue[QUEUE];
};

void sd_threads_wake_caller(struct sd_threads *t);
void sd_threads_attend(struct sd_device *d);
void sd_threads_pay(struct sd_device *d);     /* all credits, if it is time */
bool sd_threads_settle(struct sd_device *d);  /* true: all are armed and have been looked at since, so we may sleep */

#endif
