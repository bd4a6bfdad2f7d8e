/* SPDX-License-Identifier: Apache-2.0
 *
 * altstack.c - the program's alternate signal stack.
 *
 * One of the usual size is the kernel's as well: handlers run on it, our C code below them (gate.S), and the frame of a call that traps. On one of
 * 4 KiB the kernel's first frame leaves a few hundred bytes (3376 are its own with AVX-512). And a program may give all its threads the same one, for a
 * handler that ends it anyway (Varnish): calls of two threads that trap would meet there. So while the program's is small, or another thread's as
 * well, the kernel is told of one of ours, and what the kernel puts there for a handler of the program is moved to where it would have been: the top of the program's, or
 * below what is there already. From then on ours is free again, since nobody runs on it. It holds, for a moment each, frames to be moved and the
 * frame of a SIGSYS; our C code has the library's stack, as from anywhere else.
 *
 * Into a moved frame the interrupted context of the program is written as it would be without us (show.c). If it was our operation that was interrupted,
 * its own registers are kept aside until the handler comes back. A handler that leaves by siglongjmp leaves them: what is aside for a frame at or
 * below the place of a new one has been left.
 *
 * Where a frame cannot be moved (no room, the program's handler has interrupted us between the kernel's frame and the move) the handler runs on ours.
 */
#include "gate/calls.h"
#include "gate/gate.h"

#define SS_ONSTACK 1
#define SS_DISABLE 2
#define SS_AUTODISARM (1 << 31)
#define SMALL (16 * 1024)
#define REDZONE 128
#define SIGINFO 128
#define FRAME (8 + sizeof(struct ucontext) + SIGINFO) /* struct rt_sigframe */
#define FP_XSTATE_MAGIC1 0x46505853u
#define FP_MAGIC_AT 464 /* of struct _fpx_sw_bytes in the FXSAVE area */
#define FP_LEGACY 512
#define FP_ALIGN 64

static bool is_on(const struct sd_tcb *t, u64 at) { return at - t->small_lo < t->small_hi - t->small_lo || sd_on_own_alt(t, at); }

static bool overlaps(const struct stack_t_ *ss, const u64 *lo, const u64 *hi)
{
    return __atomic_load_n(lo, __ATOMIC_RELAXED) < ss->sp + ss->size && ss->sp < __atomic_load_n(hi, __ATOMIC_RELAXED);
}

/* A vfork child's is its parent's, which sleeps. Each thread says what it has before it looks at what others have (learn). Who had it alone until now
 * takes one of ours when it traps next: handlers of the others, which are moved there, would meet the frames of its calls. */
static bool is_shared(const struct sd_tcb *t, const struct stack_t_ *ss)
{
    bool found = false;

    for (struct sd_tcb *x = sd_tcbs(); x && !t->foreign; x = x->next) {
        if (x == t || !__atomic_load_n(&x->tid, __ATOMIC_RELAXED) || x->exiting)
            continue;
        if (overlaps(ss, &x->alt_lo, &x->alt_hi)) {
            __atomic_store_n(&x->alt_shared, 1, __ATOMIC_RELAXED);
            found = true;
        } else if (overlaps(ss, &x->small_lo, &x->small_hi)) {
            found = true;
        }
    }
    return found;
}

static bool wants_ours(const struct sd_tcb *t, const struct stack_t_ *ss)
{
    return !(ss->flags & (SS_DISABLE | SS_ONSTACK | SS_AUTODISARM)) && (ss->size < SMALL || is_shared(t, ss));
}

static struct stack_t_ own_of(const struct sd_tcb *t) { return (struct stack_t_){.sp = t->lo, .size = SD_OWN_ALT}; }

/* The program has `ss` for this thread, and the kernel has it, too, or `own`. */
static void learned(struct sd_tcb *t, const struct stack_t_ *ss, bool own)
{
    bool off = ss->flags & SS_DISABLE;

    t->own_alt = t->small_lo = t->small_hi = 0;
    __atomic_store_n(&t->alt_shared, 0, __ATOMIC_RELAXED); /* whoever finds it from here on says so again */
    t->alt_lo = off ? 0 : ss->sp;
    t->alt_hi = off ? 0 : ss->sp + ss->size;
    if (!own)
        return;
    t->small_lo = t->alt_lo;
    t->small_hi = t->alt_hi;
    t->alt_lo = t->alt_hi = 0;
    t->own_alt = t->lo;
}

