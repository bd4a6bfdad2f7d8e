/* SPDX-License-Identifier: Apache-2.0
 *
 * signal.c - SIGSYS is ours. The program keeps believing that it is its own.
 *
 * A call that traps while SIGSYS is blocked kills the process, so it is never blocked: every set that the program gives to the kernel
 * loses it, and what the program reads back has it again. The program's action for SIGSYS is remembered and runs for a SIGSYS that is
 * not our trap (kill(2), a seccomp filter of its own).
 */
#include "base/user.h"
#include "gate/calls.h"
#include "gate/gate.h"
#include "gate/int80.h"

#define SIGSYS_BIT SIGBIT(SIGSYS)
#define SIG_DFL 0ull
#define SIG_IGN 1ull
#define AUDIT_ARCH_X86_64 0xc000003eu
#define SYS_SECCOMP 1
#define FIXED_SLOTS 256u /* kept for sites that cannot be emulated from inside of a signal handler */
#define PROBES 512u
#define NEAR 256u
#define NEAR_PROBES 16u

static struct ksigaction program_sigsys; /* what the program has asked for */
static _Atomic u64 masks_with_sigsys;    /* SIGBIT(n): the program's sa_mask of signal n has SIGSYS */
static _Atomic u64 flags_of[NSIG + 1];   /* as the program has set them */
_Atomic u64 sd_restarting;
static _Atomic u32 slots_used;

u64 sd_strip_sigsys(const void *user_set, u64 size, u64 *out)
{
    if (size != 8 || !sd_plausible(user_set))
        return 0;
    u64 set = *(const u64 *)user_set;
    *out = set & ~SIGSYS_BIT;
    return set != *out;
}

/* ------------------------------------------------------------ our handler */

static long set_mask(u64 mask)
{
    mask &= ~SIGSYS_BIT;
    return SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
}

/* The slot of a site, made if it is new; -1 if there is no room. An open hash table without deletion, so no lock. First in NEAR slots, of which few
 * pages are code and table: a forked child pays for each page that it traps by. */
i32 sd_slot_of(u64 ret, bool must)
{
    u32 hash = (u32)((ret * 0x9e3779b97f4a7c15ull) >> 52), at = hash % NEAR;
    _Static_assert(SD_SLOTS == 1 << 12, "the shift above");
    for (u32 i = 0; i < NEAR_PROBES + PROBES; i++, at = (at + 1) % SD_SLOTS) {
        if (i == NEAR_PROBES)
            at = hash;
        u64 seen = load_acq(&sd_slot_ret[at]);
        if (!seen) {
            if (!must && load_rlx(&slots_used) >= SD_SLOTS - FIXED_SLOTS)
                return -1;
            if (atomic_compare_exchange_strong(&sd_slot_ret[at], &seen, ret)) {
                atomic_fetch_add_explicit(&slots_used, 1, memory_order_relaxed);
                return (i32)at;
            }
        }
        if (seen == ret)
            return (i32)at;
    }
    return -1;
}

/* Calls that only work with the program's own registers and stack. */
static bool needs_slot(u32 nr)
{
    return nr == __NR_rt_sigreturn || nr == __NR_clone || nr == __NR_clone3 || nr == __NR_fork || nr == __NR_vfork || nr == __NR_exit ||
           nr == __NR_sigaltstack || nr == __NR_restart_syscall;
}

/* A call is made from here, with the program's mask so that it can be interrupted. */
static long make(struct ucontext *uc, struct sd_frame *f)
{
    struct sd_tcb *t = sd_self();
    u8 class = sd_class[f->rax & 0xffff];
    long answer = SD_PASS;
    if (!t)
        t = sd_tcb_new((u64)f);
    set_mask(uc->sigmask);
    if (t && class) { /* a level of its own: marks of what we have interrupted stay */
        u32 level = t->level;
        if (level < SD_STACK_LEVELS)
            t->frame[level] = f;
        t->level = level + 1;
        answer = g.trace ? sd_call_traced(f, t) : sd_call_handler(f, t);
        t->level = level;
    }
    return answer != SD_PASS ? answer : SYS6(f->rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);
}

