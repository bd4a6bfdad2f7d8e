/* SPDX-License-Identifier: Apache-2.0
 *
 * fakeverbs.c - a libibverbs whose one device is memory of this process, for tests/monitor/queues.py.
 *
 * Queue pairs of RC as the specification has them, as far as sdlib/src/verbs uses them: requests in order, read from memory when they are carried out
 * unless they were inline; a receive for each SEND and each WRITE WITH IMMEDIATE, without which the request waits; keys, bounds and rights of memory
 * regions; queues that are full. Nothing moves but by fake_step(). Closing a queue pair carries out the writes that are under way and tells nobody:
 * that is what a link that breaks may do.
 */
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { REQUESTS = 1024, COMPLETIONS = 16384, PAIRS = 4096, REGIONS = 65536, INLINE_MOST = 96 };

struct request {
    struct ibv_send_wr wr;
    struct ibv_sge sge;
    uint8_t copied[INLINE_MOST];
};

struct cq {
    struct ibv_cq cq;
    struct ibv_wc wc[COMPLETIONS];
    uint32_t put, taken;
    bool armed;
};

struct qp {
    struct ibv_qp qp;
    struct request requests[REQUESTS];
    struct ibv_recv_wr receives[REQUESTS];
    struct ibv_sge places[REQUESTS];
    uint32_t posted, carried, freed, ready, used; /* requests; receives */
    uint32_t depth, far;
    struct { uint32_t lid, service_level, traffic_class, pkey_index; } route;
    enum ibv_qp_state state;
};

struct mr {
    struct ibv_mr mr;
    int access;
};

static struct qp *pairs[PAIRS];
static struct mr *regions[REGIONS];
static uint32_t last_pair, last_region;

/* A number that nobody has; those that were given back are used again as late as possible. */
static uint32_t free_number(void *const *table, uint32_t size, uint32_t *last)
{
    for (uint32_t tries = 0; tries < size; tries++) {
        *last = *last + 1 < size ? *last + 1 : 1;
        if (!table[*last])
            return *last;
    }
    abort();
}

/* ------------------------------------------------------------------------ memory */

struct ibv_mr *(ibv_reg_mr)(struct ibv_pd *pd, void *at, size_t length, int access)
{
    struct mr *m = calloc(1, sizeof *m);
    uint32_t key = free_number((void *const *)regions, REGIONS, &last_region);

    m->mr = (struct ibv_mr){.context = pd->context, .pd = pd, .addr = at, .length = length, .lkey = key, .rkey = key};
    m->access = access;
    regions[key] = m;
    return &m->mr;
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
    regions[mr->lkey] = NULL;
    free(mr);
    return 0;
}

static bool within(uint32_t key, uint64_t at, uint64_t bytes, int access, struct ibv_pd *pd)
{
    const struct mr *m = key < REGIONS ? regions[key] : NULL;
    uint64_t start = m ? (uintptr_t)m->mr.addr : 0;

    return m && m->mr.pd == pd && (m->access & access) == access && at >= start && bytes <= m->mr.length && at - start <= m->mr.length - bytes;
}

/* ------------------------------------------------------------------- completions */

static void complete(struct ibv_cq *to, struct ibv_wc wc)
{
    struct cq *c = (struct cq *)to;

    if (c->put - c->taken == COMPLETIONS)
        abort(); /* a real one breaks */
    c->wc[c->put++ % COMPLETIONS] = wc;
    if (c->armed) {
        c->armed = false;
        eventfd_write(c->cq.channel->fd, 1);
    }
}

static struct qp *pair_at(uint32_t number) { return number < PAIRS ? pairs[number] : NULL; }

static int poll_cq(struct ibv_cq *cq, int most, struct ibv_wc *wc)
{
    struct cq *c = (struct cq *)cq;
    int n = 0;

    for (; n < most && c->taken != c->put; n++) {
        wc[n] = c->wc[c->taken++ % COMPLETIONS];
        struct qp *q = pair_at(wc[n].qp_num);
        if (q && !(wc[n].opcode & IBV_WC_RECV))
            q->freed = wc[n].vendor_err; /* it tells of all before it */
    }
    return n;
}

static int req_notify_cq(struct ibv_cq *cq, int solicited)
{
    (void)solicited;
    ((struct cq *)cq)->armed = true;
    return 0;
}

