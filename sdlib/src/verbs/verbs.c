/* SPDX-License-Identifier: Apache-2.0
 *
 * verbs.c - opening devices, connecting queue pairs, registering memory (sd_verbs.h). What happens once or a few times in a link's life.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include "verbs/verbs.h"

static int failed;

int sd_device_errno(void) { return failed; }

/* ------------------------------------------------------------------ libibverbs */

#define FUNCTIONS(X) \
    X(ibv_get_device_list) X(ibv_free_device_list) X(ibv_get_device_name) X(ibv_open_device) X(ibv_close_device) X(ibv_alloc_pd) \
    X(ibv_dealloc_pd) X(ibv_create_comp_channel) X(ibv_destroy_comp_channel) X(ibv_create_cq) X(ibv_destroy_cq) X(ibv_create_qp) \
    X(ibv_modify_qp) X(ibv_destroy_qp) X(ibv_reg_mr) X(ibv_dereg_mr) X(ibv_get_cq_event) X(ibv_ack_cq_events) X(ibv_query_device) \
    X(ibv_query_port) X(ibv_get_async_event) X(ibv_ack_async_event)

#define DECLARE(name) __typeof__(name) *name##_;
static struct { FUNCTIONS(DECLARE) } lib;

static bool load_library(const char *name)
{
    void *handle = dlopen(name, RTLD_NOW);

    if (!handle)
        return false;
#define FIND(name) if (!(*(void **)&lib.name##_ = dlsym(handle, #name))) return false;
    FUNCTIONS(FIND)
    return true;
}

/* ---------------------------------------------------------------------- devices */

static struct ibv_context *open_named(const char *name)
{
    int count = 0;
    struct ibv_device **list = lib.ibv_get_device_list_(&count);
    struct ibv_context *found = NULL;

    for (int i = 0; list && i < count && !found; i++)
        if (!strcmp(lib.ibv_get_device_name_(list[i]), name))
            found = lib.ibv_open_device_(list[i]);
    if (list)
        lib.ibv_free_device_list_(list);
    return found;
}

static void do_not_wait(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

struct sd_device *sd_device_open(const char *library, const char *name, uint32_t port, uint32_t pkey_index, uint32_t entries)
{
    struct sd_device *d = calloc(1, sizeof *d);

    failed = ENOMEM;
    if (!d)
        return NULL;
    failed = ENOSYS;
    if (!lib.ibv_open_device_ && !load_library(library))
        goto no;
    failed = ENODEV;
    d->port = port;
    d->pkey_index = pkey_index;
    if (!(d->context = open_named(name)))
        goto no;
    failed = EIO;
    struct ibv_device_attr attr;
    if (lib.ibv_query_device_(d->context, &attr))
        goto no;
    d->most = (u32)attr.max_qp_wr;
    d->entries = entries = (u32)min_u64(entries, (u64)attr.max_cqe);
    if (!(d->channel = lib.ibv_create_comp_channel_(d->context)) ||
        !(d->cq = lib.ibv_create_cq_(d->context, (int)entries, NULL, d->channel, 0)))
        goto no;
    do_not_wait(d->channel->fd);
    do_not_wait(d->context->async_fd);
    return d;
no:
    sd_device_close(d);
    return NULL;
}

void sd_device_close(struct sd_device *d)
{
    if (d->cq)
        lib.ibv_destroy_cq_(d->cq);
    if (d->channel)
        lib.ibv_destroy_comp_channel_(d->channel);
    if (d->context)
        lib.ibv_close_device_(d->context);
    free(d);
}

int sd_device_fd(struct sd_device *d) { return d->channel->fd; }

int sd_device_arm(struct sd_device *d)
{
    struct ibv_cq *cq;
    void *context;
    int events = 0;

    while (lib.ibv_get_cq_event_(d->channel, &cq, &context) == 0)
        events++;
    if (events)
        lib.ibv_ack_cq_events_(d->cq, (unsigned)events);
    return ibv_req_notify_cq(d->cq, 0) ? -EIO : events;
}

int sd_device_async_fd(struct sd_device *d) { return d->context->async_fd; }

/* Acknowledged at once: ibv_destroy_qp() waits for that. */
int sd_device_said(struct sd_device *d, struct sd_device_said *said)
{
    struct ibv_async_event e;

    if (lib.ibv_get_async_event_(d->context, &e))
        return errno == EAGAIN || errno == EINTR ? 0 : -(errno ? errno : EIO);
    *said = (struct sd_device_said){.event = e.event_type};
    switch (e.event_type) {
    case IBV_EVENT_QP_FATAL: case IBV_EVENT_QP_REQ_ERR: case IBV_EVENT_QP_ACCESS_ERR: case IBV_EVENT_COMM_EST: case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG: case IBV_EVENT_PATH_MIG_ERR: case IBV_EVENT_QP_LAST_WQE_REACHED:
        said->queue = e.element.qp->qp_num;
        break;
    case IBV_EVENT_PORT_ACTIVE: case IBV_EVENT_PORT_ERR: case IBV_EVENT_LID_CHANGE: case IBV_EVENT_PKEY_CHANGE: case IBV_EVENT_SM_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER: case IBV_EVENT_GID_CHANGE:
        said->port = (u32)e.element.port_num;
        break;
    default:
        break;
    }
    lib.ibv_ack_async_event_(&e);
    return 1;
}

int sd_device_mtu(struct sd_device *d)
{
    struct ibv_port_attr attr = {0}; /* the function of that name fills what it has known first */

    return lib.ibv_query_port_(d->context, (u8)d->port, (void *)&attr) ? -(errno ? errno : EIO) : (int)attr.active_mtu;
}

/* ------------------------------------------------------------------ queue pairs */

#define DEPTH_LEAST 8

int sd_queue_receive(struct sd_queue *q, u32 index)
{
    struct ibv_sge sge = {(uintptr_t)q->messages + (u64)index * SD_VERBS_MESSAGE, SD_VERBS_MESSAGE, q->pool->lkey};
    struct ibv_recv_wr wr = {.wr_id = RECEIVE | index, .sg_list = &sge, .num_sge = 1}, *bad;

    return -ibv_post_recv(q->qp, &wr, &bad);
}

/* How much a device takes inline nobody says before it has refused. */
static bool make_pair(struct sd_queue *q, struct ibv_qp_init_attr *init)
{
    while (!(q->qp = lib.ibv_create_qp_(q->pd, init)) && init->cap.max_inline_data)
        init->cap.max_inline_data /= 2;
    return q->qp;
}

static bool make(struct sd_queue *q, struct sd_device *d, u32 inline_bytes)
{
    struct ibv_qp_init_attr init = {
        .send_cq = d->cq, .recv_cq = d->cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = q->depth, .max_recv_wr = q->depth, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = inline_bytes},
    };
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = (u8)d->port, .pkey_index = (u16)d->pkey_index,
                               .qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE};
    u64 bytes = 2ull * q->depth * SD_VERBS_MESSAGE;

    if (!(q->messages = calloc(1, bytes)) || !(q->pd = lib.ibv_alloc_pd_(d->context)) ||
        !(q->pool = lib.ibv_reg_mr_(q->pd, q->messages, bytes, IBV_ACCESS_LOCAL_WRITE)) || !make_pair(q, &init))
        return false;
    q->inline_bytes = (u32)min_u64(init.cap.max_inline_data, inline_bytes);
    if (lib.ibv_modify_qp_(q->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS))
        return false;
    for (u32 i = 0; i < q->depth; i++)
        if (sd_queue_receive(q, i))
            return false;
    return true;
}

