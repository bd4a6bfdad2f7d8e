/* SPDX-License-Identifier: Apache-2.0
 *
 * loop_inside.h - inside of loop*.c: what changes of the loop's surroundings, which the explorer copies and restores.
 */
#ifndef HOSTED_LOOP_INSIDE_H
#define HOSTED_LOOP_INSIDE_H

#include "verbs/threads.h"
#include "loop.h"

enum { KICK = 100, NEWS, CHANNEL };
enum { WIRE = 8, SLEPT_ON = CALLED_MOST + 1 };
#define START ((u64)0 - 3)

struct arriving {
    u32 pair, number, record, slot, size, index;
};

struct loop_state {
    /* loop_system.c */
    u32 lock, waiting, released; /* 1 + holder; of the condition, by thread */
    u32 event[2];
    u32 sleepers, woken;
    u64 slept_on[SLEPT_ON];
    u32 ended, unmapped; /* loop threads, by bits; the copy is Python's no more */
    /* loop_wire.c: the device, */
    u32 told, armed; /* the completion channel */
    u32 put, taken;
    struct arriving wire[WIRE];
    u32 pair, numbered; /* the queue pair that both ends use, and what has arrived by it */
    /* loop.c, and the other host */
    u32 nudged, heard, news, watches, came;
    u32 sent, seen, bells, rung; /* bytes: arrived over there, read there; doorbells asked for by us, sent by them */
    u64 credit;                  /* what we have said last of our program's reading */
    u8 messages[2 * WIRE * SD_VERBS_MESSAGE];
};

extern struct loop_state l;
extern struct sd_queue queue[2]; /* the second one comes after the first one */

int wire_poll(struct ibv_cq *c, int most, struct ibv_wc *wc);
int wire_post(struct ibv_qp *q, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
void wire_brings(struct arriving a);

void loop_threads_begin(void); /* none has been started */
void loop_thread(u32 n, struct sd_device *d); /* of two */
bool loop_wake_at(u64 at);
bool loop_is_gone(const volatile void *p); /* what Python had mapped there */

#endif
