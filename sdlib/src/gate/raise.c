/* SPDX-License-Identifier: Apache-2.0
 *
 * raise.c - abort(): a signal that a thread sends to itself shall find it at the call that sends it.
 *
 * What the kernel writes into a core dump is where the thread is then. In a slot, or in here, a debugger sees nothing of the program. So such a
 * call is made with all signals blocked, in our SIGSYS handler, whose return puts the thread behind its own call; there the signal arrives.
 * Only for signals that dump core: others kill silently, or have handlers, which are shown the program anyway (show.c).
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

void sd_trapped(struct ucontext *uc)
{
    const struct sd_frame *f = (const struct sd_frame *)uc->reg[UC_R10];
    struct sd_tcb *t = (struct sd_tcb *)uc->reg[UC_R8];
    long r = SYS3(f->rax, f->rdi, f->rsi, f->rdx);

    sd_show_frame(uc, f);
    uc->reg[UC_RIP] += 2;
    uc->reg[UC_RAX] = (u64)r;
    t->level--;
}
