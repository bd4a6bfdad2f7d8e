/* SPDX-License-Identifier: Apache-2.0
 *
 * loop.c - bytes between copies and queue pairs (sd_verbs.h): what monitor/hosts/mirror.py and verbs.py do for one connection after the other in Python.
 *
 * Requests that may be under way are bounded (`depth`); every SIGNAL_EVERYth, and each that fills half of what bytes may fill, has a completion,
 * which tells of all before it. A receive is posted anew before its event is handed out.
 *
 * [V1] Reliable connections bring each request once. Soft RoCE does not always: a WRITE of several packets that is acknowledged while it is being sent once more, and
 * then has to be sent a third time, goes out as one that has nothing left, by a packet number that was another request's already. So all behind it get numbers one
 * higher, and of those that the other device had executed without our having heard so it executes the last one again, if that is a single packet. (rxe_comp.c: an
 * acknowledgement of a request that is being sent moves comp.psn and completes nothing; rxe_req.c, req_retry().) Where it stands in the ring the bytes are the
 * same, or nobody's any more; that they were counted once more would be the harm.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include "verbs/verbs.h"

#define CREDIT_PART 4
#define TURN_MOST 10

/* ----------------------------------------------------------------------- sending */

bool sd_queue_room(struct sd_queue *q, uint32_t spare) { return q->posted - q->done + spare < q->depth; }
void sd_queue_behind(struct sd_queue *q, bool behind) { q->behind = behind; }

int sd_queue_post(struct sd_queue *q, struct ibv_send_wr *wr, u32 slot, u32 size)
{
    struct ibv_send_wr *bad;
    int r;

    wr->wr_id = q->posted;
    wr->imm_data = htonl(slot << SD_NUMBER_BITS | (u8)q->posted); /* [V1] */
    if (q->posted % SIGNAL_EVERY == 0 || q->posted - q->done >= (q->depth - SPARE) / 2)
        wr->send_flags |= IBV_SEND_SIGNALED;
    if (size <= q->inline_bytes)
        wr->send_flags |= IBV_SEND_INLINE;
    r = ibv_post_send(q->qp, wr, &bad);
    if (r)
        return -r;
    q->posted++;
    return 0;
}

int sd_queue_send(struct sd_queue *q, const uint8_t *body, uint32_t size)
{
    u8 *message = q->messages + (u64)(q->depth + q->posted % q->depth) * SD_VERBS_MESSAGE;
    struct ibv_sge sge = {(uintptr_t)message, size, q->pool->lkey};
    struct ibv_send_wr wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND_WITH_IMM};

    if (size > SD_VERBS_MESSAGE)
        return -EMSGSIZE;
    memcpy(message, body, size);
    q->sends++;
    return sd_queue_post(q, &wr, 0, size);
}

int sd_queue_write(struct sd_queue *q, const struct sd_mirrored *m, uint64_t at, uint64_t base, uint32_t size)
{
    u64 mask = m->ring_bytes - 1;
    u8 *ring = (u8 *)m->copy + SD_SEG_HDR_BYTES + (m->side & 1) * m->ring_bytes;
    struct ibv_sge sge = {(uintptr_t)ring + ((at - base) & mask), size, m->lkey};
    struct ibv_send_wr wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE_WITH_IMM};

    wr.wr.rdma.remote_addr = m->far_address + (at & mask);
    wr.wr.rdma.rkey = m->far_rkey;
    q->writes++;
    return sd_queue_post(q, &wr, m->far_slot, size);
}

/* What is new of one program's bytes. 1: something, 0: nothing, -errno; -EPROTO: it writes nonsense. */
static int carry(struct sd_queue *q, struct sd_mirrored *m)
{
    struct sd_dir *out = sd_out_of(m);
    u64 tail, mask = m->ring_bytes - 1;
    u64 base, left;
    int r = 0;

    if (load_rlx(&out->bell))
        atomic_exchange(&out->bell, 0); /* [B1] who nudges from here on has news that we have not seen */
    sd_mirrored_held(m, false);
    tail = load_acq(&out->tail);        /* [R1] */
    base = load_acq(&out->base);        /* [R3] */
    left = tail - m->sent;
    if (!left)
        return 0;
    if (left > m->ring_bytes || tail - load_rlx(&out->head) > m->ring_bytes)
        return -EPROTO;
    while (left && sd_queue_room(q, SPARE)) {
        u64 here = m->ring_bytes - ((m->sent - base) & mask), there = m->ring_bytes - (m->sent & mask);
        u64 n = min_u64(min_u64(left, SD_VERBS_WRITE), min_u64(here, there));
        if ((r = sd_queue_write(q, m, m->sent, base, (u32)n)) < 0)
            return r;
        m->sent += n;
        m->bytes_out += n;
        q->device->moved += n;
        left -= n;
        r = 1;
    }
    return r;
}