/* The kernel puts the mask of the frame back when we return, so a call that changes the mask changes it there. */
static long change_mask(struct ucontext *uc, const struct sd_frame *f)
{
    u64 old = uc->sigmask, set = 0;
    u32 how = (u32)f->rdi;
    if (f->r10 != 8 || (f->rsi && how > SIG_SETMASK))
        return -EINVAL;
    if ((f->rsi && sd_copy_user(&set, (const void *)f->rsi, 8)) || (f->rdx && sd_copy_user((void *)f->rdx, &old, 8)))
        return -EFAULT;
    set &= ~SIGSYS_BIT;
    if (f->rsi)
        uc->sigmask = how == SIG_BLOCK ? old | set : how == SIG_UNBLOCK ? old & ~set : set;
    return 0;
}

/* int $0x80 in a 64-bit program: most go to the kernel as they are, from the gate; what concerns us is made as the call that it means (int80.c). */
static NOINLINE void int80(struct ucontext *uc)
{
    struct sd_int80 c;
    set_mask(uc->sigmask); /* also for faults in what its pointers lead to */
    long r = sd_int80_means(uc, &c);
    if (r == SD_INT80_RETURNED)
        return;
    if (r == SD_INT80_ANEW) {
        uc->reg[UC_RIP] -= 2;
        return;
    }
    if (r == SD_INT80_AS_IT_IS)
        r = sd_int80(uc->reg);
    else if (r == SD_INT80_DONE)
        r = (long)c.f.rax;
    else if (r == SD_INT80_CHILD)
        r = sd_int80_over(&c, sd_int80_start(&c, uc));
    else if (r == 0 && (u32)c.f.rax == __NR_rt_sigprocmask)
        r = sd_int80_over(&c, change_mask(uc, &c.f));
    else if (r == 0)
        r = sd_int80_over(&c, make(uc, &c.f));
    uc->reg[UC_RAX] = (u64)r;
}

/* Out of slots (thousands of generated sites). */
static NOINLINE void emulate(struct ucontext *uc)
{
    u64 *r = uc->reg;
    struct sd_frame f = { .rax = r[UC_RAX], .rdi = r[UC_RDI], .rsi = r[UC_RSI], .rdx = r[UC_RDX], .r10 = r[UC_R10], .r8 = r[UC_R8],
                          .r9 = r[UC_R9], .rbx = r[UC_RBX], .rbp = r[UC_RBP], .r12 = r[UC_R12], .flags = r[UC_EFLAGS] };
    r[UC_RAX] = (u64)((u32)f.rax == __NR_rt_sigprocmask ? change_mask(uc, &f) : make(uc, &f));
}

/* A SIGSYS that is none of ours. All signals are blocked here. */
static NOINLINE void hand_on(struct siginfo_sys *si, struct ucontext *uc)
{
    u64 rip = uc->reg[UC_RIP], slots = (u64)sd_slots;
    if (unlikely(sd_strict) && si->code == SYS_SECCOMP)
        sd_strict_trap(si, uc);
    if (rip - slots < (u64)SD_SLOTS * SD_SLOT_BYTES) {
        /* The program's filter has answered a call made at a slot: its handler expects its own call site. */
        u64 ret = load_rlx(&sd_slot_ret[(rip - slots) / SD_SLOT_BYTES]);
        uc->reg[UC_RIP] = uc->reg[UC_RCX] = ret;
        si->call_addr = ret;
    }
    struct ksigaction act = program_sigsys;
    if (act.handler == SIG_IGN && si->code <= 0)
        return;
    if (act.handler <= SIG_IGN) {
        static const struct ksigaction dfl = { .flags = SA_RESTORER, .restorer = 0 };
        SYS4(__NR_rt_sigaction, SIGSYS, &dfl, 0, 8);
        SYS3(__NR_tgkill, SYS0(__NR_getpid), SYS0(__NR_gettid), SIGSYS); /* delivered when this handler returns */
        return;
    }
    set_mask(uc->sigmask | act.mask);
    ((void (*)(int, struct siginfo_sys *, struct ucontext *))act.handler)(SIGSYS, si, uc);
    uc->sigmask &= ~SIGSYS_BIT;
}

