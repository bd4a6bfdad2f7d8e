/* SPDX-License-Identifier: Apache-2.0
 *
 * give.c - another process is about to take an epoll set of ours, by pidfd_getfd.
 *
 * The supervisor runs this with all threads stopped and in no operation (sdtrace/strangers.py), when the connections in the set are on TCP. No hypercall in here.
 */
#include "gate/gate.h"
#include "poll/poll.h"

u32 sd_give_fd; /* the set, and 1: only if we have registered nothing in it since a fork has shared it, for then others have newer data. The supervisor writes both */
u32 sd_give_first;

long sd_give_c(void)
{
    if (!sd_self() && !sd_tcb_new(0))
        return -ENOMEM;
    return sd_give_first && sd_ep_registers(sd_give_fd) ? 0 : sd_ep_taken(sd_give_fd);
}