/* ---------------------------------------------------------------------- requests */

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct qp *q = (struct qp *)qp;
    struct request *r = &q->requests[q->posted % REQUESTS];

    *bad = wr;
    if (q->posted - q->freed >= q->depth)
        return ENOMEM;
    if (wr->num_sge > 1 || wr->next || (wr->num_sge && (wr->send_flags & IBV_SEND_INLINE) && wr->sg_list->length > INLINE_MOST))
        return EINVAL;
    if (wr->num_sge && !wr->sg_list->length)
        return EINVAL; /* some devices take that for 2 GiB */
    r->wr = *wr;
    r->sge = wr->num_sge ? *wr->sg_list : (struct ibv_sge){0};
    if (wr->send_flags & IBV_SEND_INLINE && wr->num_sge)
        memcpy(r->copied, (void *)(uintptr_t)r->sge.addr, r->sge.length);
    q->posted++;
    return 0;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    struct qp *q = (struct qp *)qp;

    *bad = wr;
    if (q->ready - q->used >= q->depth)
        return ENOMEM;
    q->receives[q->ready % REQUESTS] = *wr;
    q->places[q->ready % REQUESTS] = *wr->sg_list;
    q->ready++;
    return 0;
}

static void fail(struct qp *q, const struct request *r, enum ibv_wc_status status)
{
    complete(q->qp.send_cq, (struct ibv_wc){.wr_id = r->wr.wr_id, .status = status, .opcode = IBV_WC_SEND, .qp_num = q->qp.qp_num, .vendor_err = q->carried});
    q->state = IBV_QPS_ERR;
}

static const uint8_t *source(struct qp *q, struct request *r)
{
    if (r->wr.send_flags & IBV_SEND_INLINE)
        return r->copied;
    return within(r->sge.lkey, r->sge.addr, r->sge.length, 0, q->qp.pd) ? (uint8_t *)(uintptr_t)r->sge.addr : NULL;
}

static bool wants_write(const struct request *r) { return r->wr.opcode == IBV_WR_RDMA_WRITE_WITH_IMM; }

/* Where the bytes of a request go over there; NULL: nowhere, by the rules. */
static uint8_t *target(struct qp *to, const struct request *r)
{
    const struct ibv_sge *place = &to->places[to->used % REQUESTS];

    if (wants_write(r))
        return within(r->wr.wr.rdma.rkey, r->wr.wr.rdma.remote_addr, r->sge.length, IBV_ACCESS_REMOTE_WRITE, to->qp.pd)
                   ? (uint8_t *)(uintptr_t)r->wr.wr.rdma.remote_addr : NULL;
    return r->sge.length <= place->length ? (uint8_t *)(uintptr_t)place->addr : NULL;
}

static void execute(struct qp *to, const struct request *r, uint8_t *at, const uint8_t *from)
{
    memcpy(at, from, r->sge.length);
    complete(to->qp.recv_cq, (struct ibv_wc){
        .wr_id = to->receives[to->used++ % REQUESTS].wr_id, .qp_num = to->qp.qp_num, .byte_len = r->sge.length, .imm_data = r->wr.imm_data,
        .opcode = wants_write(r) ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV, .wc_flags = IBV_WC_WITH_IMM});
}

/* The next request of a queue pair is carried out. 1; 0: there is none, or it waits; -1: it has failed. */
int fake_step(uint32_t number)
{
    struct qp *q = pair_at(number), *to = q ? pair_at(q->far) : NULL;
    struct request *r;
    const uint8_t *from;
    uint8_t *at;

    if (!q || q->carried == q->posted || q->state != IBV_QPS_RTS)
        return 0;
    r = &q->requests[q->carried % REQUESTS];
    if (to && to->state >= IBV_QPS_RTR && to->state <= IBV_QPS_RTS && to->used == to->ready)
        return 0; /* RNR */
    q->carried++;
    if (!to || to->state < IBV_QPS_RTR || to->state > IBV_QPS_RTS) {
        fail(q, r, IBV_WC_RETRY_EXC_ERR);
        return -1;
    }
    from = source(q, r);
    at = target(to, r);
    if (!from || !at) {
        fail(q, r, from ? IBV_WC_REM_ACCESS_ERR : IBV_WC_LOC_PROT_ERR);
        to->state = IBV_QPS_ERR;
        return -1;
    }
    execute(to, r, at, from);
    if (r->wr.send_flags & IBV_SEND_SIGNALED)
        complete(q->qp.send_cq, (struct ibv_wc){.wr_id = r->wr.wr_id, .opcode = wants_write(r) ? IBV_WC_RDMA_WRITE : IBV_WC_SEND,
                                                .qp_num = q->qp.qp_num, .vendor_err = q->carried});
    return 1;
}

