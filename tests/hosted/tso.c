/* SPDX-License-Identifier: Apache-2.0
 *
 * tso.c - the explorer's machine: threads as coroutines, and x86-TSO.
 *
 * A thread stops before each access to a word that others use, and before each system call. Its stores go into a buffer (first in, first out,
 * its own loads look there first), from which the search makes them visible one by one. A locked instruction or a system call drains the
 * thread's own buffer, membarrier everybody's. Bytes in the ring are copied at once: they were stored before the tail that uncovers them, and
 * TSO keeps that order.
 */
#include <stdlib.h>
#include <string.h>
#include "explore_inside.h"

struct thread th[THREADS];
const char *at[THREADS]; /* for traces only */
const volatile void *at_p[THREADS];
u32 cur;
u64 marks[MARKS];
static u8 stacks[THREADS][STACK_BYTES] __attribute__((aligned(64)));
static u64 sched_sp;

void mc_swap(u64 *save, u64 to);
__asm__(".text\n.globl mc_swap\nmc_swap:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void to_scheduler(void) { mc_swap(&th[cur].sp, sched_sp); }

static void (*body[THREADS])(void);

static void first_step(void)
{
    body[cur]();
    th[cur].state = DONE;
    to_scheduler();
    abort();
}

static bool begun; /* before, while a scenario is set up, there is nobody else */

static void point(const char *what, const volatile void *p)
{
    if (!begun)
        return;
    at[cur] = what;
    at_p[cur] = p;
    to_scheduler();
}

u32 mc_thread(void) { return cur; }
void mc_mark(u32 what) { marks[what]++; }
void mc_got_on(void) { th[cur].spun = 0; }

bool host_dead(u32 tid) { return tid - 100 < THREADS && prog.killed[tid - 100]; }

void changed_by(u32 who)
{
    for (u32 i = 0; i < THREADS; i++)
        if (i != who) {
            th[i].changed = 1;
            th[i].stale = th[i].spun = 0;
        }
}

void host_changed(void) { changed_by(cur); }

static u64 peek_word(const volatile void *p, u64 size)
{
    return size == 8 ? *(const volatile u64 *)p : *(const volatile u32 *)p;
}

static void poke_word(volatile void *p, u64 size, u64 v)
{
    if (size == 8)
        *(volatile u64 *)p = v;
    else
        *(volatile u32 *)p = (u32)v;
}

void flush_one(u32 t)
{
    struct entry e = th[t].buf[0];

    memmove(th[t].buf, th[t].buf + 1, sizeof th[t].buf - sizeof *th[t].buf);
    memset(&th[t].buf[--th[t].nbuf], 0, sizeof *th[t].buf);
    if (peek_word(e.p, e.size) != e.v)
        changed_by(t);
    poke_word(e.p, e.size, e.v);
}

void drain(u32 t)
{
    while (th[t].nbuf)
        flush_one(t);
}

static const volatile void *shares[32];
static u32 nshares;
static bool shares_sets;

void mc_share(const volatile void *p) { shares[nshares++] = p; }
void mc_share_sets(void) { shares_sets = true; }

static bool in_sets(const volatile u8 *b)
{
    return (b >= hosted_pool && b < hosted_pool + HOSTED_POOL) || (b >= __start_hosted_state && b < __stop_hosted_state);
}

static bool few; /* words of the segment change in this scenario: those that are shared by name */

void mc_few(void) { few = true; }

bool (*mc_gone)(const volatile void *p);

/* Words that only one thread ever touches need no interleaving. */
static bool shared(const volatile void *p)
{
    const volatile u8 *b = p;

    if (!begun)
        return false;
    if (mc_gone && mc_gone(p))
        host_fail("memory is touched that is gone");
    if (shares_sets && in_sets(b))
        return true;
    if (!few && b >= (u8 *)&w.seg && b < (u8 *)(&w.seg + 1))
        return true;
    if (b >= (u8 *)prog.word && b < (u8 *)(prog.word + ARRAY_LEN(prog.word)))
        return true;
    for (u32 i = 0; i < nshares; i++)
        if (shares[i] == p)
            return true;
    return false;
}

u64 mc_load(const volatile void *p, u32 size)
{
    struct thread *t;

    if (!shared(p))
        return peek_word(p, size);
    point("load", p);
    t = &th[cur];
    for (u64 i = t->nbuf; i-- > 0;)
        if (t->buf[i].p == p)
            return t->buf[i].v;
    return peek_word(p, size);
}

void mc_store(volatile void *p, u32 size, u64 v)
{
    struct thread *t = &th[cur];

    if (!shared(p)) {
        poke_word(p, size, v);
        return;
    }
    while (t->nbuf == BUFFER) {
        point("buffer full", p);
        if (t->nbuf == BUFFER)
            flush_one(cur);
    }
    t->buf[t->nbuf++] = (struct entry){p, v, size};
}

u64 mc_rmw(volatile void *p, u32 size, enum mc_op op, u64 v)
{
    u64 old;

    if (shared(p))
        point("locked", p);
    drain(cur); /* also where the word is of no interest to others */
    old = peek_word(p, size);
    poke_word(p, size, op == MC_ADD ? old + v : op == MC_SUB ? old - v : op == MC_OR ? old | v : op == MC_AND ? old & v : v);
    if (shared(p) && peek_word(p, size) != old)
        host_changed();
    return old;
}

bool mc_cmpxchg(volatile void *p, u32 size, u64 *want, u64 val)
{
    u64 old;

    if (shared(p))
        point("cas", p);
    drain(cur);
    old = peek_word(p, size);
    if (old != *want) {
        *want = old;
        return false;
    }
    poke_word(p, size, val);
    if (shared(p))
        host_changed();
    return true;
}

/* Without the lock prefix: other CPUs may come in between its load and its store. But it is one instruction: an interrupt, and so a
 * membarrier, comes before or after it. */
bool mc_cas_local(_Atomic u64 *p, u64 want, u64 val)
{
    u64 old = mc_load(p, 8);

    if (shared(p)) {
        th[cur].halfway = 1;
        point("cmpxchg", p);
        th[cur].halfway = 0;
    }
    /* It writes in any case (SDM, CMPXCHG: "the destination operand receives a write cycle without regard to the result"). */
    mc_store(p, 8, old == want ? val : old);
    return old == want;
}

void mc_fence(void)
{
    point("fence", NULL);
    drain(cur);
}

void mc_bytes(void *dst, const void *src, u64 n) { memcpy(dst, src, n); }

void host_point(const char *what)
{
    point(what, NULL);
    drain(cur);
}

static bool others_halfway(void)
{
    for (u32 i = 0; i < THREADS; i++)
        if (i != cur && th[i].halfway)
            return true;
    return false;
}

void host_membarrier(void)
{
    do
        point("membarrier", NULL);
    while (others_halfway());
    for (u32 i = 0; i < THREADS; i++)
        drain(i);
}

void host_wait(bool (*ready)(long), long arg, bool timed)
{
    struct thread *t = &th[cur];

    drain(cur);
    if (ready && ready(arg) && !prog.in_vain && t->spun++ > 1)
        host_fail("a lost wake-up: somebody looks again and again, and nothing changes");
    marks[timed ? MARK_TIMED : MARK_PARKED]++;
    *t = (struct thread){.state = WAITS, .timed = timed, .ready = ready, .arg = arg, .stale = t->stale, .spun = t->spun};
    point("sleep", NULL);
    t->state = RUNS;
}

void host_sleep(bool (*ready)(long), long arg, bool timed)
{
    struct thread *t = &th[cur];

    drain(cur);
    if (ready(arg))
        return;
    marks[timed ? MARK_TIMED : MARK_PARKED]++;
    *t = (struct thread){.state = WAITS, .timed = timed ? ALONE : 0, .ready = ready, .arg = arg, .stale = t->stale};
    point("sleep", NULL);
    t->state = RUNS;
}

void mc_relax(void) { host_wait(NULL, 0, true); }

struct sd_tcb *sd_self(void) { return &w.tcb[cur]; }

void run_thread(u32 t)
{
    cur = t;
    mc_swap(&sched_sp, th[t].sp);
}

u64 stack_left(u32 t) { return (u64)stacks[t] + STACK_BYTES - th[t].sp; }

/* Before a scenario is set up, */
void machine_clear(void)
{
    memset(th, 0, sizeof th);
    memset(marks, 0, sizeof marks);
    nshares = 0;
    few = shares_sets = begun = false;
    mc_gone = NULL;
    cur = 0;
}

/* and then. */
void machine_start(const struct scenario *which)
{
    begun = true;
    for (u32 t = 0; t < THREADS; t++) {
        u64 *sp = (u64 *)(stacks[t] + STACK_BYTES);
        body[t] = which->thread[t];
        at[t] = NULL;
        at_p[t] = NULL;
        *--sp = 0;
        *--sp = (u64)first_step;
        sp -= 6;
        memset(sp, 0, 48);
        th[t] = (struct thread){.sp = (u64)sp, .state = body[t] ? RUNS : DONE};
    }
}
