/* SPDX-License-Identifier: Apache-2.0
 *
 * link.h - a byte stream between two workers over each of the transports that pair.c compares.
 *
 * The ring is the library's own ring.c without anything around it: the limit of what sdrun can reach. It never sleeps; it gives its CPU away
 * with sched_yield, at once when the other end must run on the same one, else after SPIN looks.
 *
 * one copy: the ring carries only where the bytes lie, and the reader fetches them from there by process_vm_readv. A sender may use its
 * buffer again when send() returns, so it has to wait for that.
 */
#ifndef LINK_H
#define LINK_H

#include "bench.h"
#include "ring/ring.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

enum kind { KIND_TCP, KIND_UNIX, KIND_PIPE, KIND_RING, KIND_ONE_COPY };

struct piece {
    uint64_t at, bytes;
};

struct link {
    enum kind kind;
    int rd, wr;
    unsigned spin;
    struct sd_end ring;
    _Atomic uint32_t *phase;
    struct piece piece; /* one copy: what is being read, and how much of it has been */
    size_t taken;
    const pid_t *peer; /* known before the first byte is sent */
};

#define SPIN 2000

/* Made before the fork, for one pair. */
struct plan {
    enum kind kind;
    int side[2][2]; /* pipe: descriptors to read and to write, unix: the same twice */
    struct sd_seg *seg;
    uint64_t seg_bytes;
};

static inline struct plan plan_link(enum kind kind, uint32_t ring_bytes)
{
    struct plan p = {.kind = kind};
    int a[2], b[2];

    if (kind == KIND_UNIX) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, a) < 0)
            die("socketpair");
        p.side[0][0] = p.side[0][1] = a[0];
        p.side[1][0] = p.side[1][1] = a[1];
    } else if (kind == KIND_PIPE) {
        if (pipe(a) < 0 || pipe(b) < 0)
            die("pipe");
        p.side[0][0] = a[0], p.side[1][1] = a[1];
        p.side[1][0] = b[0], p.side[0][1] = b[1];
    } else if (kind == KIND_RING || kind == KIND_ONE_COPY) {
        p.seg_bytes = SD_SEG_HDR_BYTES + 2 * (uint64_t)ring_bytes;
        p.seg = share(p.seg_bytes);
        sd_seg_init(p.seg, ring_bytes);
    }
    return p;
}

static inline void tune(int fd, const char *congestion)
{
    int on = 1;
    if (*congestion && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion)) < 0)
        die("congestion control %s", congestion);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Side 1 listens on a port of its own and says which in *port; side 0 waits for it. */
static inline int tcp_end(int side, _Atomic uint32_t *port, const char *congestion)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0), got;

    if (fd < 0)
        die("socket");
    tune(fd, congestion);
    if (side == 0) {
        while (!atomic_load(port))
            sleep_ms(1);
        at.sin_port = (in_port_t)atomic_load(port);
        if (connect(fd, (struct sockaddr *)&at, sizeof at) < 0)
            die("connect");
        return fd;
    }
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 8) < 0 || getsockname(fd, (struct sockaddr *)&at, &len) < 0)
        die("listen");
    atomic_store(port, at.sin_port);
    got = accept(fd, NULL, NULL);
    if (got < 0)
        die("accept");
    tune(got, congestion);
    close(fd);
    return got;
}

/* In the worker, after the fork. */
static inline struct link open_link(const struct plan *p, int side, _Atomic uint32_t *port, const char *congestion)
{
    struct link l = {.kind = p->kind, .rd = p->side[side][0], .wr = p->side[side][1]};

    if (p->kind == KIND_UNIX || p->kind == KIND_PIPE) {
        close(p->side[!side][0]);
        if (p->kind == KIND_PIPE)
            close(p->side[!side][1]);
    } else if (p->kind == KIND_TCP) {
        l.rd = l.wr = tcp_end(side, port, congestion);
    } else if (p->kind == KIND_ONE_COPY && prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0) < 0 && errno != EINVAL) {
        die("PR_SET_PTRACER"); /* EINVAL: no Yama in this kernel */
    } else if (sd_end_open(&l.ring, p->seg, p->seg_bytes, (uint32_t)side) < 0) {
        die("ring");
    }
    return l;
}