/* The kernel has `ss`. */
static void learn(struct sd_tcb *t, const struct stack_t_ *ss)
{
    struct stack_t_ own = own_of(t);

    learned(t, ss, false);
    sd_fence(); /* of two that do this at the same time at least one sees the other */
    if (wants_ours(t, ss) && SYS2(__NR_sigaltstack, &own, 0) >= 0)
        learned(t, ss, true);
}

long sd_sys_from(u64 sp, long nr, const void *a, void *b); /* gate.S */

/* From our SIGSYS handler, which may run on that very stack: the kernel looks at the stack pointer. */
static long change_from_ours(const struct sd_tcb *t, const struct stack_t_ *ss)
{
    u32 level = t->level < SD_STACK_LEVELS ? t->level : SD_STACK_LEVELS - 1;
    u64 was;
    long r;

    was = sd_signals_block(); /* a handler would find us nowhere */
    r = sd_sys_from(t->top - (u64)level * SD_STACK_SLICE, __NR_sigaltstack, ss, NULL);
    sd_signals_restore(was);
    return r;
}

/* sigaltstack of the thread that our SIGSYS handler has interrupted at *uc. When that returns the kernel takes it from there once more. */
long sd_alt_change(struct ucontext *uc, const struct stack_t_ *ss, struct stack_t_ *old)
{
    struct sd_tcb *t = sd_self() ? sd_self() : sd_tcb_new((u64)uc);
    u64 sp = uc->reg[UC_RSP];
    struct stack_t_ own;
    bool on;
    long r;

    if (!t)
        return -ENOMEM;
    on = t->own_alt ? is_on(t, sp) : sp - t->alt_lo < t->alt_hi - t->alt_lo;
    *old = t->own_alt ? (struct stack_t_){.sp = t->small_lo, .size = t->small_hi - t->small_lo} : uc->stack;
    old->flags = (old->flags & SS_AUTODISARM) | (on ? SS_ONSTACK : old->size ? 0 : SS_DISABLE);
    if (!ss || on)
        return ss ? -EPERM : 0;
    r = change_from_ours(t, ss);
    if (r < 0)
        return r;
    own = own_of(t);
    learned(t, ss, false);
    sd_fence(); /* as in learn() */
    if (wants_ours(t, ss) && change_from_ours(t, &own) >= 0)
        learned(t, ss, true);
    uc->stack = t->own_alt ? own : *ss;
    return 0;
}

void sd_alt_part(struct ucontext *uc, struct sd_tcb *t)
{
    struct stack_t_ ss = {.sp = t->alt_lo, .size = t->alt_hi - t->alt_lo}, own = own_of(t);
    u64 sp = uc->reg[UC_RSP];

    if (t->own_alt || (uc->stack.flags & SS_AUTODISARM) || sp - ss.sp < ss.size || change_from_ours(t, &own) < 0)
        return; /* on it: the calls of its handler come below that */
    learned(t, &ss, true);
    uc->stack = own;
}

/* Those that had one stack together when we came have been given others (sdtrace/stacks.py). */
static bool was_given(struct sd_tcb *t, u64 sp)
{
    u64 all = (u64)sd_boot.nalts * SD_OWN_ALT;
    const u64(*had)[2] = (void *)(sd_boot.alts + all);
    u64 at = (sp - sd_boot.alts) / SD_OWN_ALT;

    if (sp - sd_boot.alts >= all)
        return false;
    t->own_alt = sp;
    t->small_lo = had[at][0];
    t->small_hi = had[at][1];
    t->alt_lo = t->alt_hi = 0;
    return true;
}

void sd_alt_learn(struct sd_tcb *t)
{
    struct stack_t_ ss = {.flags = SS_DISABLE};

    t->nasides = 0;
    SYS2(__NR_sigaltstack, 0, &ss);
    for (const struct sd_tcb *x = sd_tcbs(); x && !(ss.flags & SS_DISABLE); x = x->next)
        if (x->own_alt == ss.sp) { /* a vfork child's is its parent's */
            t->own_alt = x->own_alt;
            t->small_lo = x->small_lo;
            t->small_hi = x->small_hi;
            t->alt_lo = t->alt_hi = 0;
            return;
        }
    if (was_given(t, ss.sp))
        return;
    learn(t, &ss);
}