/* -------------------------------------------------------------------------- news */

uint64_t sd_mirrored_rest(const struct sd_mirrored *m)
{
    const struct sd_seg *seg = m->copy;
    u64 sum = load_acq(&sd_out_of(m)->prod_hint) | (u64)load_acq(&sd_into(m)->go_back) << 8 | (u64)load_acq(&seg->attached[m->side & 1]) << 16 |
              (u64)(load_acq(&sd_into(m)->sw_ring) != 0) << 17 | (u64)(load_acq(&sd_out_of(m)->sw_ring) != 0) << 18 |
              (u64)(load_acq(&seg->frozen) | load_acq(&seg->pumped)) << 19;

    return sum | (u64)load_acq(&seg->settle_ask) << 32;
}

static bool owes_much(const struct sd_mirrored *m) { return load_acq(&sd_into(m)->head) - m->head_said >= m->ring_bytes / CREDIT_PART; }

/* Something to be said at once; small credits wait until nothing else is going on. */
static bool has_news(const struct sd_mirrored *m) { return owes_much(m) || sd_mirrored_rest(m) != m->rest_said; }

bool sd_mirrored_news(const struct sd_mirrored *m) { return load_acq(&sd_out_of(m)->tail) != m->sent || has_news(m); }

/* --------------------------------------------------------------------- receiving */

static void event(struct sd_loop_event *e, u32 kind, const struct sd_queue *q, u32 slot)
{
    e->kind = kind;
    e->queue = q->qp->qp_num;
    e->slot = slot;
    e->size = e->status = 0;
}

/* Bytes stand in a copy. How many events: 0 or 1. */
static int landed(struct sd_queue *q, struct sd_loop_event *e, u32 slot, u32 size)
{
    struct sd_mirrored *m = q->live ? sd_queue_find(q, slot) : NULL;
    bool watched;
    u64 unread;

    if (!m || !m->live) {
        event(e, SD_LOOP_WRITTEN, q, slot);
        e->size = size;
        return 1;
    }
    unread = m->landed - load_acq(&sd_into(m)->head);
    if (unread <= m->ring_bytes && unread + size > m->ring_bytes) {
        event(e, SD_LOOP_LIES, q, slot);
        return 1;
    }
    m->landed += size;
    m->bytes_in += size;
    m->last = q->device->turns;
    q->device->moved += size;
    if (unread > m->ring_bytes) { /* our own program's lie: the other side is not to blame */
        event(e, SD_LOOP_BROKEN, q, slot);
        return 1;
    }
    watched = m->place;
    sd_mirrored_watch(m, true); /* what the program reads of it is to be told */
    if (sd_copy_land(m->copy, m->side, m->landed) && !sd_say_sleeps(q, m)) {
        event(e, SD_LOOP_SLEEPS, q, slot);
        return 1;
    }
    if (watched || q->device->threads)
        return 0;
    event(e, SD_LOOP_WOKE, q, slot);
    return 1;
}

/* [V1] What is sent in a conversation is numbered, and what does not have the next number is an earlier one that comes again: a device may repeat itself. One
 * that comes too early: something is missing. */
static signed char number_is(struct sd_queue *q, u32 imm)
{
    signed char ahead = (signed char)((u8)imm - (u8)(q->received - q->strays));

    q->received++;
    q->strays += ahead < 0;
    return ahead;
}

static int received(struct sd_queue *q, struct sd_loop_event *e, const struct ibv_wc *wc)
{
    u32 index = (u32)(wc->wr_id & 0xffff), size = wc->byte_len, imm = ntohl(wc->imm_data);
    signed char ahead = number_is(q, imm);

    if (wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM || ahead) {
        if (ahead > 0 || sd_queue_receive(q, index)) {
            event(e, ahead > 0 ? SD_LOOP_MISSING : SD_LOOP_FAILED, q, 0);
            return 1;
        }
        return ahead ? 0 : landed(q, e, imm >> SD_NUMBER_BITS, size);
    }
    event(e, SD_LOOP_MESSAGE, q, 0);
    e->size = (u32)min_u64(size, SD_VERBS_MESSAGE);
    memcpy(e->body, q->messages + (u64)index * SD_VERBS_MESSAGE, e->size);
    if (sd_queue_receive(q, index))
        e->kind = SD_LOOP_FAILED;
    else if (q->live && (sd_heard_credit(q, e->body, e->size) || sd_heard_bell(q, e->body, e->size)))
        return 0;
    return 1;
}

