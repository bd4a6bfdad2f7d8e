/* SPDX-License-Identifier: Apache-2.0
 *
 * explore.h - what a scenario is made of (scenes_*.c) and what runs it (explore.c).
 */
#ifndef HOSTED_EXPLORE_H
#define HOSTED_EXPLORE_H

#include "kernel.h"

#define THREADS HOSTED_THREADS

struct scenario {
    const char *name;
    void (*setup)(void);
    void (*thread[THREADS])(void);
    void (*check)(void); /* at the end of every execution */
    u32 mortal;          /* bits of threads that may be killed at any moment */
    u32 forever;         /* bits of threads that never end: asleep at the end */
    u32 slow;            /* so many seconds may pass at any moment, as if threads were stopped: time-outs of others end */
};

/* The programs' own memory; part of the state that is copied and restored. */
struct programs {
    u8 got[SIDES][32];
    u32 ngot[SIDES];
    u32 eof[SIDES];
    u32 killed[THREADS];           /* this thread runs no further: its process is dead */
    u32 in_vain;                   /* somebody may look again and again, until another thread goes on */
    u32 all_switched;              /* from the start; then only those that sleep are armed */
    _Atomic u64 word[4];           /* shared words of scenarios that need no connection */
    u64 plain[2];                  /* what such words protect: torn if two are in there at once */
};

extern struct programs prog;
void host_touched(void); /* touched.c */
extern const struct scenario *const scenes[]; /* tables, each up to one without a name */

void mc_name(const volatile void *p, const char *name); /* for traces */
void mc_share(const volatile void *p);                   /* threads of one process meet at this word, too */
void mc_share_sets(void);                               /* and at everything that epoll keeps of its sets */
extern void (*mc_forget)(void);                          /* of a scenario: sets counts to 0 that nothing depends on, before each step */
extern bool (*mc_gone)(const volatile void *p);         /* of a scenario: this thread may not touch it any more */
void mc_few(void);                                       /* others than these words do not change, though they are in the segment */
void mc_part(void *p, u64 bytes);                       /* memory of the scenario that belongs to the state, too; multiples of 8 */
void mc_mark(u32 what);                                 /* this execution has been here: the report counts it */
u32 mc_thread(void);
void mc_got_on(void);                                   /* this thread's program: who looks again does not do so in vain */
enum { MARK_PARKED, MARK_BACK, MARK_TIMED, MARK_AGAIN, MARKS };

#endif
