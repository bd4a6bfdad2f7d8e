/* SPDX-License-Identifier: Apache-2.0
 *
 * explore.c - every interleaving of a few threads that run the library's own code, under x86-TSO.
 *
 * The explorer decides which thread takes the next step, when each store becomes visible (tso.c), when a byte of the TCP connection arrives,
 * and when a sleep with a time-out ends; from each state that was not there before (states.c) it tries all that may happen next. What fails:
 * host_fail() anywhere, a state in which nobody can go on (that is a lost wake-up), and the scenario's check at the end.
 *
 * A sleep with a time-out ends when something has changed, or if nobody else can do anything, once: the world does not owe anybody time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "explore_inside.h"

#define MAX_DEPTH 20000

struct programs prog;
static const struct scenario *sc;
static u64 ends;

/* ----------------------------------------------------------------- failing */

enum { RUN_T = 0, FLUSH_T = 16, DELIVER_D = 32, TIMER_T = 48, KILL_T = 64 };

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
    if (mc_forget)
        mc_forget();
    g.proc->ctr[SD_CTR_calls_kernel] = 0; /* counts that the state has, or locals remember, would make every state new */
    for (u32 side = 0; side < SIDES; side++)
        w.block[side].parks = w.block[side].spins = w.block[side].spins_won = w.block[side].bells_tx = w.block[side].bells_rx = 0;
    sets_forget_counts();
    run_thread(t);
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
    machine_clear();
    states_clear();
    depth = nnames = 0;
    ends = bells_sent = 0;
    mc_forget = NULL;
    g.mt = 0;
    g.tsc_per_us = 1;
    world_init(3, 4);
    bells_at_most = 1;
    sc->setup();
    machine_start(sc);
    search();
    printf("ok %s: %llu states, %llu ends, %llu parked, %llu bells, %llu back, %llu again\n", sc->name, (unsigned long long)states_seen,
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
    for (const struct scenario *const *t = scenes; *t; t++)
        for (const struct scenario *s = *t; s->name; s++)
            if (argc < 2 || !strcmp(argv[1], s->name)) {
                start(s);
                fflush(stdout);
            }
    return 0;
}
