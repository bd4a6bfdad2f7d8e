/* SPDX-License-Identifier: Apache-2.0
 *
 * exec.c - the ends of images, threads and processes, and calls that would take our own footing away.
 */
#include "gate/calls.h"
#include "gate/gate.h"
#include "poll/poll.h"
#include "sock/sock.h"

#define ARCH_SET_GS 0x1001
#define ARCH_GET_GS 0x1004
#define PR_SET_SECCOMP 22

/* A connection may be on its way to us in a message that the next program receives. [P1] Who sends one has set `passing` before it looks at `execs`. */
static u32 along(struct sd_carry *carry, u32 n, const struct sd_tcb *t)
{
    if (!t->foreign)
        store_rlx(&g.proc->execs, 1);
    sd_fence();
    if (g.area[0] && load_rlx(&g.area[0]->passing))
        carry[n++] = (struct sd_carry){.block = SD_CARRY_AREAS};
    return n;
}

/* The call is made from here: it comes back only if it fails, and then what was prepared is taken back. */
static NOINLINE long exec(struct sd_frame *f, struct sd_tcb *t)
{
    struct sd_carry carry[SD_CARRY_MAX];
    u32 n = sd_socks_before_exec(carry, SD_CARRY_MAX - 1, t);
    if (!t->foreign) /* a vfork child has the parent's registrations before it */
        sd_ep_before_exec();
    if (n && !t->foreign) {
        for (u32 fd = 0; fd < sd_fd_top() && n < SD_CARRY_MAX - 1; fd++) {
            long fl = sd_epoll_of(fd) ? SYS2(__NR_fcntl, fd, F_GETFD) : -1;
            if (fl >= 0 && !(fl & FD_CLOEXEC))
                carry[n++] = (struct sd_carry){.fd = (i32)fd, .block = SD_CARRY_EPOLL};
        }
    }
    n = along(carry, n, t);
    if (n) /* whatever we were answered before: without it the connection is lost */
        SYS3(SD_HC_NR, SD_HC_EXEC, carry, n);
    sd_faults_own(true);
    long r = SYS5(f->rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
    if (!t->foreign)
        store_rlx(&g.proc->execs, 0);
    sd_faults_back();
    sd_socks_exec_failed(carry, n, t);
    return r;
}

SD_CALL(sd_execve)
{
    return exec(f, t);
}

SD_CALL(sd_execveat)
{
    return exec(f, t);
}

SD_CALL(sd_exit)
{
    (void)f;
    sd_part_release(t);
    sd_thread_ends(t);
    return SD_PASS;
}

SD_CALL(sd_exit_group)
{
    if (!t->foreign)
        sd_socks_exit();
    else
        sd_foreign_exit(t);
    if (g.cfg->root_pid && g.cfg->root_pid == g.pid) {
        /* Or a signal that comes more often than the supervisor answers would keep it from ending: the request starts over behind each. No handler runs any
         * more natively either. */
        u64 all = ~0ull;
        SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8);
        sd_hypercall(SD_HC_LEAVE, f->rdi, 0);
    }
    return SD_PASS;
}

/* gs holds our block. Programs that use gs before the first socket call are left alone by the supervisor; one that starts to later is
 * told that it cannot. */
SD_CALL(sd_arch_prctl)
{
    (void)t;
    if ((u32)f->rdi == ARCH_SET_GS)
        return -EINVAL;
    if ((u32)f->rdi == ARCH_GET_GS && sd_plausible((void *)f->rsi)) {
        *(u64 *)f->rsi = 0;
        return 0;
    }
    return SD_PASS;
}

/* A filter of the program may kill for calls that the program never makes. From here on we make none but its own (sock/leave.c): no connection on
 * a ring, no patching, no more questions to the supervisor, and no trap, whose return is a system call. */
static void own_filter(bool strict)
{
    if (!strict)
        sd_threads_uncounted(); /* without dispatch threads come and go as they like */
    sd_stand_aside();
}

/* The program's calls are the kernel's from here on, all of them. */
void sd_stand_aside(void)
{
    if (g.boxed)
        return;
    sd_patch_forbid();
    sd_socks_leave();
    sd_faults_own(false);
    g.no_supervisor = 1;
    g.boxed = 1;
    SYS5(__NR_prctl, PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0, 0, 0);
}

/* One of several threads gets a table of descriptors of its own. Ours is of the process, and cannot be that of both. */
SD_CALL(sd_unshare)
{
    if (((u32)f->rdi & CLONE_FILES) && g.mt && !t->foreign)
        sd_stand_aside();
    return SD_PASS;
}

SD_CALL(sd_prctl)
{
    if ((u32)f->rdi == PR_SET_SYSCALL_USER_DISPATCH)
        return -EINVAL; /* as on a kernel without it */
    if ((u32)f->rdi != PR_SET_SECCOMP)
        return SD_PASS;
    own_filter(f->rsi == 1);
    return f->rsi == 1 ? sd_strict_mode(t) : SD_PASS;
}

SD_CALL(sd_seccomp)
{
    bool strict = !(u32)f->rdi && !(u32)f->rsi && !f->rdx; /* SECCOMP_SET_MODE_STRICT */

    if (strict || (u32)f->rdi == 1) /* SECCOMP_SET_MODE_FILTER */
        own_filter(strict);
    return strict ? sd_strict_mode(t) : SD_PASS;
}
