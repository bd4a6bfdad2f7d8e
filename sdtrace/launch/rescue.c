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
 *
 * With --attach the library's start may have run without dispatch, or the filter be there without a listener that anybody else has: the program
 * then stays on TCP, and we answer for it.
 */
#include "keeper.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LANDING_BYTES 16
#define MARK 0x65746f6d65524453 /* in rbx */
#define PATIENCE_MS 1000 /* for the library's start; it takes microseconds */

/* Brings a seized thread to a stop of ours, passing on signals that come before; false: it is gone. One of the stops may be for the end of the remote
 * call that the supervisor has died in: the thread had seen that its tracer wants to hear of it, and found us when it came to tell. */
static bool stop(pid_t tid)
{
    int status, number;
    for (;;) {
        ptrace(PTRACE_INTERRUPT, tid, 0, 0);
        if (waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status))
            return false;
        if (status >> 16 == PTRACE_EVENT_STOP)
            return true;
        number = status >> 16 || WSTOPSIG(status) & 0x80 ? 0 : WSTOPSIG(status);
        ptrace(PTRACE_INTERRUPT, tid, 0, 0);
        ptrace(PTRACE_CONT, tid, 0, number); /* with what is no signal it would refuse */
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

/* A system call of the stopped thread, made at the call instruction in front of the landing. -EIO: it has gone. */
static long call(const struct keepsake *k, pid_t tid, long nr, unsigned long argument)
{
    struct user_regs_struct found, r;
    int status = 0;
    if (ptrace(PTRACE_GETREGS, tid, 0, &found) < 0)
        return -EIO;
    r = found;
    r.rip = k->landing - 2;
    r.rax = (unsigned long)nr;
    r.rdi = argument;
    r.rbx = MARK;
    r.orig_rax = ~0UL;
    ptrace(PTRACE_SETREGS, tid, 0, &r);
    for (int stops = 0; stops < 2;) { /* entry and exit; an interrupt that came late is none of them */
        if (ptrace(PTRACE_SYSCALL, tid, 0, 0) < 0 || waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status))
            return -EIO;
        stops += WSTOPSIG(status) == (SIGTRAP | 0x80);
    }
    ptrace(PTRACE_GETREGS, tid, 0, &r);
    /* Only from a stop of this kind does the kernel make an interrupted call anew. */
    ptrace(PTRACE_INTERRUPT, tid, 0, 0);
    ptrace(PTRACE_CONT, tid, 0, 0);
    if (waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status))
        return -EIO;
    ptrace(PTRACE_SETREGS, tid, 0, &found);
    return (long)r.rax;
}

/* The supervisor died between the call that made the program's filter and having its listener: nobody would answer. */
static int take_listeners(const struct keepsake *k, pid_t tid, int *listeners, int max)
{
    char folder[32], path[64], to[32];
    int n = 0, pidfd = pidfd_open((pid_t)k->attaching, 0);
    snprintf(folder, sizeof(folder), "/proc/%u/fd", k->attaching);
    DIR *d = opendir(folder);
    for (struct dirent *e; d && n < max && (e = readdir(d));) {
        snprintf(path, sizeof(path), "%s/%.20s", folder, e->d_name);
        ssize_t len = readlink(path, to, sizeof(to) - 1);
        if (len < 0 || strncmp(to, "anon_inode:seccomp notify", (size_t)len))
            continue;
        int fd = pidfd_getfd(pidfd, atoi(e->d_name), 0);
        if (fd < 0)
            continue;
        listeners[n++] = fd;
        call(k, tid, SYS_close, (unsigned long)atoi(e->d_name));
    }
    if (d)
        closedir(d);
    close(pidfd);
    return n;
}

static void put_right(struct keepsake *k, pid_t tid)
{
    if (at_landing(k, tid))
        ptrace(PTRACE_SETREGS, tid, 0, &k->rescue_regs);
    ptrace(PTRACE_POKETEXT, tid, k->landing, k->landing_word[0]);
    ptrace(PTRACE_POKETEXT, tid, k->landing + 8, k->landing_word[1]);
    ptrace(PTRACE_SETSIGMASK, tid, sizeof(k->rescue_mask), &k->rescue_mask);
}

int keeper_rescue(struct keepsake *k, int *listeners, int max)
{
    static const struct timespec a_moment = {0, 1000000};
    pid_t tid = (pid_t)k->rescue_tid;
    int found = 0;
    if (!tid || ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD) < 0)
        return 0; /* it has ended, or another tracer has it already */
    ptrace(PTRACE_INTERRUPT, tid, 0, 0);
    end_waits(k);
    bool there = stop(tid);
    for (int ms = 0; there && k->in_start && !at_landing(k, tid) && ms < PATIENCE_MS; ms++) {
        ptrace(PTRACE_CONT, tid, 0, 0);
        nanosleep(&a_moment, NULL);
        there = stop(tid);
    }
    if (!there)
        return 0;
    if (k->attaching)
        found = take_listeners(k, tid, listeners, max);
    put_right(k, tid);
    ptrace(PTRACE_DETACH, tid, 0, 0);
    k->rescue_tid = 0;
    return found;
}
