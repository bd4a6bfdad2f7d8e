/* SPDX-License-Identifier: Apache-2.0
 *
 * loop.h - what scenarios of the monitor's loop (loop_scenes.c) are made of: the threads of sdlib/src/verbs, on a kernel and a device in memory.
 *
 * Side 0 is the program, with its connection to another host; its copy is w.seg. Thread 0 is the program, 1 the loop's device thread, 2 the one that
 * sleeps on the programs' bell words, 3 Python, 4 the other host. All but the first go on for ever: asleep, at the end.
 */
#ifndef HOSTED_LOOP_H
#define HOSTED_LOOP_H

#include "scene.h"

#define LOOP_FOREVER 0x1eu

enum { LOOP_SENDS = 1, LOOP_WAITS = 2, LOOP_RECEIVES = 4 }; /* what its program does: waits for room */
void loop_begin(bool caller, u32 words); /* one connection, on the ring; `caller` false: no futex_waitv */
void loop_second(void); /* another one, which moves nothing by itself */
void loop_watch(u32 i);
void loop_unwatch(void); /* the first */
void loop_device(void);
void loop_caller(void);
void loop_python(void);
/* Python, to which something happens at any moment; the first one goes on as loop_python(), the others end. */
void loop_link_breaks(void);
void loop_connection_ends(void);
void loop_host_is_forgotten(void); /* the link is closed, and there is no other: the connection's memory goes, too */
void loop_ends(void);              /* the loop's threads are joined */
/* The other host: reads what arrives, says so, has doorbells rung that it is asked for; and sends what a scenario has it send. */
void loop_far(void);

struct loop_script {
    u32 bytes[4];  /* pieces for the program, as they are written into its ring */
    u32 records;   /* that only Python understands */
    u32 second;    /* bytes for the second connection */
    bool silent;   /* reads nothing, so nothing is credited */
    bool lost;     /* what was under way when the link breaks has not arrived */
};
extern const struct scenario scenes_loop_ends[];
extern struct loop_script loop_script;
extern u32 loop_watches; /* Python has the first one watched so often, though nobody has said anything */

u32 loop_sent(void);     /* bytes that have gone to the other host */
u32 loop_heard(void);    /* records that Python has got */
u32 loop_news(void);     /* so often it was told of news by the queue pair that is used */
bool loop_nudged(void);  /* its supervisor was asked to tell Python of news */
void loop_settled(void); /* what holds when nothing moves any more, */
void loop_over(void);    /* and when nobody carries anything any more */

#endif
