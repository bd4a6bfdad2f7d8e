/* SPDX-License-Identifier: Apache-2.0
 *
 * raise.c - abort(): a signal that a thread sends to itself shall find it at the call that sends it.
 *
 * What the kernel writes into a core dump is where the thread is then. In a slot, or in here, a debugger sees nothing of the program. So such a
 * call is made with all signals blocked, in our SIGSYS handler, whose return puts the thread behind its own call; there the signal arrives.
 * Only for signals that dump core: others kill silently, or have handlers, which are shown the program anyway (show.c). musl blocks everything around
 * the call that sends it: there it arrives at the one that puts the mask back.
 */
#include "gate/calls.h"
#include "gate/gate.h"

#define DUMPS (SIGBIT(SIGQUIT) | SIGBIT(SIGILL) | SIGBIT(SIGTRAP) | SIGBIT(SIGABRT) | SIGBIT(SIGBUS) | SIGBIT(SIGFPE) | SIGBIT(SIGSEGV) | \
               SIGBIT(SIGXCPU) | SIGBIT(SIGXFSZ))

static long raise(u64 tid, u64 sig, struct sd_frame *f, struct sd_tcb *t)
{
    sig &= 0xffffffff;
    if (sig - 1 >= NSIG || !(DUMPS & SIGBIT(sig)) || (u32)tid != t->tid || g.boxed)
        return SD_PASS;
    return sd_trap(f->rax, f->rdi, f->rsi, f->rdx, f, t);
}

SD_CALL(sd_tkill)
{
    return raise(f->rdi, f->rsi, f, t);
}

SD_CALL(sd_tgkill)
{
    return raise(f->rsi, f->rdx, f, t);
}

/* Does this change of the mask, in C code anyway, let in such a signal? Then it is made as above; *old is the mask before it. */
bool sd_raise_lets_in(u32 how, u64 *set, u64 *old)
{
    u64 pending = 0;

    if (how == SIG_BLOCK || g.boxed || SYS2(__NR_rt_sigpending, &pending, 8) < 0 || !(pending & DUMPS) ||
        SYS4(__NR_rt_sigprocmask, SIG_BLOCK, NULL, old, 8) < 0)
        return false;
    if (how == SIG_UNBLOCK)
        *set = *old & ~*set;
    return pending & DUMPS & *old & ~*set;
}

void sd_trapped(struct ucontext *uc)
{
    const struct sd_frame *f = (const struct sd_frame *)uc->reg[UC_R10];
    struct sd_tcb *t = (struct sd_tcb *)uc->reg[UC_R8];
    long r = 0;

    if ((u32)f->rax == __NR_rt_sigprocmask)
        uc->sigmask = uc->reg[UC_RDI];
    else
        r = SYS3(f->rax, f->rdi, f->rsi, f->rdx);
    sd_show_frame(uc, f);
    uc->reg[UC_RIP] += 2;
    uc->reg[UC_RAX] = (u64)r;
    t->level--;
}
