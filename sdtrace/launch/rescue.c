/* SPDX-License-Identifier: Apache-2.0
 *
 * rescue.c - the thread that a dying supervisor leaves behind in the middle of an injection.
 *
 * The kernel detaches all its tracees, with the registers they happen to have. The one that was in a remote call returns from
 * it to `landing`, where the supervisor has put a jump to itself (sdtrace/remote.py): it waits there until it is found, gets
 * the program's bytes and its registers back from the keepsake, and goes on as if nothing had been. Threads that come by
 * meanwhile wait there too.
 */
#include "keeper.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

void keeper_rescue(struct keepsake *k)
{
    pid_t tid = (pid_t)k->rescue_tid;
    int status;
    if (!tid || ptrace(PTRACE_SEIZE, tid, 0, 0) < 0)
        return;
    if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0 && waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status)) {
        ptrace(PTRACE_POKETEXT, tid, k->landing, k->landing_word);
        ptrace(PTRACE_SETREGS, tid, 0, &k->rescue_regs);
        ptrace(PTRACE_SETSIGMASK, tid, sizeof(k->rescue_mask), &k->rescue_mask);
    }
    ptrace(PTRACE_DETACH, tid, 0, 0);
    k->rescue_tid = 0;
}