SD_CALL(sd_sigaltstack)
{
    const struct stack_t_ *ss = (void *)f->rdi;
    struct stack_t_ *old = (void *)f->rsi, wanted, was = {.sp = t->small_lo, .size = t->small_hi - t->small_lo};
    u64 here = (u64)f;
    bool small = t->own_alt;
    long r = 0;

    /* On the stack itself the kernel refuses, and shows SS_ONSTACK: it has to see the program's rsp. */
    if (small ? (ss && !sd_plausible(ss)) || (old && !sd_plausible(old)) : !ss || !sd_plausible(ss) || (here >= t->alt_lo && here < t->alt_hi))
        return SD_PASS;
    was.flags = is_on(t, here) ? SS_ONSTACK : 0;
    if (ss) {
        wanted = *ss; /* `old` may be the same memory */
        if (small && was.flags)
            return -EPERM;
        r = SYS2(__NR_sigaltstack, &wanted, small ? NULL : old);
        if (r == 0)
            learn(t, &wanted);
    }
    if (r == 0 && small && old)
        *old = was;
    return r;
}

/* ------------------------------------------------------------------- frames */

static u64 fp_bytes(u64 fp)
{
    const u32 *sw = (const u32 *)(fp + FP_MAGIC_AT);

    return !fp ? 0 : sw[0] == FP_XSTATE_MAGIC1 ? sw[1] : FP_LEGACY;
}

/* Where the kernel would begin a frame on the program's stack for a signal that interrupts at rsp; 0: it cannot be told. */
static u64 top_for(const struct sd_tcb *t, u64 rsp)
{
    u64 top = t->small_hi;

    if (sd_on_own_alt(t, rsp))
        return 0;
    if (rsp - t->small_lo < t->small_hi - t->small_lo)
        return rsp - REDZONE;
    for (u32 l = 0; l < t->level && l < SD_STACK_LEVELS; l++) { /* operations of handlers there, which have been interrupted */
        u64 f = (u64)t->frame[l];
        if (f >= t->small_lo && f < top)
            top = f;
    }
    return top;
}

static void keep_aside(struct sd_tcb *t, const struct ucontext *uc, const struct ucontext *moved, const struct ucontext *shown, u32 level)
{
    struct sd_aside *a = &t->asides[t->nasides];

    a->uc = (u64)moved;
    a->level = level;
    a->rip = shown->reg[UC_RIP];
    a->rsp = shown->reg[UC_RSP];
    sd_copy(a->reg, uc->reg, sizeof a->reg);
    t->nasides++;
}

/* Moves the kernel's frame, which is on ours, to the program's stack. `level`: operation that was interrupted and that goes on when the handler comes
 * back, else 0. NULL: the handler runs where the frame is. */
struct ucontext *sd_alt_move(struct sd_tcb *t, const struct ucontext *uc, const struct ucontext *shown, u32 level)
{
    u64 top = top_for(t, uc->reg[UC_RSP]), bytes = fp_bytes(uc->fpstate), fp, frame;
    struct ucontext *to;

    if (top < t->small_lo + bytes + FP_ALIGN + FRAME + 16)
        return NULL;
    fp = (top - bytes) & ~(u64)(FP_ALIGN - 1);
    frame = ((fp - FRAME) & ~15ull) - 8;
    if (frame < t->small_lo)
        return NULL;
    to = (struct ucontext *)(frame + 8);
    while (t->nasides && t->asides[t->nasides - 1].uc <= (u64)to)
        t->nasides--;
    if (level && t->nasides == SD_STACK_LEVELS)
        return NULL;
    sd_copy((void *)fp, (const void *)uc->fpstate, bytes);
    sd_copy((void *)frame, (const u8 *)uc - 8, FRAME);
    sd_copy(to->reg, shown->reg, sizeof to->reg);
    to->fpstate = bytes ? fp : 0;
    if (level)
        keep_aside(t, uc, to, shown, level);
    return to;
}

struct sd_aside *sd_alt_aside(struct sd_tcb *t, const struct ucontext *uc)
{
    for (u32 i = t ? t->nasides : 0; i-- > 0;)
        if (t->asides[i].uc == (u64)uc) {
            t->nasides = i;
            return &t->asides[i];
        }
    return NULL;
}
