/* SPDX-License-Identifier: Apache-2.0
 *
 * give.c - another process is about to take an epoll set of ours, by pidfd_getfd.
 *
 * The supervisor runs this with all threads stopped and in no operation (sdtrace/strangers.py), when the connections in the set are on TCP. No hypercall in here.
 */
#include "gate/gate.h"
#include "poll/poll.h"

/* The set; and 1: only if we have registered nothing in it since a fork has shared it, for what is registered last is told the kernel last. The supervisor writes both. */
struct {
    u32 fd, first;
} sd_give_what;

long sd_give_c(void)
{
    if (!sd_self() && !sd_tcb_new(0))
        return -ENOMEM;
    return sd_give_what.first && sd_ep_registers(sd_give_what.fd) ? 0 : sd_ep_taken(sd_give_what.fd);
}
