/* SPDX-License-Identifier: Apache-2.0
 *
 * explore.c - every interleaving of a few threads that run the library's own code, under x86-TSO.
 *
 * Threads are coroutines that stop before each access to a shared word and before each system call. A store goes into the thread's store
 * buffer (first in, first out, loads of the same thread look there first); the explorer decides when each store becomes visible, which
 * thread takes the next step, and when a byte of the TCP connection arrives. A locked instruction or a system call drains the thread's own
 * buffer; membarrier drains everybody's. Bytes in the ring are copied at once: they were stored before the tail that uncovers them,
 * and TSO keeps that order.
 *
 * The state is all memory that a thread can see, plus the live part of each stack; a state that was there before is not explored again
 * (64-bit hashes). So spinning and looking again are finite. What fails: host_fail() anywhere, a state in which nobody can go on
 * (that is a lost wake-up), and the scenario's check at the end.
 *
 * A sleep with a time-out ends when something has changed, or if nobody else can do anything, once: the world does not owe anybody time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include "explore.h"

int madvise(void *, size_t, int); /* its header and the library's own list of such numbers exclude each other */
#define MADV_HUGEPAGE 14

#define STACK_BYTES 16384
#define BUFFER 12
#define MAX_DEPTH 20000
#define TABLE_BITS 25

struct entry {
    volatile void *p;
    u64 v;
    u64 size;
};

enum { RUNS = 1, WAITS, DONE };
enum { ALONE = 2 }; /* the time-out ends only when nobody else can go on */

struct thread {
    u64 sp;
    u32 state, timed, changed, stale, spun, halfway;
    bool (*ready)(long);
    long arg;
    u64 nbuf;
    struct entry buf[BUFFER];
};

struct programs prog;
static struct thread th[THREADS];
extern u8 __start_hosted_state[], __stop_hosted_state[]; /* what ep_*.c and life.c have of their own; hostedbuild.py puts it there */
static u8 stacks[THREADS][STACK_BYTES] __attribute__((aligned(64)));
static const char *at[THREADS]; /* for traces only */
static const volatile void *at_p[THREADS];
static const struct scenario *sc;
static u64 sched_sp;
static u32 cur;
static u64 marks[MARKS], ends;

/* ----------------------------------------------------------------- failing */

enum { RUN_T = 0, FLUSH_T = 16, DELIVER_D = 32, TIMER_T = 48, KILL_T = 64 };

/* What was chosen, and for the trace of a failure what it was about: a name of its own, a word. */
struct label {
    u32 choice;
    const char *at;
    const volatile void *p;
};

struct frame {
    u8 *saved; /* room for `room` bytes, which stays for the next state that lies so deep */
    u32 room, next, count;
    u8 choice[24];
    struct label done;
};
static struct frame path[MAX_DEPTH];
static u32 depth;

static struct { const volatile void *p; const char *name; } names[64];
static u32 nnames;

void mc_name(const volatile void *p, const char *name)
{
    names[nnames].p = p;
    names[nnames++].name = name;
}

static const char *name_of(const volatile void *p)
{
    for (u32 i = 0; i < nnames; i++)
        if (names[i].p == p)
            return names[i].name;
    return "";
}

static void print_step(const struct label *l)
{
    u32 t = l->choice & 15;

    if (l->choice < FLUSH_T)
        printf("  T%u %s %s\n", t, l->at ? l->at : "start", name_of(l->p));
    else if (l->choice >= KILL_T)
        printf("  T%u is killed\n", t);
    else if (l->choice >= TIMER_T)
        printf("  T%u time-out\n", t);
    else if (l->choice >= DELIVER_D)
        printf("  network delivers to side %u\n", !t);
    else
        printf("  T%u's store is visible: %s\n", t, name_of(l->p));
}

void host_fail(const char *why)
{
    printf("FAIL %s: %s\n", sc->name, why);
    for (u32 i = 0; i < depth; i++)
        print_step(&path[i].done);
    fflush(stdout);
    _Exit(1);
}

/* -------------------------------------------------------------- coroutines */

