/* SPDX-License-Identifier: Apache-2.0
 *
 * rescue.c - the thread that a dying supervisor leaves behind in the middle of an injection.
 *
 * The kernel detaches all its tracees, with the registers they happen to have. Between two remote calls these are the
 * program's own (sdtrace/remote.py keeps it so); only its signals are still blocked. A thread that was in a remote call
 * returns to the `landing`, 16 bytes behind the call instruction that the supervisor has replaced; one that was in the
 * library's start comes there too. It waits there, in a loop or in a call that the filter holds, until it is found, gets
 * its registers back from the keepsake and goes on as if nothing had been. Threads that come by meanwhile wait there too, until
 * the program's own bytes are back.
 */
#include "keeper.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#define LANDING_BYTES 16
#define MARK 0x65746f6d65524453 /* in rbx */
#define PATIENCE_MS 1000 /* for the library's start; it takes microseconds */

/* Brings a seized thread to a stop of ours, passing on signals that come before; false: it is gone. */
static bool stop(pid_t tid)
{
    int status;
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

/* Waiting in the landing, or about to make the remote call that ends there. A thread that came by on its own business waits
 * there too, but without the mark: it must not make its call a second time. */
static bool at_landing(const struct keepsake *k, pid_t tid)
{
    struct user_regs_struct now;
    return ptrace(PTRACE_GETREGS, tid, 0, &now) == 0 && now.rbx == MARK && now.rip + 2 >= k->landing &&
           now.rip < k->landing + LANDING_BYTES;
}

void keeper_rescue(struct keepsake *k)
{
    static const struct timespec a_moment = {0, 1000000};
    pid_t tid = (pid_t)k->rescue_tid;
    if (!tid || ptrace(PTRACE_SEIZE, tid, 0, 0) < 0)
        return;
    bool there = stop(tid);
    for (int ms = 0; there && k->in_start && !at_landing(k, tid) && ms < PATIENCE_MS; ms++) {
        ptrace(PTRACE_CONT, tid, 0, 0);
        nanosleep(&a_moment, NULL);
        there = stop(tid);
    }
    if (!there)
        return;
    if (at_landing(k, tid))
        ptrace(PTRACE_SETREGS, tid, 0, &k->rescue_regs);
    ptrace(PTRACE_POKETEXT, tid, k->landing, k->landing_word[0]);
    ptrace(PTRACE_POKETEXT, tid, k->landing + 8, k->landing_word[1]);
    ptrace(PTRACE_SETSIGMASK, tid, sizeof(k->rescue_mask), &k->rescue_mask);
    ptrace(PTRACE_DETACH, tid, 0, 0);
    k->rescue_tid = 0;
}