void sd_sigsys(int sig, struct siginfo_sys *si, struct ucontext *uc)
{
    (void)sig;
    u64 ret = uc->reg[UC_RIP];
    if (si->code != SYS_USER_DISPATCH || si->call_addr != ret) {
        if (!sd_roused(si, uc))
            hand_on(si, uc);
        return;
    }
    if (ret == (u64)sd_signal_returned) {
        uc->reg[UC_RSP] = sd_shown_end((struct ucontext *)uc->reg[UC_RSP]);
        uc->reg[UC_RIP] = (u64)sd_restorer;
        return;
    }
    if (ret == (u64)sd_trap_done) {
        sd_trapped(uc);
        return;
    }
    COUNT(traps);
    struct sd_tcb *t = sd_self();
    if (unlikely(t && __atomic_load_n(&t->alt_shared, __ATOMIC_RELAXED)))
        sd_alt_part(uc, t);
    if (si->arch != AUDIT_ARCH_X86_64) {
        int80(uc);
        return;
    }
    u32 nr = (u32)uc->reg[UC_RAX];
    if (nr == __NR_restart_syscall) {
        /* A sleep that the injection has interrupted goes on. Now: rt_sigreturn makes the kernel forget what was to be restarted. */
        set_mask(uc->sigmask);
        uc->reg[UC_RAX] = (u64)SYS0(__NR_restart_syscall);
        return;
    }
    i32 slot = sd_slot_of(ret, needs_slot(nr));
    if (unlikely(slot < 0)) {
        if (needs_slot(nr))
            uc->reg[UC_RAX] = (u64)-EAGAIN;
        else
            emulate(uc);
        return;
    }
    sd_patch_site((u32)slot, ret, nr);
    uc->reg[UC_RIP] = (u64)sd_slots + (u64)SD_SLOT_BYTES * (u32)slot;
}

long sd_install_sigsys(void)
{
    struct ksigaction act = { .handler = (u64)sd_sigsys, .flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER,
                              .restorer = (u64)sd_restorer, .mask = ~0ull };
    return SYS4(__NR_rt_sigaction, SIGSYS, &act, 0, 8);
}

/* What the kernel is told of an action of the program's, and the other way round. What the program set is in `flags_of` and sd_signals. */
static void to_kernel(u32 sig, struct ksigaction *act)
{
    if (act->handler > SIG_IGN && (act->flags & SA_RESTART))
        atomic_fetch_or(&sd_restarting, SIGBIT(sig));
    else
        atomic_fetch_and(&sd_restarting, ~SIGBIT(sig));
    if (act->handler > SIG_IGN) {
        store_rlx(&flags_of[sig], act->flags);
        store_rlx(&sd_signals[sig], act->handler);
        act->handler = (u64)sd_signal;
        act->flags |= SA_SIGINFO;
    }
    if (act->mask & SIGSYS_BIT)
        atomic_fetch_or(&masks_with_sigsys, SIGBIT(sig));
    else
        atomic_fetch_and(&masks_with_sigsys, ~SIGBIT(sig));
    act->mask &= ~SIGSYS_BIT;
}

static void from_kernel(struct ksigaction *act, u64 handler, u64 flags, bool masked)
{
    if (act->handler == (u64)sd_signal) {
        act->handler = handler;
        act->flags = flags;
    }
    if (masked)
        act->mask |= SIGSYS_BIT;
}

/* Handlers that exist already may block everything (Go's do): SIGSYS leaves their masks. */
long sd_adopt_handlers(void)
{
    for (u32 sig = 1; sig <= NSIG; sig++) {
        struct ksigaction act;
        if (sig == SIGKILL || sig == SIGSTOP)
            continue;
        long r = SYS4(__NR_rt_sigaction, sig, 0, &act, 8);
        if (r < 0)
            return r;
        if (sd_in_library(act.handler))
            act = (struct ksigaction){.handler = SIG_DFL}; /* of an injection at birth that was cut off by its supervisor's death */
        if (sig == SIGSYS) {
            program_sigsys = act;
        } else if (sd_is_fault(sig)) {
            r = sd_fault_adopt(sig, &act);
            if (r < 0)
                return r;
        } else if (act.handler > SIG_IGN || (act.mask & SIGSYS_BIT)) {
            to_kernel(sig, &act);
            r = SYS4(__NR_rt_sigaction, sig, &act, 0, 8);
            if (r < 0)
                return r;
        }
    }
    return sd_install_sigsys();
}