void mc_swap(u64 *save, u64 to);
__asm__(".text\n.globl mc_swap\nmc_swap:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void to_scheduler(void) { mc_swap(&th[cur].sp, sched_sp); }

static void first_step(void)
{
    sc->thread[cur]();
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

/* ------------------------------------------------------------------ memory */

static void changed_by(u32 who)
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

static void flush_one(u32 t)
{
    struct entry e = th[t].buf[0];

    memmove(th[t].buf, th[t].buf + 1, sizeof th[t].buf - sizeof *th[t].buf);
    memset(&th[t].buf[--th[t].nbuf], 0, sizeof *th[t].buf);
    if (peek_word(e.p, e.size) != e.v)
        changed_by(t);
    poke_word(e.p, e.size, e.v);
}

static void drain(u32 t)
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

/* ------------------------------------------------------------------- state */

struct part {
    void *p;
    u64 n;
};

#define MORE_PARTS 8
#define FIXED (7 + 2 * THREADS + MORE_PARTS)
#define PARTS (FIXED + 1 + THREADS)
static struct part fixed[FIXED]; /* of the scenario; behind them what the pool has given and the stacks */
static u32 nfixed;

void mc_part(void *p, u64 bytes)
{
    if (nfixed == FIXED || bytes % 8)
        abort();
    if (bytes)
        fixed[nfixed++] = (struct part){p, bytes};
}

/* Without the second connection. */
static void world_parts(void)
{
    nfixed = 0;
    mc_part(&w, offsetof(struct world, tcb));
    for (u32 i = 0; i < THREADS; i++) { /* but for what was set aside of signal stacks, which nothing here does */
        mc_part(&w.tcb[i], offsetof(struct sd_tcb, asides));
        mc_part(w.tcb[i].owed, sizeof w.tcb[i] - offsetof(struct sd_tcb, owed));
    }
    mc_part(&prog, sizeof prog);
    mc_part(th, sizeof th);
    mc_part((void *)hosted_area.told, sizeof hosted_area.told);
    mc_part(hosted_area.part, (THREADS + 1) * sizeof *hosted_area.part);
    mc_part(__start_hosted_state, (u64)(__stop_hosted_state - __start_hosted_state));
}

static u32 moving_parts(struct part *out)
{
    u32 n = 0;

    out[n++] = (struct part){hosted_pool, w.pool_used};
    for (u32 i = 0; i < THREADS; i++)
        if (sc->thread[i] && th[i].state != DONE)
            out[n++] = (struct part){(void *)th[i].sp, (u64)stacks[i] + STACK_BYTES - th[i].sp};
    return n;
}

static u32 parts_of(struct part *out)
{
    memcpy(out, fixed, nfixed * sizeof *fixed);
    return nfixed + moving_parts(out + nfixed);
}

/* Most of the explorer's time goes here. Where a part ends is part of what it says: stacks differ in length. */
static u64 hash_state(void)
{
    struct part parts[PARTS];
    u64 h = 0;

    for (u32 i = 0, n = parts_of(parts); i < n; i++)
        h = (h ^ XXH3_64bits(parts[i].p, parts[i].n)) * 0x9e3779b97f4a7c15;
    h ^= h >> 29;
    return h ? h : 1;
}

static void save(struct frame *f)
{
    struct part parts[PARTS];
    u32 n = parts_of(parts);
    u32 bytes = 0;
    u8 *to;

    for (u32 i = 0; i < n; i++)
        bytes += (u32)parts[i].n;
    if (bytes > f->room) {
        f->saved = realloc(f->saved, f->room = bytes + 512);
        if (!f->saved)
            abort();
    }
    to = f->saved;
    for (u32 i = 0; i < n; to += parts[i++].n)
        memcpy(to, parts[i].p, parts[i].n);
}

static const u8 *copy_back(const u8 *from, const struct part *parts, u32 n)
{
    for (u32 i = 0; i < n; from += parts[i++].n)
        memcpy(parts[i].p, from, parts[i].n);
    return from;
}

static void restore(const struct frame *f)
{
    const u8 *from = copy_back(f->saved, fixed, nfixed);
    struct part parts[1 + THREADS];

    copy_back(from, parts, moving_parts(parts)); /* of the extents that they have now */
}

static u64 *table, seen;

static bool is_new(void)
{
    u64 h = hash_state(), mask = (1ull << TABLE_BITS) - 1;

    for (u64 i = h;; i++) {
        if (table[i & mask] == h)
            return false;
        if (!table[i & mask]) {
            table[i & mask] = h;
            if (++seen > mask / 2)
                host_fail("more states than this machine can remember");
            return true;
        }
    }
}

/* ------------------------------------------------------------------ search */

static bool can_run(u32 t)
{
    return sc->thread[t] && !prog.killed[t] &&
           (th[t].state == RUNS || (th[t].state == WAITS && ((th[t].ready && th[t].ready(th[t].arg)) || (th[t].timed == 1 && th[t].changed))));
}

static void choices(struct frame *f)
{
    f->count = f->next = 0;
    for (u32 t = 0; t < THREADS; t++) {
        if (can_run(t))
            f->choice[f->count++] = (u8)(RUN_T + t);
        if ((sc->mortal >> t & 1) && !th[t].halfway && !prog.killed[t] && th[t].state != DONE)
            f->choice[f->count++] = (u8)(KILL_T + t);
        if (th[t].nbuf)
            f->choice[f->count++] = (u8)(FLUSH_T + t);
    }
    for (u32 d = 0; d < SIDES; d++) {
        struct stream *st = &w.net.dir[d];
        if (st->arrived < st->written || (st->fin && !st->fin_arrived))
            f->choice[f->count++] = (u8)(DELIVER_D + d);
    }
    if (!f->count || w.now_ns < sc->slow * 1000000000ull)
        for (u32 t = 0; t < THREADS; t++)
            if (sc->thread[t] && !prog.killed[t] && th[t].state == WAITS && th[t].timed && th[t].stale < 8)
                f->choice[f->count++] = (u8)(TIMER_T + t);
}

void (*mc_forget)(void);

static void run(u32 t)
{
    cur = t;
    if (mc_forget)
        mc_forget();
    g.proc->ctr[SD_CTR_calls_kernel] = 0; /* counts that the state has, or locals remember, would make every state new */
    for (u32 side = 0; side < SIDES; side++)
        w.block[side].parks = w.block[side].spins = w.block[side].spins_won = w.block[side].bells_tx = w.block[side].bells_rx = 0;
    sets_forget_counts();
    mc_swap(&sched_sp, th[t].sp);
}

static void step(struct frame *f, u32 choice)
{
    u32 t = choice & 15;

    f->done = (struct label){.choice = choice};
    if (choice < FLUSH_T) {
        f->done = (struct label){choice, at[t], at_p[t]};
        run(t);
    } else if (choice >= KILL_T) {
        drain(t); /* it has been interrupted */
        prog.killed[t] = 1;
        changed_by(t);
    } else if (choice >= TIMER_T) {
        th[t].stale++;
        w.now_ns += 1000000000;
        run(t);
    } else if (choice >= DELIVER_D) {
        net_deliver(t);
        changed_by(THREADS);
    } else {
        f->done.p = th[t].buf[0].p;
        flush_one(t);
    }
}

static bool all_done(void)
{
    for (u32 t = 0; t < THREADS; t++)
        if (sc->thread[t] && th[t].state != DONE && !prog.killed[t] && !(sc->forever >> t & 1))
            return false;
    return true;
}

/* `at` and `at_p` are not part of the state, but follow from where each thread stands: kept beside each frame. */
struct labels {
    const char *at[THREADS];
    const volatile void *p[THREADS];
};
static struct labels labels[MAX_DEPTH];

static void enter(void)
{
    struct frame *f = &path[depth];

    memcpy(labels[depth].at, at, sizeof at);
    memcpy(labels[depth].p, at_p, sizeof at_p);
    choices(f);
    if (!f->count) {
        if (!all_done())
            host_fail("nobody can go on: a lost wake-up");
        ends++;
        sc->check();
    }
    save(f);
    if (++depth == MAX_DEPTH)
        host_fail("too deep");
}

static void search(void)
{
    is_new();
    enter();
    while (depth) {
        struct frame *f = &path[depth - 1];
        if (f->next == f->count) {
            depth--;
            continue;
        }
        restore(f);
        memcpy(at, labels[depth - 1].at, sizeof at);
        memcpy(at_p, labels[depth - 1].p, sizeof at_p);
        step(f, f->choice[f->next++]);
        if (is_new())
            enter();
    }
}

static void start(const struct scenario *which)
{
    sc = which;
    memset(&prog, 0, sizeof prog);
    memset(th, 0, sizeof th);
    memset(marks, 0, sizeof marks);
    if (seen) /* by the scenario before; the first finds it empty */
        memset(table, 0, sizeof *table << TABLE_BITS);
    depth = 0;
    seen = ends = bells_sent = 0;
    nnames = nshares = 0;
    few = false;
    mc_forget = NULL;
    mc_gone = NULL;
    shares_sets = begun = false;
    g.mt = 0;
    g.tsc_per_us = 1;
    cur = 0;
    memset(__start_hosted_state, 0, (u64)(__stop_hosted_state - __start_hosted_state));
    memset(hosted_pool, 0, sizeof hosted_pool);
    world_init(3, 4);
    bells_at_most = 1;
    world_parts();
    sc->setup();
    begun = true;
    for (u32 t = 0; t < THREADS; t++) {
        u64 *sp = (u64 *)(stacks[t] + STACK_BYTES);
        at[t] = NULL;
        at_p[t] = NULL;
        *--sp = 0;
        *--sp = (u64)first_step;
        sp -= 6;
        memset(sp, 0, 48);
        th[t] = (struct thread){.sp = (u64)sp, .state = sc->thread[t] ? RUNS : DONE};
    }
    search();
    printf("ok %s: %llu states, %llu ends, %llu parked, %llu bells, %llu back, %llu again\n", sc->name, (unsigned long long)seen,
           (unsigned long long)ends, (unsigned long long)marks[MARK_PARKED], (unsigned long long)bells_sent,
           (unsigned long long)marks[MARK_BACK], (unsigned long long)marks[MARK_AGAIN]);
    if (!ends) {
        printf("FAIL %s: no execution has come to its end\n", sc->name);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    host_touched();
    table = calloc(1ull << TABLE_BITS, sizeof *table);
    if (!table)
        return 2;
    madvise((void *)(((u64)table + 4095) & ~4095ull), (sizeof *table << TABLE_BITS) - 4096, MADV_HUGEPAGE); /* each look is at another place of it */
    for (const struct scenario *const *t = scenes; *t; t++)
        for (const struct scenario *s = *t; s->name; s++)
            if (argc < 2 || !strcmp(argv[1], s->name)) {
                start(s);
                fflush(stdout);
            }
    return 0;
}
