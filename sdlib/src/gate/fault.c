/* SPDX-License-Identifier: Apache-2.0
 *
 * fault.c - SIGSEGV and SIGBUS: ours first, and the program's as if we were not there.
 *
 * We copy to and from the program's buffers where the kernel would have done it, and the kernel answers a bad pointer with EFAULT. So the kernel
 * always has a handler of ours for these two. A fault of the library's own code goes on where the instruction has said (base/user.h), or ends
 * the whole call with EFAULT, as if the thread had left it by siglongjmp. Everything else is the program's: its handler gets the signal on the
 * frame that the kernel has made, and where it has none, the default action is given back to the kernel and the instruction faults again, so
 * that status, core dump and what a tracer sees are the kernel's own.
 *
 * A fault of ours at an address that the program has not named is a mistake in here, which EFAULT would hide: it is counted (faults_inside), and this process
 * and its forks offer no connection any more.
 *
 * What remains to be seen: the two bits in /proc/PID/status, SigCgt. Blocked signals stay blocked: a bad pointer that is given to a connection on the
 * ring while SIGSEGV is blocked kills the thread's process, as a bad pointer of its own would.
 */
#include "gate/calls.h"
#include "gate/gate.h"
#include "poll/poll.h"

#define SA_RESETHAND 0x80000000u
#define SIG_DFL 0ull
#define SIG_IGN 1ull

struct fixup {
    i32 at, to; /* from their own places */
};
extern const struct fixup sd_fixups[], sd_fixups_end[];
extern u8 sd_leave_c[], sd_nothing[]; /* enter.S, gate.S */

static struct ksigaction program[2]; /* what the program has asked for: SIGSEGV, SIGBUS */

static struct ksigaction *program_of(u32 sig) { return &program[sig == SIGBUS]; }

bool sd_is_fault(u32 sig) { return sig == SIGSEGV || sig == SIGBUS; }

/* What the kernel is told of `act`. */
static struct ksigaction to_kernel(const struct ksigaction *act)
{
    struct ksigaction k = *act;

    if (act->handler <= SIG_IGN)
        k = (struct ksigaction){.flags = SA_ONSTACK | SA_RESTART | SA_RESTORER, .restorer = (u64)sd_restorer};
    k.handler = (u64)sd_signal_fault;
    k.flags |= SA_SIGINFO;
    k.mask &= ~SIGBIT(SIGSYS);
    return k;
}

static long install(u32 sig)
{
    struct ksigaction k = to_kernel(program_of(sig));

    store_rlx(&sd_signals[sig], program_of(sig)->handler);
    return SYS4(__NR_rt_sigaction, sig, &k, 0, 8);
}

long sd_fault_adopt(u32 sig, const struct ksigaction *act)
{
    *program_of(sig) = *act;
    return install(sig);
}

/* In a child whose handlers the kernel has reset; what is ignored stays so. */
void sd_faults_reset(void)
{
    for (u32 i = 0; i < 2; i++) {
        if (program[i].handler != SIG_IGN)
            program[i] = (struct ksigaction){0};
        install(i ? SIGBUS : SIGSEGV);
    }
}

/* The actions as the program means them: before its own filter, which may not let us do anything later, and before an exec, which keeps what
 * is ignored. Undone by sd_faults_back(). */
void sd_faults_own(bool ignored_only)
{
    for (u32 i = 0; i < 2; i++) {
        struct ksigaction now;
        SYS4(__NR_rt_sigaction, i ? SIGBUS : SIGSEGV, 0, &now, 8);
        if (now.handler == (u64)sd_signal_fault && (!ignored_only || program[i].handler == SIG_IGN)) /* else SA_RESETHAND was here */
            SYS4(__NR_rt_sigaction, i ? SIGBUS : SIGSEGV, &program[i], 0, 8);
    }
}

void sd_faults_back(void)
{
    for (u32 i = 0; i < 2; i++)
        if (program[i].handler == SIG_IGN)
            install(i ? SIGBUS : SIGSEGV);
}

/* rt_sigaction. A vfork child has actions of its own in the kernel, and our memory is its parent's. */
long sd_fault_action(u32 sig, const struct ksigaction *act, struct ksigaction *old, bool foreign)
{
    struct ksigaction was, wanted = act ? *act : (struct ksigaction){0}, k = wanted;
    long r;

    k.mask &= ~SIGBIT(SIGSYS);
    if (act && !foreign)
        k = to_kernel(act);
    r = SYS4(__NR_rt_sigaction, sig, act ? &k : NULL, &was, 8);
    if (r < 0)
        return r;
    if (was.handler == (u64)sd_signal_fault)
        was = *program_of(sig); /* else it was reset, by SA_RESETHAND */
    if (act && !foreign) {
        *program_of(sig) = wanted;
        store_rlx(&sd_signals[sig], wanted.handler);
    }
    if (old)
        *old = was;
    return 0;
}

/* ------------------------------------------------------------ our own faults */

static bool fix_up(struct ucontext *uc)
{
    for (const struct fixup *x = sd_fixups; x < sd_fixups_end; x++)
        if ((u64)&x->at + (u64)(i64)x->at == uc->reg[UC_RIP]) {
            uc->reg[UC_RIP] = (u64)&x->to + (u64)(i64)x->to;
            return true;
        }
    return false;
}

