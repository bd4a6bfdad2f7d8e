/* SPDX-License-Identifier: Apache-2.0
 *
 * far.c - what a connection to another host has to ask its monitor for (far.h).
 */
#include "sock/far.h"

#define NAP_NS 50000
#define SETTLE_NS 10000000000ull /* a link that is down comes back, or its monitor says that it is lost */
#define RINGING_NS 2000000000ull /* a supervisor is in there for microseconds */

void sd_far_nap(void)
{
    struct timespec64 ts = {0, NAP_NS};

    SYS5(__NR_ppoll, 0, 0, &ts, 0, 8);
}

/* The bell word of our direction is the monitor's here: 1 while it has not heard the last nudge [B1]. */
void sd_far_nudge(struct sock *s)
{
    if (!sd_bell_take(&s->e))
        return;
    if (sd_hypercall(SD_HC_NUDGE, s->id, 0) != 0)
        sd_bell_give_back(&s->e); /* no supervisor: its monitor knows that, and does not sleep */
    COUNT(bells_tx);
}

bool sd_far_settle(struct sock *s)
{
    u32 ask = atomic_fetch_add(&s->seg->settle_ask, 1) + 1;

    sd_far_nudge(s);
    for (u64 until = sd_now_ns() + SETTLE_NS; sd_now_ns() < until;) {
        if ((i32)(load_acq(&s->seg->settled) - ask) >= 0) /* [H1] */
            return true;
        if (load_acq(&s->seg->lost))
            return false;
        sd_far_nap();
    }
    return false;
}

/* LEAVING is said. Afterwards the monitor sends nothing more on our socket. */
void sd_far_bells_out(struct sock *s)
{
    for (u64 until = sd_now_ns() + RINGING_NS; load_acq(&s->seg->ringing) && sd_now_ns() < until;) /* [H2] */
        sd_far_nap();
}
