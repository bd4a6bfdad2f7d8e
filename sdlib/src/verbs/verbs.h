/* SPDX-License-Identifier: Apache-2.0
 *
 * verbs.h - inside of src/verbs: devices and queue pairs.
 */
#ifndef SD_VERBS_INSIDE_H
#define SD_VERBS_INSIDE_H

#include <infiniband/verbs.h>
#include "ring/bell.h"
#include "ring/switch.h"
#include "sd_py.h"

#define SIGNAL_EVERY 16
#define RECEIVE (1ull << 62) /* in a wr_id */

struct sd_queue {
    struct sd_device *device;
    struct sd_queue *next;
    struct ibv_pd *pd;
    struct ibv_qp *qp;
    struct ibv_mr *pool;
    u8 *messages;               /* `depth` to receive into, then `depth` to send from */
    struct sd_mirrored **carried; /* by slot, ascending */
    struct sd_mirrored **watched; /* those of them, in any order */
    u32 count, size, watching;
    u32 depth, inline_bytes;
    u64 posted, done, writes, sends, received, bells, rings, credits, strays;
    bool live, behind;
};

struct sd_device {
    struct ibv_context *context;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct sd_queue *queues;
    struct sd_threads *threads;
    u64 looks, turns, moved;
    u32 port, pkey_index, most; /* requests in a queue pair */
    u32 entries; /* of the completion queue that no queue pair may fill yet */
    u32 untold;     /* events that Python has not handled yet: what comes behind them, it has to handle as well */
};

static inline struct sd_dir *sd_out_of(const struct sd_mirrored *m) { return &((struct sd_seg *)m->copy)->dir[m->side & 1]; }
static inline struct sd_dir *sd_into(const struct sd_mirrored *m) { return &((struct sd_seg *)m->copy)->dir[!(m->side & 1)]; }

#define SPARE 4 /* requests left for records */
#ifndef BATCH
#define BATCH 32
#endif

int sd_queue_receive(struct sd_queue *q, u32 index);
int sd_queue_post(struct sd_queue *q, struct ibv_send_wr *wr, u32 slot, u32 size);
struct sd_mirrored *sd_queue_find(const struct sd_queue *q, u32 slot);
void sd_queue_unwatch(struct sd_queue *q, struct sd_mirrored *m);
void sd_queue_leave(struct sd_queue *q); /* its memory may go: the loop knows it no more, nor carries anything by it */
int sd_turn(struct sd_device *d, struct sd_loop_event *events, u32 most, bool *busy); /* once */

/* say.c. False: Python has to do it. */
bool sd_say_sleeps(struct sd_queue *q, struct sd_mirrored *m);
bool sd_say_credit(struct sd_queue *q, struct sd_mirrored *m);
bool sd_heard_credit(struct sd_queue *q, const u8 *body, u32 size);
bool sd_heard_bell(struct sd_queue *q, const u8 *body, u32 size);

/* threads.c, called.c */
u64 sd_verbs_now(void);
int sd_threads_told(struct sd_device *d, struct sd_loop_event *events, u32 most);
void sd_threads_changed(struct sd_device *d);
void sd_threads_uncall(struct sd_mirrored *m);

#endif
