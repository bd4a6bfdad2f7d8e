/* SPDX-License-Identifier: Apache-2.0
 *
 * explore_inside.h - inside of the explorer: its machine (tso.c), its memory of states (states.c), its search (explore.c).
 */
#ifndef HOSTED_EXPLORE_INSIDE_H
#define HOSTED_EXPLORE_INSIDE_H

#include "explore.h"

#define STACK_BYTES 16384
#define BUFFER 12

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

/* What was chosen, and for the trace of a failure what it was about: a name of its own, a word. */
struct label {
    u32 choice;
    const char *at;
    const volatile void *p;
};

/* A state on the way to the one that is looked at. */
struct frame {
    u8 *saved; /* room for `room` bytes, which stays for the next state that lies so deep */
    u32 room, next, count;
    u8 choice[24];
    struct label done;
};

extern u8 __start_hosted_state[], __stop_hosted_state[]; /* what ep_*.c and life.c have of their own; hostedbuild.py puts it there */

/* tso.c */
extern struct thread th[THREADS];
extern u32 cur;                        /* who runs */
extern const char *at[THREADS];        /* where each stands, for traces: not part of the state, but it follows from that */
extern const volatile void *at_p[THREADS];
extern u64 marks[MARKS];
void machine_clear(void);
void machine_start(const struct scenario *which);
void run_thread(u32 t);                /* up to where it stops next */
u64 stack_left(u32 t);                 /* bytes of the live part */
void flush_one(u32 t);                 /* its oldest store becomes visible */
void drain(u32 t);
void changed_by(u32 who);              /* the others may have something to look at */

/* states.c */
extern u64 states_seen;
void states_clear(void);
bool is_new(void);                     /* this state; from now on it is not */
void save(struct frame *f);
void restore(const struct frame *f);

#endif
