/* SPDX-License-Identifier: Apache-2.0
 *
 * show.c - what the program's signal handlers see when they come in while we are at work.
 *
 * A handler that looks at the interrupted context must find the program: musl cancels a thread only if its program counter lies at a system call
 * of its own, C++ exceptions and pthread_exit unwind from there, crash handlers print it, some put another program counter in its
 * place. So the kernel gets sd_signal (gate.S) for every handler of the program. It goes straight on, on the same stack frame, unless the
 * signal has interrupted the gate. Then the context in that frame is made what it would have been without us:
 *
 *   in a slot                 the call's own site, before or behind the instruction
 *   in C code                 the site, not executed yet, with the registers that the call was made with; behind it, if the kernel has
 *                             answered EINTR
 *   on the way in or out, in the short way, on the program's sigaltstack: as it is. Nothing there sleeps.
 *
 * When the handler returns and has left program counter and stack as they were shown, our own context is put back. Has it changed them, then
 * it wants to be elsewhere: our operation is over, as it is after siglongjmp.
 */
#include "gate/gate.h"

extern u8 sd_sys_ret[]; /* behind the instruction of sd_sys */
_Atomic u64 sd_signals[NSIG + 1];

#define REGS (UC_EFLAGS + 1)
#define SLOT_DONE (SD_SLOT_P + SD_SLOT_RET)
#define SLOT_C_DONE (SD_SLOT_P + SD_SLOT_BARE + 2)
#define SLOT_C_END (SD_SLOT_P + 68)

static bool show_slot(struct ucontext *uc)
{
    u64 at = uc->reg[UC_RIP] - (u64)sd_slots, ret, in = at % SD_SLOT_BYTES;

    if (at >= (u64)SD_SLOTS * SD_SLOT_BYTES)
        return false;
    ret = load_rlx(&sd_slot_ret[at / SD_SLOT_BYTES]);
    uc->reg[UC_RIP] = in == SLOT_DONE || (in >= SLOT_C_DONE && in < SLOT_C_END) ? ret : ret - 2;
    return true;
}

/* The frame of the operation that was interrupted; NULL: it cannot be told. */
static const struct sd_frame *frame_of(const struct sd_tcb *t, const struct ucontext *uc)
{
    u64 rsp = uc->reg[UC_RSP], top;
    const struct sd_frame *f;

    if (!t || !t->level || t->level > SD_STACK_LEVELS)
        return NULL;
    top = t->top - (u64)(t->level - 1) * SD_STACK_SLICE;
    f = t->frame[t->level - 1];
    if (rsp > top || rsp <= top - SD_STACK_SLICE || (u64)f & SD_FRAME_SHORT)
        return NULL;
    return f->next - (u64)sd_slots < (u64)SD_SLOTS * SD_SLOT_BYTES ? f : NULL;
}

static bool show_call(const struct sd_tcb *t, struct ucontext *uc)
{
    const struct sd_frame *f = frame_of(t, uc);
    u64 *r = uc->reg, ret;
    bool interrupted = r[UC_RIP] == (u64)sd_sys_ret && (long)r[UC_RAX] == -EINTR;

    if (!f)
        return false;
    ret = load_rlx(&sd_slot_ret[(f->next - (u64)sd_slots) / SD_SLOT_BYTES]);
    r[UC_RIP] = interrupted ? ret : ret - 2;
    r[UC_RAX] = interrupted ? (u64)-EINTR : f->rax;
    r[UC_RSP] = (u64)(f + 1) + 128; /* the red zone */
    r[UC_RDI] = f->rdi;
    r[UC_RSI] = f->rsi;
    r[UC_RDX] = f->rdx;
    r[UC_R10] = f->r10;
    r[UC_R8] = f->r8;
    r[UC_R9] = f->r9;
    r[UC_RBX] = f->rbx;
    r[UC_RBP] = f->rbp;
    r[UC_R12] = f->r12;
    r[UC_R13] = f->r13;
    r[UC_R14] = f->r14;
    r[UC_R15] = f->r15;
    r[UC_EFLAGS] = f->flags;
    return true;
}

/* From sd_signal, on the stack that the program has chosen for the signal. */
void sd_signal_inside(int sig, struct siginfo_sys *si, struct ucontext *uc)
{
    void (*handler)(int, struct siginfo_sys *, struct ucontext *) = (void *)load_rlx(&sd_signals[sig]);
    struct sd_tcb *t = sd_self();
    u64 own[REGS], rip, rsp;
    u32 level = t ? t->level : 0;

    for (u32 i = 0; i < REGS; i++)
        own[i] = uc->reg[i];
    bool slot = show_slot(uc), call = !slot && show_call(t, uc);
    rip = uc->reg[UC_RIP];
    rsp = uc->reg[UC_RSP];
    handler(sig, si, uc);
    if (!slot && !call)
        return;
    if (uc->reg[UC_RIP] == rip && uc->reg[UC_RSP] == rsp) {
        for (u32 i = 0; i < REGS; i++)
            uc->reg[i] = own[i];
    } else if (call) {
        t->level = level - 1;
    }
}