/* Is the C code that was interrupted the one of entry `level`, with frame f? It runs in that level's slice, or below the frame itself: on the
 * program's sigaltstack, or in a handler that has interrupted us. */
static bool runs_in(const struct sd_tcb *t, u32 level, u64 f, u64 rsp)
{
    u64 top = t->top - (u64)(level - 1) * SD_STACK_SLICE;
    bool below = (f >= t->alt_lo && f < t->alt_hi) || (f >= t->lo && f < t->hi);

    return below ? rsp < f && f - rsp < SD_STACK_SLICE : rsp <= top && rsp > top - SD_STACK_SLICE;
}

#define REACH (1ull << 31) /* a buffer may begin in memory that is there, and end in none */
#define WORDS 8            /* of what an argument points to: a header has 7, of a vector the first entries */

static bool leads_to(u64 pointer, u64 at) { return !sd_bad_ptr((void *)pointer) && at - pointer < REACH; }

/* Has the program named this address, in an argument or in what one of them points to? Numbers are taken for pointers, too, which only ever hides something. What
 * is not canonical has no address here, and was found before. */
static bool is_named(const struct sd_frame *f, const struct siginfo_sys *si)
{
    const u64 arg[] = {f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9};
    u64 word[WORDS], at = si->call_addr; /* si_addr */

    for (u32 i = 0; i < ARRAY_LEN(arg) && !sd_in_library(at); i++) {
        struct iovec to = {(u8 *)word, sizeof word}, from = {(u8 *)arg[i], sizeof word};
        if (leads_to(arg[i], at))
            return true;
        long n = sd_bad_ptr(from.base) ? 0 : SYS6(__NR_process_vm_readv, SYS0(__NR_getpid), &to, 1, &from, 1, 0); /* the signal is blocked here */
        for (long k = 0; k < n / 8; k++)
            if (leads_to(word[k], at))
                return true;
    }
    return false;
}

/* Ends the whole call. */
static bool abandon(struct ucontext *uc, const struct siginfo_sys *si)
{
    struct sd_tcb *t = sd_self();
    u64 *r = uc->reg;
    u32 level = t ? t->level : 0;
    struct sd_frame *f;

    if (level > SD_STACK_LEVELS)
        return false;
    while (level && !runs_in(t, level, (u64)t->frame[level - 1] & ~(u64)SD_FRAME_SHORT, r[UC_RSP]))
        level--; /* a nested one that was left by siglongjmp */
    f = level ? t->frame[level - 1] : NULL;
    if (!f || ((u64)f & SD_FRAME_SHORT) || f->next - (u64)sd_slots >= (u64)SD_SLOTS * SD_SLOT_BYTES)
        return false;
    if (!is_named(f, si)) {
        COUNT(faults_inside);
        g.faulted = 1;
    }
    if (g.trace)
        sd_trace_fault(f, t);
    f->rax = (u64)-EFAULT;
    f->next += SD_SLOT_RET; /* P, as at the entry */
    r[UC_RIP] = (u64)sd_leave_c;
    r[UC_RBX] = (u64)f;
    r[UC_RBP] = (u64)t;
    r[UC_R12] = level - 1;
    r[UC_R13] = f->r13;
    r[UC_R14] = f->r14;
    r[UC_R15] = f->r15;
    return true;
}

/* --------------------------------------------------------------- the signal */

static bool is_inside(const struct ucontext *uc) { return sd_in_library(uc->reg[UC_RIP]); }

/* The program has no handler. A fault comes again when we return; a signal that was sent is sent again. */
static void default_action(u32 sig, const struct siginfo_sys *si)
{
    static const struct ksigaction dfl = {.flags = SA_RESTORER};

    if (si->code <= 0 && program_of(sig)->handler == SIG_IGN)
        return;
    SYS4(__NR_rt_sigaction, sig, &dfl, 0, 8);
    if (si->code <= 0)
        SYS4(__NR_rt_tgsigqueueinfo, SYS0(__NR_getpid), SYS0(__NR_gettid), sig, si);
}

/* From sd_signal_fault: where to go on, with the registers and the stack that the kernel has made. */
u64 sd_fault_route(int sig, const struct siginfo_sys *si, struct ucontext *uc)
{
    struct ksigaction *act = program_of((u32)sig);
    u64 handler = act->handler;

    if (is_inside(uc) && si->code > 0 && (fix_up(uc) || abandon(uc, si))) {
        if (act->flags & SA_RESETHAND && handler > SIG_IGN)
            install((u32)sig); /* the kernel has reset it for a signal that was not the program's */
        return (u64)sd_nothing;
    }
    if (handler > SIG_IGN) {
        if (act->flags & SA_RESETHAND) {
            act->handler = SIG_DFL;
            install((u32)sig);
            store_rlx(&sd_signals[sig], handler); /* for sd_signal_inside */
        }
        return is_inside(uc) || sd_on_own_alt(sd_self(), (u64)uc) ? (u64)sd_signal_inside : handler;
    }
    default_action((u32)sig, si);
    return (u64)sd_nothing;
}
