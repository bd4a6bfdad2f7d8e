/* SPDX-License-Identifier: Apache-2.0
 *
 * softverbs.c - a libibverbs whose device is the sockets of a folder, for monitors in different processes (tests/hosts).
 *
 * RC as sdlib/src/verbs uses it: requests arrive in order; a WRITE lands in registered memory, within its key's bounds, and takes a receive, as a SEND
 * does. What the wire and the other device's processor do otherwise is done when the completion queue is polled. There is a datagram socket for each
 * queue pair, $SOFTVERBS/NUMBER; requests for which the kernel has no room wait here, and a queue pair whose peer is gone is in error, as after the last
 * retry. The number holds the process's own, so hosts do not meet.
 *
 * What Soft RoCE does at times when it retransmits is done here all the time ([V1] of sdlib/src/verbs/loop.c): behind every EMPTY_EVERYth WRITE arrives another one
 * that has its immediate and no bytes, which nobody has posted, and every AGAIN_EVERYth request is carried out twice.
 */
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { REQUESTS = 256, COMPLETIONS = 16384, PAIRS = 64, REGIONS = 8192, BYTES = 65536, INLINE_MOST = 96, EMPTY_EVERY = 16, AGAIN_EVERY = 7 };

struct header {
    uint32_t opcode, imm, rkey, length;
    uint64_t at;
};

struct waiting {
    struct waiting *next;
    struct header head;
    uint8_t bytes[];
};

struct cq {
    struct ibv_cq cq;
    struct ibv_wc wc[COMPLETIONS];
    uint32_t put, taken;
};

struct qp {
    struct ibv_qp qp;
    struct ibv_recv_wr receives[REQUESTS];
    struct ibv_sge places[REQUESTS];
    uint32_t ready, used, posted, freed;
    struct waiting *first, **last;
    enum ibv_qp_state state;
    int sock;
};

struct mr {
    struct ibv_mr mr;
    int access;
};

static struct qp *pairs[PAIRS];
static struct mr *regions[REGIONS];
static uint32_t regions_made, pairs_made, writes, requests;
static int events = -1, sent = -1; /* the channel; requests have been completed */
static uint8_t in[sizeof(struct header) + BYTES];

/* ------------------------------------------------------------------------ memory */

struct ibv_mr *(ibv_reg_mr)(struct ibv_pd *pd, void *at, size_t length, int access)
{
    struct mr *m;
    uint32_t key;