/* At the far end of a queue pair arrives a WRITE without bytes that was not posted, as a device that repeats itself may have it. */
int fake_stray(uint32_t number, uint32_t imm)
{
    struct qp *q = pair_at(number), *to = q ? pair_at(q->far) : NULL;

    if (!to || to->used == to->ready)
        return -1;
    complete(to->qp.recv_cq, (struct ibv_wc){.wr_id = to->receives[to->used++ % REQUESTS].wr_id, .qp_num = to->qp.qp_num, .imm_data = __builtin_bswap32(imm),
                                             .opcode = IBV_WC_RECV_RDMA_WITH_IMM, .wc_flags = IBV_WC_WITH_IMM});
    return 0;
}

/* Some of the requests that were carried out last are carried out again, in order. -1: a receive is missing. */
int fake_again(uint32_t number, uint32_t count)
{
    struct qp *q = pair_at(number), *to = q ? pair_at(q->far) : NULL;

    for (uint32_t i = to ? q->carried - count : 0; to && i != q->carried; i++) {
        struct request *r = &q->requests[i % REQUESTS];
        const uint8_t *from = source(q, r);
        uint8_t *at = target(to, r);
        if (!from || !at || to->used == to->ready)
            return -1;
        execute(to, r, at, from);
    }
    return to ? 0 : -1;
}

uint32_t fake_waiting(uint32_t number)
{
    const struct qp *q = pair_at(number);

    return q && q->state == IBV_QPS_RTS ? q->posted - q->carried : 0;
}

/* ------------------------------------------------------- devices and queue pairs */

#define DEVICE_NAME "fake"
#include "verbs_device.h"

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
    struct ibv_comp_channel *channel = calloc(1, sizeof *channel);

    channel->context = context;
    channel->fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    return channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
    close(channel->fd);
    free(channel);
    return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **context)
{
    eventfd_t one;

    *cq = NULL;
    *context = NULL;
    return eventfd_read(channel->fd, &one);
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned count)
{
    (void)cq;
    (void)count;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int entries, void *own, struct ibv_comp_channel *channel, int vector)
{
    struct cq *c = calloc(1, sizeof *c);

    (void)vector;
    c->cq = (struct ibv_cq){.context = context, .channel = channel, .cq_context = own, .cqe = entries};
    return &c->cq;
}

int ibv_destroy_cq(struct ibv_cq *cq)
{
    free(cq);
    return 0;
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *init)
{
    struct qp *q;

    if (init->cap.max_inline_data > INLINE_MOST || init->cap.max_send_wr > REQUESTS) {
        errno = EINVAL;
        return NULL;
    }
    q = calloc(1, sizeof *q);
    q->qp = (struct ibv_qp){.context = pd->context, .pd = pd, .send_cq = init->send_cq, .recv_cq = init->recv_cq, .qp_num = free_number((void *const *)pairs, PAIRS, &last_pair)};
    q->depth = init->cap.max_send_wr;
    pairs[q->qp.qp_num] = q;
    return &q->qp;
}

int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
    struct qp *q = (struct qp *)qp;

    q->state = attr->qp_state;
    if (mask & IBV_QP_DEST_QPN)
        q->far = attr->dest_qp_num;
    if (mask & IBV_QP_PKEY_INDEX)
        q->route.pkey_index = attr->pkey_index;
    if (mask & IBV_QP_AV)
        q->route.lid = attr->ah_attr.dlid, q->route.service_level = attr->ah_attr.sl, q->route.traffic_class = attr->ah_attr.grh.traffic_class;
    return 0;
}

/* What a queue pair was told of its way. */
void fake_route(uint32_t number, uint32_t values[4]) { memcpy(values, &pair_at(number)->route, sizeof pair_at(number)->route); }

int ibv_destroy_qp(struct ibv_qp *qp)
{
    struct qp *q = (struct qp *)qp, *to = pair_at(q->far);

    for (; to && q->carried != q->posted; q->carried++) {
        struct request *r = &q->requests[q->carried % REQUESTS];
        const uint8_t *from = source(q, r);
        uint8_t *at = wants_write(r) ? target(to, r) : NULL;
        if (from && at)
            memcpy(at, from, r->sge.length);
    }
    pairs[qp->qp_num] = NULL;
    free(q);
    return 0;
}