static struct sd_queue *queue_of(const struct sd_device *d, u32 number)
{
    struct sd_queue *q = d->queues;

    while (q && q->qp->qp_num != number)
        q = q->next;
    return q;
}

static int completed(struct sd_device *d, struct sd_loop_event *e, const struct ibv_wc *wc)
{
    struct sd_queue *q = queue_of(d, wc->qp_num);

    if (!q)
        return 0; /* of one that is closed */
    if (wc->status != IBV_WC_SUCCESS) {
        event(e, SD_LOOP_FAILED, q, 0);
        e->status = wc->status;
        return 1;
    }
    if (wc->wr_id & RECEIVE)
        return received(q, e, wc);
    if (wc->wr_id >= q->done)
        q->done = wc->wr_id + 1;
    if (!q->behind || !sd_queue_room(q, SPARE))
        return 0;
    event(e, SD_LOOP_ROOM, q, 0);
    return 1;
}

/* -------------------------------------------------------------------------- loop */

/* One connection, or what is to be told of it: 0 or 1. */
static int carry_one(struct sd_queue *q, struct sd_mirrored *m, struct sd_loop_event *e, bool *busy)
{
    int r = carry(q, m);
    bool owes = r >= 0 && owes_much(m), said = owes && sd_say_credit(q, m);

    *busy |= r > 0 || said;
    if (r > 0)
        m->last = q->device->turns;
    if (m->noted || (r >= 0 && owes == said && sd_mirrored_rest(m) == m->rest_said))
        return 0; /* what is read meanwhile is looked at in the next turn */
    event(e, r == -EPROTO ? SD_LOOP_BROKEN : r < 0 ? SD_LOOP_FAILED : SD_LOOP_NEWS, q, m->slot);
    e->status = r < 0 ? (u32)-r : 0;
    m->noted = q->device->threads != NULL;
    return 1;
}

static int carry_all(struct sd_queue *q, struct sd_loop_event *events, u32 most, bool *busy)
{
    u32 n = 0;

    for (u32 i = 0; q->live && i < q->watching && n < most; i++) {
        q->device->looks++;
        if (q->watched[i]->live)
            n += (u32)carry_one(q, q->watched[i], &events[n], busy);
    }
    return (int)n;
}

int sd_turn(struct sd_device *d, struct sd_loop_event *events, u32 most, bool *busy)
{
    struct ibv_wc wc[BATCH];
    int count = ibv_poll_cq(d->cq, (int)min_u64(BATCH, most), wc), n = 0;

    d->turns++;
    *busy |= count > 0;
    for (int i = 0; i < count; i++) {
        int told = completed(d, &events[n], &wc[i]);
        n += told;
        d->untold += (u32)told;
    }
    for (struct sd_queue *q = d->queues; q && (u32)n < most; q = q->next)
        n += carry_all(q, events + n, most - (u32)n, busy);
    return n;
}

uint64_t sd_device_looks(const struct sd_device *d) { return d->looks; }

/* Python has it. */
static void told(struct sd_device *d, const struct sd_loop_event *e)
{
    struct sd_queue *q = queue_of(d, e->queue);
    struct sd_mirrored *m = q ? sd_queue_find(q, e->slot) : NULL;

    if (m)
        m->noted = 0;
}

int sd_device_turn(struct sd_device *d, struct sd_loop_event *events, uint32_t most, uint64_t ns, bool *busy)
{
    u64 now = sd_verbs_now(), until = now + ns, last = now + TURN_MOST * ns; /* others have something to say, too */
    int n = sd_threads_told(d, events, most);

    *busy = n > 0;
    d->untold = 0;
    while (!n) {
        bool did = false;
        n = sd_turn(d, events, most, &did);
        *busy |= did;
        now = sd_verbs_now();
        if (did)
            until = now + ns;
        else if (ns)
            sched_yield(); /* whoever has the next byte may wait for this CPU */
        if (now >= until || now >= last)
            break;
    }
    for (int i = 0; i < n; i++)
        told(d, &events[i]);
    return n;
}