static inline bool give_way(struct link *l, unsigned *turns)
{
    if (++*turns > l->spin) {
        if (atomic_load_explicit(l->phase, memory_order_relaxed) == PHASE_STOP)
            return false;
        sched_yield();
    } else {
        cpu_relax();
    }
    return true;
}

static inline bool send_piece(struct link *l, const uint8_t *from, size_t n)
{
    struct piece p = {(uint64_t)from, n};
    uint64_t tail = atomic_load_explicit(&l->ring.tx->tail, memory_order_relaxed);
    unsigned turns = 0;

    if (sd_tx_copy(&l->ring, (const uint8_t *)&p, sizeof p, 0) != sizeof p || !sd_tx_commit(&l->ring, tail, sizeof p))
        die("one copy"); /* there is never more than one in the ring */
    while (atomic_load_explicit(&l->ring.tx->head, memory_order_acquire) != tail + sizeof p)
        if (!give_way(l, &turns))
            return false;
    return true;
}

static inline ssize_t take_piece(struct link *l, uint8_t *to, size_t n)
{
    uint64_t head = atomic_load_explicit(&l->ring.rx->head, memory_order_relaxed);

    if (l->taken == 0 && sd_rx_copy(&l->ring, (uint8_t *)&l->piece, sizeof l->piece, 0) != sizeof l->piece)
        return 0;
    size_t left = (size_t)l->piece.bytes - l->taken;
    struct iovec here = {to, n < left ? n : left}, there = {(void *)(l->piece.at + l->taken), here.iov_len};
    if (process_vm_readv(*l->peer, &here, 1, &there, 1, 0) != (ssize_t)here.iov_len)
        return -1; /* it has ended */
    l->taken += here.iov_len;
    if (l->taken == l->piece.bytes) {
        l->taken = 0;
        sd_rx_commit(&l->ring, head, sizeof l->piece);
    }
    return (ssize_t)here.iov_len;
}

/* All n bytes; false at the end. */
static inline bool link_send(struct link *l, const uint8_t *from, size_t n)
{
    unsigned turns = 0;

    if (l->kind == KIND_ONE_COPY)
        return send_piece(l, from, n);
    while (n) {
        ssize_t r;
        if (l->kind == KIND_RING) {
            uint64_t tail = atomic_load_explicit(&l->ring.tx->tail, memory_order_relaxed);
            r = sd_tx_copy(&l->ring, from, n, 0);
            if (r > 0)
                sd_tx_commit(&l->ring, tail, (uint64_t)r);
            else if (!give_way(l, &turns))
                return false;
        } else {
            r = l->kind == KIND_PIPE ? write(l->wr, from, n) : send(l->wr, from, n, MSG_NOSIGNAL);
            if (r <= 0)
                return false;
        }
        from += r;
        n -= (size_t)r;
    }
    return true;
}

/* What is there, at most n; 0 at the end. */
static inline size_t link_some(struct link *l, uint8_t *to, size_t n)
{
    unsigned turns = 0;

    for (;;) {
        ssize_t r;
        if (l->kind == KIND_RING) {
            uint64_t head = atomic_load_explicit(&l->ring.rx->head, memory_order_relaxed);
            r = sd_rx_copy(&l->ring, to, n, 0);
            if (r > 0)
                sd_rx_commit(&l->ring, head, (uint64_t)r);
            else if (give_way(l, &turns))
                continue;
        } else if (l->kind == KIND_ONE_COPY) {
            r = take_piece(l, to, n);
            if (r == 0 && give_way(l, &turns))
                continue;
        } else {
            r = l->kind == KIND_PIPE ? read(l->rd, to, n) : recv(l->rd, to, n, 0);
        }
        return r > 0 ? (size_t)r : 0;
    }
}

static inline bool link_recv(struct link *l, uint8_t *to, size_t n)
{
    while (n) {
        size_t r = link_some(l, to, n);
        if (!r)
            return false;
        to += r;
        n -= r;
    }
    return true;
}

#endif
