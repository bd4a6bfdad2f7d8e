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
 * While the program's sigaltstack is small, also handlers on it come by here, wherever the signal has come in: altstack.c.
 *
 * It is shown a copy, in a frame of the same form as the kernel's and with nothing of ours between the handler and it: whoever unwinds (C++ exceptions,
 * pthread_cancel, backtrace, debuggers) comes from the handler to the program's own call. When the handler returns and has left program counter
 * and stack as they were shown, our own context goes on. Has it changed them, then it wants to be elsewhere: our operation is over, as it is after
 * siglongjmp.
 */
#include "gate/gate.h"

void sd_signal_return(void);
void sd_signal_back(void);
struct sd_shown;
struct sd_handler sd_show(int sig, const struct siginfo_sys *si, struct ucontext *uc, struct sd_shown *s);
_Atomic u64 sd_signals[NSIG + 1];

#define REGS (UC_EFLAGS + 1)
_Static_assert(REGS == SD_CONTEXT_REGS, "sd.h");
#define ARGUMENT_INFO (-2) /* where gate.S has pushed rsi, from sd_shown */
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
    bool interrupted = uc->reg[UC_RIP] == (u64)sd_sys_ret && (long)uc->reg[UC_RAX] == -EINTR;

    if (!f)
        return false;
    sd_show_frame(uc, f);
    if (interrupted) {
        uc->reg[UC_RIP] += 2;
        uc->reg[UC_RAX] = (u64)-EINTR;
    }
    return true;
}

void sd_show_frame(struct ucontext *uc, const struct sd_frame *f)
{
    u64 *r = uc->reg;

    r[UC_RIP] = load_rlx(&sd_slot_ret[(f->next - (u64)sd_slots) / SD_SLOT_BYTES]) - 2;
    r[UC_RAX] = f->rax;
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
}

/* Lies below the kernel's frame; begins like one. */
struct sd_shown {
    u64 back; /* return address */
    struct ucontext uc;
    struct ucontext *real;
    u64 rip, rsp; /* as shown */
    u64 level;    /* of the operation that was interrupted, 0: none, a bare call */
};
_Static_assert(sizeof(struct sd_shown) <= 352, "SHOWN_BYTES in gate.S");

struct sd_handler {
    u64 entry, frame;
};

/* From sd_signal_inside, on the stack that the kernel has chosen for the signal; below s lie the handler's arguments, which gate.S has kept there. */
struct sd_handler sd_show(int sig, const struct siginfo_sys *si, struct ucontext *uc, struct sd_shown *s)
{
    struct sd_handler to = {load_rlx(&sd_signals[sig]), (u64)uc - 8};
    struct sd_tcb *t = sd_self();
    bool inside = sd_in_library(uc->reg[UC_RIP]), call, shown;
    u64 back = (u64)(g.boxed ? sd_signal_back : sd_signal_return);
    struct ucontext *moved = NULL;

    (void)si;
    sd_copy(&s->uc, uc, sizeof *uc);
    call = inside && !show_slot(&s->uc);
    shown = inside && (!call || show_call(t, &s->uc));
    if (sd_on_own_alt(t, (u64)uc))
        moved = sd_alt_move(t, uc, shown ? &s->uc : uc, shown && call ? t->level : 0);
    if (moved) {
        to.frame = (u64)moved - 8;
        if (shown && call)
            *(u64 *)to.frame = back;
        ((u64 *)s)[ARGUMENT_INFO] = (u64)(moved + 1);
        return to;
    }
    if (!shown)
        return to;
    s->back = back;
    s->real = uc;
    s->rip = s->uc.reg[UC_RIP];
    s->rsp = s->uc.reg[UC_RSP];
    s->level = call ? t->level : 0;
    to.frame = (u64)s;
    return to;
}

/* A handler of the frame that was moved to the program's small stack has come back; see sd_alt_move. */
static u64 moved_end(struct ucontext *uc, const struct sd_aside *a)
{
    if (uc->reg[UC_RIP] == a->rip && uc->reg[UC_RSP] == a->rsp)
        sd_copy(uc->reg, a->reg, sizeof a->reg);
    else
        sd_self()->level = (u32)a->level - 1;
    return (u64)uc;
}

u64 sd_shown_end(struct ucontext *uc)
{
    struct sd_shown *s = (struct sd_shown *)((u8 *)uc - offsetof(struct sd_shown, uc));
    const struct sd_aside *aside = sd_alt_aside(sd_self(), uc);
    u64 own[REGS];

    uc->sigmask &= ~SIGBIT(SIGSYS);
    if (aside)
        return moved_end(uc, aside);
    if (uc->reg[UC_RIP] != s->rip || uc->reg[UC_RSP] != s->rsp) {
        if (s->level)
            sd_self()->level = (u32)s->level - 1;
        return (u64)uc;
    }
    sd_copy(own, s->real->reg, sizeof own);
    sd_copy(s->real, uc, sizeof *uc); /* the mask, and whatever else it has changed */
    sd_copy(s->real->reg, own, sizeof own);
    return (u64)s->real;
}
