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
    u64 posted, done, writes, sends, received, bells;
    bool live;
};

struct sd_device {
    struct ibv_context *context;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct sd_queue *queues;
    u64 looks;
    u32 port, most; /* requests in a queue pair */
};

int sd_queue_receive(struct sd_queue *q, u32 index);

#endif
