/* SPDX-License-Identifier: Apache-2.0
 *
 * tcb.c - what a thread of the program has of us: a control block and stacks, found through %gs.
 */
#include "gate/gate.h"
#include "sock/sock.h"

#define PAGE 4096ull
#define STACKS ((u64)SD_OWN_ALT + (u64)SD_STACK_LEVELS * SD_STACK_SLICE)
#define MAPPING (PAGE + STACKS + PAGE) /* guard, stacks, control block */
#define HALF 2048 /* of its page; the other half is the stack's: the short way is on one page then, not on two */

const struct sd_tcb sd_nobody = {.level = 1};

static _Atomic(struct sd_tcb *) tcbs; /* never shortened */

struct sd_tcb *sd_tcbs(void) { return load_acq(&tcbs); }

/* The thread is gone for good, so nobody runs on its stacks. */
static bool is_gone(u32 tid)
{
    return tid == 0 || SYS2(__NR_tkill, tid, 0) == -ESRCH;
}

/* A block whose thread has ended, claimed for `tid`; or NULL. */
static struct sd_tcb *reuse(u32 tid)
{
    for (struct sd_tcb *t = load_acq(&tcbs); t; t = t->next) {
        u32 owner = __atomic_load_n(&t->tid, __ATOMIC_RELAXED);
        bool mine = owner == tid; /* a thread of ours that had this number has ended */
        if (!mine && !(t->exiting && is_gone(owner)))
            continue;
        if (__atomic_compare_exchange_n(&t->tid, &owner, tid, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return t;
    }
    return NULL;
}

static struct sd_tcb *map_new(u32 tid)
{
    long at = SYS6(__NR_mmap, 0, MAPPING, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at < 0 && at > -4096)
        return NULL;
    if (SYS3(__NR_mprotect, at + (long)PAGE, MAPPING - PAGE, PROT_READ | PROT_WRITE) < 0) {
        SYS2(__NR_munmap, at, MAPPING);
        return NULL;
    }
    u64 top = (u64)at + PAGE + STACKS + HALF;
    struct sd_tcb *t = (struct sd_tcb *)top;
    t->top = t->hi = top;
    t->lo = (u64)at + PAGE;
    t->tid = tid;
    t->next = load_rlx(&tcbs);
    while (!atomic_compare_exchange_weak(&tcbs, &t->next, t))
        ;
    return t;
}

/* Runs on the program's stack, which may be a goroutine's: keep it shallow. A signal handler that comes in before gs is set makes a
 * block of its own; the one made here is then left to the thread that has this number next. */
struct sd_tcb *sd_tcb_new(u64 rsp)
{
    (void)rsp;
    u32 tid = (u32)SYS0(__NR_gettid);
    struct sd_tcb *t = reuse(tid);
    if (!t)
        t = map_new(tid);
    if (!t)
        return NULL;
    t->part = NULL; /* of a thread that has ended: whoever runs out of participants finds that */
    t->channel = NULL;
    for (u32 l = 0; l < SD_STACK_LEVELS; l++) {
        store_rlx(&t->use[l], NULL);
        t->owed[l].s = NULL;
    }
    t->marks = t->uses = t->foreign_dups = 0;
    for (u32 i = 0; i < SD_FOREIGN_COUNTED; i++)
        t->foreign_counted[i] = 0;
    t->level = 0;
    t->flags = 0;
    t->rouse = 0;
    t->clone_flags = 0;
    /* A vfork child may vanish without a word (exec, kill): its block is free as soon as its number is. */
    t->foreign = t->exiting = SYS0(__NR_getpid) != (long)g.pid;
    sd_alt_learn(t);
    sd_set_self(t);
    return t;
}

static bool is_in(u64 at, u64 lo, u64 hi) { return at >= lo && at < hi; }

/* Called for an entry that is not the plain one: levels are active, or we are on the program's sigaltstack. Runs on the program's stack
 * (or, in a handler that interrupted us, on ours). */
u64 sd_pick_stack(struct sd_tcb *t, struct sd_frame *f)
{
    u64 here = (u64)f, below = here & ~15ull;
    bool ours = is_in(here, t->lo, t->hi), alt = is_in(here, t->alt_lo, t->alt_hi), small = is_in(here, t->small_lo, t->small_hi);
    u32 level = t->level;
    if (!ours && !alt && !small) {
        /* Back on the program's stack, at or above the frame of an operation: it was left by siglongjmp. The same for an operation
         * whose frame is on a stack that handlers run on: its handler is no more. */
        for (; level; level--) {
            u64 last = level <= SD_STACK_LEVELS ? (u64)t->frame[level - 1] : 0;
            if (last && last > here && !is_in(last, t->lo, t->hi) && !is_in(last, t->alt_lo, t->alt_hi) &&
                !is_in(last, t->small_lo, t->small_hi))
                break;
        }
    }
    if (level < SD_STACK_LEVELS)
        t->frame[level] = f;
    t->level = level + 1;
    if (ours || alt || level >= SD_STACK_LEVELS)
        return below;
    return t->top - (u64)level * SD_STACK_SLICE;
}

/* In the only thread of a forked child. */

void sd_tcbs_after_fork(struct sd_tcb *self)
{
    for (struct sd_tcb *t = load_rlx(&tcbs); t; t = t->next) {
        t->exiting = t != self;
        t->tid = 0;
        t->part = NULL; /* the parent's */
        t->channel = NULL;
        t->marks = 0;
        if (t == self)
            continue;
        t->rouse = 0;
        for (u32 l = 0; l < SD_STACK_LEVELS; l++)
            store_rlx(&t->use[l], NULL);
    }
    self->tid = (u32)SYS0(__NR_gettid);
    self->foreign = 0;
    if (self->rouse % SD_ROUSE_STATES == SD_ROUSE_CALLED)
        self->rouse += SD_ROUSE_HEARD - SD_ROUSE_CALLED; /* the signal goes to our parent */
}

void sd_tcbs_unmap(void)
{
    struct sd_tcb *t = load_rlx(&tcbs), *next;

    store_rlx(&tcbs, NULL);
    sd_set_self(NULL);
    for (; t; t = next) {
        next = t->next;
        /* Where a thread's small sigaltstack is ours as far as the kernel knows, it stays so: there is room for any handler. */
        if (t->own_alt == t->lo)
            SYS2(__NR_munmap, t->lo + SD_OWN_ALT, MAPPING - SD_OWN_ALT - PAGE);
        else
            SYS2(__NR_munmap, t->lo - PAGE, MAPPING);
    }
}
