/* SPDX-License-Identifier: Apache-2.0
 *
 * rescue.c - the thread that a dying supervisor leaves behind in the middle of an injection.
 *
 * The kernel detaches all its tracees, with the registers they happen to have. Between two remote calls these are the
 * program's own (sdtrace/remote.py keeps it so); only its signals are still blocked. The one that was in a remote call returns
 * from it to `landing`, where the supervisor has put a jump to itself: it waits there until it is found, gets its registers
 * back from the keepsake, and goes on as if nothing had been. Threads that come by meanwhile wait there too, until the
 * program's own bytes are back.
 */
#include "keeper.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

/* Brings the thread to a stop of ours, passing on signals that come before; false: it is gone. */
static bool stop(pid_t tid)
{
    int status;
    if (ptrace(PTRACE_SEIZE, tid, 0, 0) < 0)
        return false;
    for (;;) {
        ptrace(PTRACE_INTERRUPT, tid, 0, 0);
        if (waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status))
            return false;
        if (status >> 16 == PTRACE_EVENT_STOP)
            return true;
        ptrace(PTRACE_INTERRUPT, tid, 0, 0);
        ptrace(PTRACE_CONT, tid, 0, WSTOPSIG(status));
    }
}

void keeper_rescue(struct keepsake *k)
{
    pid_t tid = (pid_t)k->rescue_tid;
    struct user_regs_struct now;
    if (!tid || !stop(tid))
        return;
    ptrace(PTRACE_POKETEXT, tid, k->landing, k->landing_word);
    if (ptrace(PTRACE_GETREGS, tid, 0, &now) == 0 && now.rip == k->landing)
        ptrace(PTRACE_SETREGS, tid, 0, &k->rescue_regs);
    ptrace(PTRACE_SETSIGMASK, tid, sizeof(k->rescue_mask), &k->rescue_mask);
    ptrace(PTRACE_DETACH, tid, 0, 0);
    k->rescue_tid = 0;
}
