/* SPDX-License-Identifier: Apache-2.0
 *
 * child.c - new threads and processes, on both sides of the call.
 *
 * The parent only notes what it asks for and lets the kernel do it at the slot: the C code must not be on the stack of a call that returns
 * twice. So a clone that fails goes unnoticed; what was counted for a child that never came makes us more careful, not wrong.
 */
#include "gate/gate.h"
#include "poll/poll.h"
#include "sock/sock.h"

#define CLONE_CLEAR_SIGHAND (1ull << 32)
#define CLONE_NEWPID 0x20000000u
#define PR_SET_PTRACER 0x59616d61

static long before(struct sd_tcb *t, u64 flags)
{
    t->clone_flags = (u32)flags;
    t->flags &= ~SD_TCB_CLEAR_SIGHAND;
    if (flags & CLONE_CLEAR_SIGHAND)
        t->flags |= SD_TCB_CLEAR_SIGHAND;
    if ((flags & (CLONE_VM | CLONE_FILES)) == CLONE_FILES && !t->foreign)
        sd_stand_aside(); /* one table of descriptors, and two memories to know it in: what one does the other does not see */
    if (!(flags & CLONE_VM)) {
        sd_fast_off();
        sd_patch_for_children();
        sd_ep_before_fork();
        sd_parts_before_fork(t);
        sd_owed_before_fork(t);
        sd_socks_before_fork();
    } else if (!(flags & CLONE_VFORK) || (flags & CLONE_THREAD)) {
        g.mt = 1;
        sd_fast_off();
    }
    if ((flags & CLONE_THREAD) && !t->foreign)
        sd_thread_comes();
    if ((flags & CLONE_VM) && !(flags & (CLONE_FILES | CLONE_THREAD)))
        sd_socks_before_vfork();
    return SD_BARE;
}

SD_CALL(sd_clone) { return before(t, f->rdi & 0xffffffff); }

SD_CALL(sd_clone3)
{
    const u64 *args = (void *)f->rdi;
    return sd_plausible(args) && f->rsi >= 64 ? before(t, *args) : SD_PASS; /* less than CLONE_ARGS_SIZE_VER0 is -EINVAL */
}

SD_CALL(sd_fork)
{
    (void)f;
    return before(t, 0);
}

SD_CALL(sd_vfork)
{
    (void)f;
    return before(t, CLONE_VM | CLONE_VFORK);
}

/* Memory is shared with the parent: only to be read. The thread gets its own block at its first call into C. */
static void start_shared(void)
{
    sd_set_self(NULL);
}

static void start_forked(struct sd_tcb *t)
{
    g.pid = (u32)SYS0(__NR_getpid);
    g.mt = 0;
    sd_threads_are(1);
    sd_patch_after_fork();
    sd_tcbs_after_fork(t);
    sd_parts_forget();
    sd_socks_after_fork_child();
}

/* Runs on the child's own stack. `parent` is the block of the thread that has called clone: a copy after fork, else still in use by it,
 * so that its flags may already be those of its next clone. Threads are therefore told by their process. */
void sd_child_start(struct sd_tcb *parent)
{
    u32 flags = parent->clone_flags;
    bool thread = SYS0(__NR_getpid) == (long)g.pid && !((flags & CLONE_NEWPID) && !(flags & CLONE_VM));
    if (!thread && (parent->flags & SD_TCB_CLEAR_SIGHAND)) {
        sd_install_sigsys();
        if (!(flags & CLONE_VM)) /* else it has but its parent's memory, and will exec */
            sd_faults_reset();
    }
    if (!thread && sd_boot.tracer && !g.boxed) /* Yama asks for each process, and remembers it through exec */
        SYS5(__NR_prctl, PR_SET_PTRACER, sd_boot.tracer, 0, 0, 0);
    if (!g.boxed || (thread && sd_strict_alone())) /* else its sites run as they are, patched or not */
        SYS5(__NR_prctl, PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, sd_gate_start, sd_gate_end - sd_gate_start, 0);
    if (thread || (flags & CLONE_VM))
        start_shared();
    else
        start_forked(parent);
}
