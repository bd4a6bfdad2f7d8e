/* SPDX-License-Identifier: Apache-2.0
 *
 * unhook.c - the program gets back what is its own (sdrun --detach).
 *
 * The supervisor runs this with all threads stopped and outside of the library (sdtrace/release.py), when all connections are on TCP. Dispatch is
 * off already. The image stays mapped: a signal handler that has interrupted a call at a slot returns there. No hypercall in here.
 */
#include "gate/gate.h"
#include "poll/poll.h"
#include "sock/sock.h"

long sd_unhook_c(void)
{
    if (!sd_self())
        sd_tcb_new(0);
    sd_ep_before_exec();
    sd_patch_undo();
    sd_actions_own();
    for (u32 fd = 0; fd < sd_fd_top(); fd++) {
        struct sock *s = sd_sock_of(fd);
        if (s && s->seg) {
            SYS2(__NR_munmap, s->seg, SD_SEG_HDR_BYTES + 2 * s->e.bytes);
            s->seg = NULL;
        }
        sd_fd_forget(fd);
    }
    sd_without_area();
    g.boxed = 1; /* what a handler has interrupted on its way to us comes yet, and goes to the kernel as it is */
    for (u32 i = 0; i < SD_MAX_AREAS; i++)
        if (g.area[i])
            SYS2(__NR_munmap, g.area[i], sizeof(struct sd_area));
    sd_tcbs_unmap();
    sd_boot.unhooked = 1;
    return 0;
}