void sd_actions_own(void)
{
    for (u32 sig = 1; sig <= NSIG; sig++) {
        struct ksigaction act;
        if (sig == SIGKILL || sig == SIGSTOP || SYS4(__NR_rt_sigaction, sig, 0, &act, 8) < 0)
            continue;
        if (sig == SIGSYS)
            act = program_sigsys;
        else if (act.handler == (u64)sd_signal || (load_rlx(&masks_with_sigsys) & SIGBIT(sig)))
            from_kernel(&act, load_rlx(&sd_signals[sig]), load_rlx(&flags_of[sig]), load_rlx(&masks_with_sigsys) & SIGBIT(sig));
        else
            continue;
        SYS4(__NR_rt_sigaction, sig, &act, 0, 8);
    }
    sd_faults_own(false);
}

/* ------------------------------------------------------ the program's calls */

static long change_action(struct sd_frame *f, const struct sd_tcb *t)
{
    u64 sig = f->rdi & 0xffffffff;
    const struct ksigaction *act = (void *)f->rsi;
    struct ksigaction *old = (void *)f->rdx, copy;
    if (f->r10 != 8 || sig - 1 >= NSIG || (act && !sd_plausible(act)) || (old && !sd_plausible(old)))
        return SD_PASS;
    if (sig == SIGSYS) {
        copy = program_sigsys;
        if (act && !t->foreign)
            program_sigsys = *act;
        if (old)
            *old = copy;
        return 0;
    }
    if (sd_is_fault((u32)sig))
        return g.boxed ? SD_PASS : sd_fault_action((u32)sig, act, old, t->foreign);
    u64 handler = load_rlx(&sd_signals[sig]), flags = load_rlx(&flags_of[sig]);
    bool masked = load_rlx(&masks_with_sigsys) & SIGBIT(sig);
    struct ksigaction was;
    if (act) {
        copy = *act;
        if (t->foreign)
            copy.mask &= ~SIGSYS_BIT; /* a vfork child has handlers of its own */
        else
            to_kernel((u32)sig, &copy); /* first: the signal may come at once */
    }
    long r = SYS4(__NR_rt_sigaction, sig, act ? &copy : NULL, old ? &was : NULL, 8);
    if (r < 0) {
        if (act && !t->foreign) { /* SIGKILL, SIGSTOP */
            store_rlx(&sd_signals[sig], handler);
            store_rlx(&flags_of[sig], flags);
        }
        return r;
    }
    if (old) {
        from_kernel(&was, handler, flags, masked);
        *old = was;
    }
    return r;
}

SD_CALL(sd_rt_sigaction)
{
    long r = change_action(f, t);
    if (r == 0 && f->rdx)
        sd_int80_handler_told((u32)f->rdi, (void *)f->rdx);
    return r;
}

SD_CALL(sd_rt_sigprocmask)
{
    const u64 *set = (void *)f->rsi;
    u64 *old = (void *)f->rdx, copy, after, now;
    bool blocked = t->flags & SD_TCB_SIGSYS_BLOCKED;
    if (f->r10 != 8 || (set && !sd_plausible(set)) || (old && !sd_plausible(old)))
        return SD_PASS;
    bool named = set && sd_strip_sigsys(set, 8, &copy);
    if (!named && !blocked)
        return SD_PASS;
    u32 how = (u32)f->rdi;
    if (set && !named)
        copy = *set; /* `old` may be the same memory */
    if (set && how <= SIG_SETMASK) {
        /* Before the call: a signal that it lets in may leave by siglongjmp. */
        if (how == SIG_SETMASK ? !named : how == SIG_UNBLOCK && named)
            t->flags &= ~SD_TCB_SIGSYS_BLOCKED;
        else if (named && how != SIG_UNBLOCK)
            t->flags |= SD_TCB_SIGSYS_BLOCKED;
        after = copy;
        if (sd_raise_lets_in(how, &after, &now)) {
            if (old)
                *old = now | (blocked ? SIGSYS_BIT : 0);
            return sd_trap(f->rax, after, 0, 0, f, t);
        }
    }
    long r = SYS4(__NR_rt_sigprocmask, how, set ? &copy : NULL, old, 8);
    if (r == 0 && old && blocked)
        *old |= SIGSYS_BIT;
    return r;
}

SD_CALL(sd_rt_sigsuspend)
{
    (void)t;
    u64 copy;
    if (!sd_strip_sigsys((void *)f->rdi, f->rsi, &copy))
        return SD_PASS;
    return SYS2(__NR_rt_sigsuspend, &copy, 8);
}