/* A completion queue that overflows is the end of all queue pairs: each has room there for all that it may have under way. */
static u32 takes(const struct sd_queue *q) { return 2 * q->depth; }

struct sd_queue *sd_queue_open(struct sd_device *d, uint32_t depth, uint32_t inline_bytes)
{
    struct sd_queue *q = calloc(1, sizeof *q);

    failed = ENOMEM;
    if (!q)
        return NULL;
    q->device = d;
    q->depth = (u32)min_u64(min_u64(depth, d->most), d->entries / 2);
    failed = ENOSPC;
    if (q->depth < min_u64(depth, DEPTH_LEAST)) {
        free(q);
        return NULL;
    }
    d->entries -= takes(q);
    q->next = d->queues;
    d->queues = q;
    errno = 0;
    if (make(q, d, inline_bytes))
        return q;
    failed = errno ? errno : EIO;
    sd_queue_close(q);
    return NULL;
}

uint32_t sd_queue_number(struct sd_queue *q) { return q->qp->qp_num; }

int sd_queue_connect(struct sd_queue *q, const struct sd_route *r)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR, .path_mtu = (enum ibv_mtu)r->mtu, .dest_qp_num = r->number, .rq_psn = r->far_sequence,
        .max_dest_rd_atomic = 1, .min_rnr_timer = 1,
        .ah_attr = {.is_global = 1, .dlid = (u16)r->lid, .sl = (u8)r->service_level, .port_num = (u8)q->device->port,
                    .grh = {.sgid_index = (u8)r->gid_index, .hop_limit = 64, .traffic_class = (u8)r->traffic_class}},
    };

    memcpy(attr.ah_attr.grh.dgid.raw, r->gid, 16);
    if (lib.ibv_modify_qp_(q->qp, &attr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                         IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER))
        return -(errno ? errno : EIO);
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = r->own_sequence, .timeout = (u8)r->timeout, .retry_cnt = (u8)r->retries,
                                .rnr_retry = 7, .max_rd_atomic = 1};
    if (lib.ibv_modify_qp_(q->qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                         IBV_QP_MAX_QP_RD_ATOMIC))
        return -(errno ? errno : EIO);
    return 0;
}

void sd_queue_close(struct sd_queue *q)
{
    sd_queue_leave(q);
    q->device->entries += takes(q);
    if (q->qp)
        lib.ibv_destroy_qp_(q->qp);
    if (q->pool)
        lib.ibv_dereg_mr_(q->pool);
    if (q->pd)
        lib.ibv_dealloc_pd_(q->pd);
    free(q->messages);
    free(q->carried);
    free(q->watched);
    free(q);
}

void sd_queue_count(struct sd_queue *q, struct sd_queue_counts *c)
{
    *c = (struct sd_queue_counts){q->posted, q->done, q->writes, q->sends, q->received, q->bells, q->rings, q->credits, q->strays, q->depth, q->inline_bytes};
}

int sd_queue_register(struct sd_queue *q, void *at, uint64_t bytes, bool remote, struct sd_region *region)
{
    struct ibv_mr *mr = lib.ibv_reg_mr_(q->pd, at, bytes, IBV_ACCESS_LOCAL_WRITE | (remote ? IBV_ACCESS_REMOTE_WRITE : 0));

    if (!mr)
        return -(errno ? errno : EIO);
    *region = (struct sd_region){mr, mr->lkey, mr->rkey};
    return 0;
}

void sd_region_close(struct sd_region *region) { lib.ibv_dereg_mr_(region->mr); }