    if (getenv("SOFTVERBS_NO_RINGS") && (access & IBV_ACCESS_REMOTE_WRITE)) { /* RLIMIT_MEMLOCK, say */
        errno = ENOMEM;
        return NULL;
    }
    m = calloc(1, sizeof *m);
    do
        key = ++regions_made % REGIONS;
    while (regions[key]);
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

static bool writable(const struct qp *q, const struct header *h)
{
    const struct mr *m = h->rkey < REGIONS ? regions[h->rkey] : NULL;
    uint64_t start = m ? (uintptr_t)m->mr.addr : 0;

    return m && m->mr.pd == q->qp.pd && (m->access & IBV_ACCESS_REMOTE_WRITE) && h->at >= start && h->length <= m->mr.length &&
           h->at - start <= m->mr.length - h->length;
}

/* ------------------------------------------------------------------- completions */

static void complete(struct ibv_cq *to, struct ibv_wc wc)
{
    struct cq *c = (struct cq *)to;

    if (c->put - c->taken == COMPLETIONS)
        abort(); /* a real one breaks */
    c->wc[c->put++ % COMPLETIONS] = wc;
    if (!(wc.opcode & IBV_WC_RECV))
        eventfd_write(sent, 1);
}

static void fail(struct qp *q, enum ibv_wc_status status)
{
    if (q->state == IBV_QPS_ERR)
        return;
    q->state = IBV_QPS_ERR;
    complete(q->qp.send_cq, (struct ibv_wc){.status = status, .opcode = IBV_WC_SEND, .qp_num = q->qp.qp_num});
}

/* ------------------------------------------------------------------------ the wire */

/* 1: it is on its way; 0: no room; -1: nobody is there. */
static int transmit(struct qp *q, const struct header *h, const void *bytes)
{
    struct iovec v[] = {{(void *)(uintptr_t)h, sizeof *h}, {(void *)(uintptr_t)bytes, h->length}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};

    if (sendmsg(q->sock, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        return 1;
    return errno == EAGAIN || errno == ENOBUFS ? 0 : -1;
}

static void send_waiting(struct qp *q)
{
    while (q->first && q->state == IBV_QPS_RTS) {
        struct waiting *w = q->first;
        int r = transmit(q, &w->head, w->bytes);
        if (r < 0)
            fail(q, IBV_WC_RETRY_EXC_ERR);
        if (r <= 0)
            return;
        q->first = w->next;
        if (!q->first)
            q->last = &q->first;
        free(w);
    }
}

static void take(struct qp *q, const struct header *h, uint32_t length)
{
    bool write = h->opcode == IBV_WR_RDMA_WRITE_WITH_IMM;

    complete(q->qp.recv_cq, (struct ibv_wc){
        .wr_id = q->receives[q->used++ % REQUESTS].wr_id, .qp_num = q->qp.qp_num, .byte_len = length, .imm_data = h->imm,
        .opcode = write ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV, .wc_flags = IBV_WC_WITH_IMM});
}

static void execute(struct qp *q, const struct header *h, bool write)
{
    uint64_t at = write ? h->at : q->places[q->used % REQUESTS].addr;

    memcpy((void *)(uintptr_t)at, in + sizeof *h, h->length);
    take(q, h, h->length);
}

/* One message of the socket, if a receive is there for it. */
static bool arrive(struct qp *q)
{
    struct header *h = (struct header *)in;
    const struct ibv_sge *place = &q->places[q->used % REQUESTS];
    bool write;

    if (q->state < IBV_QPS_RTR || q->state > IBV_QPS_RTS || q->used == q->ready)
        return false;
    if (recv(q->sock, in, sizeof in, MSG_DONTWAIT) < (ssize_t)sizeof *h)
        return false;
    write = h->opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
    if (h->length > BYTES || (write ? h->length && !writable(q, h) : h->length > place->length)) {
        fail(q, IBV_WC_REM_ACCESS_ERR);
        return false;
    }
    execute(q, h, write);
    if (++requests % AGAIN_EVERY == 0 && q->used != q->ready)
        execute(q, h, write);
    if (write && ++writes % EMPTY_EVERY == 0 && q->used != q->ready)
        take(q, h, 0);
    return true;
}

static int poll_cq(struct ibv_cq *cq, int most, struct ibv_wc *wc)
{
    struct cq *c = (struct cq *)cq;
    int n = 0;

    for (uint32_t i = 0; i < PAIRS; i++) {
        if (!pairs[i])
            continue;
        send_waiting(pairs[i]);
        for (int k = 0; k < most && arrive(pairs[i]); k++)
            ;
    }
    for (; n < most && c->taken != c->put; n++) {
        wc[n] = c->wc[c->taken++ % COMPLETIONS];
        for (uint32_t i = 0; i < PAIRS; i++)
            if (pairs[i] && pairs[i]->qp.qp_num == wc[n].qp_num && !(wc[n].opcode & IBV_WC_RECV) && !wc[n].status)
                pairs[i]->freed = wc[n].vendor_err; /* it tells of all before it */
    }
    return n;
}

/* The channel always tells. */
static int req_notify_cq(struct ibv_cq *cq, int solicited)
{
    (void)cq;
    (void)solicited;
    return 0;
}

/* ---------------------------------------------------------------------- requests */

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct qp *q = (struct qp *)qp;
    struct header h = {wr->opcode, wr->imm_data, wr->wr.rdma.rkey, wr->num_sge ? wr->sg_list->length : 0, wr->wr.rdma.remote_addr};
    const void *bytes = wr->num_sge ? (void *)(uintptr_t)wr->sg_list->addr : NULL;
    int r = 0;

    *bad = wr;
    if (q->posted - q->freed >= REQUESTS)
        return ENOMEM;
    q->posted++;
    if (q->state != IBV_QPS_RTS)
        return 0;
    if (!q->first)
        r = transmit(q, &h, bytes);
    if (r < 0) {
        fail(q, IBV_WC_RETRY_EXC_ERR);
        return 0;
    }
    if (!r) {
        struct waiting *w = malloc(sizeof *w + h.length);
        w->next = NULL;
        w->head = h;
        memcpy(w->bytes, bytes, h.length);
        *q->last = w;
        q->last = &w->next;
    }
    if (wr->send_flags & IBV_SEND_SIGNALED)
        complete(q->qp.send_cq, (struct ibv_wc){.wr_id = wr->wr_id, .opcode = IBV_WC_SEND, .qp_num = qp->qp_num, .vendor_err = q->posted});
    return 0;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    struct qp *q = (struct qp *)qp;

    *bad = wr;
    if (q->ready - q->used >= REQUESTS)
        return ENOMEM;
    q->receives[q->ready % REQUESTS] = *wr;
    q->places[q->ready % REQUESTS] = *wr->sg_list;
    q->ready++;
    return 0;
}

static struct qp *pair_at(uint32_t number)
{
    for (uint32_t i = 0; i < PAIRS; i++)
        if (pairs[i] && pairs[i]->qp.qp_num == number)
            return pairs[i];
    return NULL;
}

/* ------------------------------------------------------- devices and queue pairs */

#define DEVICE_NAME "soft"
#include "verbs_device.h"

/* An epoll set of the sockets and of an eventfd for requests. */
struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
    struct ibv_comp_channel *channel = calloc(1, sizeof *channel);
    struct epoll_event e = {.events = EPOLLIN | EPOLLET};

    channel->context = context;
    events = channel->fd = epoll_create1(EPOLL_CLOEXEC);
    sent = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    epoll_ctl(events, EPOLL_CTL_ADD, sent, &e);
    return channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
    close(channel->fd);
    close(sent);
    free(channel);
    return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **context)
{
    struct epoll_event e;

    *cq = NULL;
    *context = NULL;
    return epoll_wait(channel->fd, &e, 1, 0) == 1 ? 0 : -1;
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

static struct sockaddr_un name_of(uint32_t number)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof a.sun_path, "%s/%u", getenv("SOFTVERBS"), number);
    return a;
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *init)
{
    struct qp *q = NULL;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    uint32_t place = 0, bytes = 1 << 21;

    while (place < PAIRS && pairs[place])
        place++;
    if (init->cap.max_inline_data > INLINE_MOST || init->cap.max_send_wr > REQUESTS || place == PAIRS) {
        errno = EINVAL;
        return NULL;
    }
    q = calloc(1, sizeof *q);
    q->qp = (struct ibv_qp){.context = pd->context, .pd = pd, .send_cq = init->send_cq, .recv_cq = init->recv_cq,
                            .qp_num = (uint32_t)getpid() << 8 | (pairs_made++ & 255)};
    q->last = &q->first;
    q->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    setsockopt(q->sock, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    struct sockaddr_un own = name_of(q->qp.qp_num);
    unlink(own.sun_path);
    if (bind(q->sock, (struct sockaddr *)&own, sizeof own) || epoll_ctl(events, EPOLL_CTL_ADD, q->sock, &e)) {
        close(q->sock);
        free(q);
        return NULL;
    }
    pairs[place] = q;
    return &q->qp;
}

int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
    struct qp *q = (struct qp *)qp;
    struct sockaddr_un far;

    q->state = attr->qp_state;
    if (!(mask & IBV_QP_DEST_QPN))
        return 0;
    far = name_of(attr->dest_qp_num);
    return connect(q->sock, (struct sockaddr *)&far, sizeof far) ? errno : 0;
}

int ibv_destroy_qp(struct ibv_qp *qp)
{
    struct qp *q = (struct qp *)qp;
    struct sockaddr_un own = name_of(qp->qp_num);

    for (uint32_t i = 0; i < PAIRS; i++)
        if (pairs[i] == q)
            pairs[i] = NULL;
    unlink(own.sun_path);
    close(q->sock);
    for (struct waiting *w = q->first, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    free(q);
    return 0;
}
