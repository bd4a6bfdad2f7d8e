/* SPDX-License-Identifier: Apache-2.0
 *
 * trace.c - what is told of calls and bytes while somebody looks (--trace, --pcap).
 *
 * Theory of operation
 * -------------------
 * Each thread writes into a ring of its own, a channel of memory that the supervisor reads (sd_trace.h, struct sd_trace). So a record costs no atomic
 * operation and no waiting: it is stored behind the tail, and the tail moved by sd_cas_local(), which fails if a signal handler has written one
 * meanwhile; then it is stored again. A thread that is killed in between has told nothing.
 *   [T1] tail: the thread stores a record, then releases tail; the supervisor acquires tail, then copies.
 *   [T2] head: the supervisor has copied, then releases head; the thread acquires head before it writes there again.
 * What finds no room is dropped and counted; the supervisor tells how many. Forked children find the memory mapped and take channels of their own.
 *
 * Bytes have their place in the connection's stream with them. On the ring it is where the direction switched, as TCP counts, plus the ring's counter:
 * exact, whoever sends. On TCP it is the kernel's count. So both ends tell the same of the same byte, in any order, and what is missing shows.
 */
#include "base/user.h"
#include "gate/gate.h"
#include "sock/sock.h"

#define MASK (SD_TRACE_RECORDS - 1ull)
#define LINE 64ull
#define PIECE 16384ull
#define MADV_POPULATE_WRITE 23
#define NAME 28u /* struct sockaddr_in6 */

static struct sd_trace *_Atomic maps[SD_MAX_TRACES];

/* ---------------------------------------------------------------- channels */

static struct sd_trace *map(u32 i)
{
    struct sd_trace *m = load_acq(&maps[i]), *none = NULL;
    long fd, at;

    if (m || g.boxed)
        return m;
    fd = sd_hypercall_fd(SD_HC_TRACE, i, 0);
    if (fd < 0)
        return NULL;
    at = SYS6(__NR_mmap, 0, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    SYS1(__NR_close, fd);
    if (at < 0 && at > -4096)
        return NULL;
    m = (struct sd_trace *)at;
    if (m->magic == SD_TRACE_MAGIC && m->version == SD_ABI_VERSION && m->bytes == sizeof *m &&
        atomic_compare_exchange_strong(&maps[i], &none, m))
        return m;
    SYS2(__NR_munmap, at, sizeof *m);
    return none;
}

static bool claim(struct sd_tcb *t, struct sd_trace *m)
{
    for (u32 i = 0; i < SD_TRACE_CHANNELS; i++) {
        struct sd_trace_channel *c = &m->channel[i];
        if (load_rlx(&c->owner) || load_rlx(&c->tail) - load_acq(&c->head) > SD_TRACE_RECORDS / 2 || !cas_u32(&c->owner, 0, t->tid))
            continue;
        c->pid = (u32)SYS0(__NR_getpid); /* g.pid is the parent's in a child of vfork */
        SYS3(__NR_madvise, m->record[i], sizeof m->record[i], MADV_POPULATE_WRITE); /* a page's first touch costs as much as ten calls */
        t->records = m->record[i];
        t->channel = c;
        struct sd_trace_record r = {.tsc = sd_tsc(), .nr = SD_TRACE_OWNER, .arg = {c->pid, t->tid}};
        sd_trace_call(t, &r);
        return true;
    }
    return false;
}

/* A child of vfork may use what its parent has mapped, and map nothing. */
static bool has_channel(struct sd_tcb *t)
{
    if (likely(t->channel != NULL))
        return true;
    for (u32 i = 0; i < SD_MAX_TRACES && !g.boxed; i++) {
        struct sd_trace *m = t->foreign ? load_acq(&maps[i]) : map(i);
        if (!m)
            break;
        if (claim(t, m))
            return true;
    }
    if (load_rlx(&maps[0]))
        atomic_fetch_add_explicit(&load_rlx(&maps[0])->homeless, 1, memory_order_relaxed);
    return false;
}

void sd_trace_release(struct sd_tcb *t)
{
    struct sd_trace_channel *c = t->channel;

    t->channel = NULL;
    if (c)
        store_rel(&c->owner, 0);
}

/* ----------------------------------------------------------------- records */

static void store(struct sd_tcb *t, u64 tail, const struct sd_trace_record *r)
{
    const u64 *from = (const u64 *)r;
    volatile u64 *to = (volatile u64 *)&t->records[tail & MASK];

    for (u32 i = 0; i < sizeof *r / 8; i++)
        to[i] = from[i];
}

/* Bytes behind a record, around the corner of the ring if need be. */
static void store_bytes(struct sd_tcb *t, u64 tail, const struct iovec *iov, u64 skip, u64 len)
{
    u8 *ring = (u8 *)t->records;
    u64 at = (tail & MASK) * LINE;

    for (; len; iov++) {
        if (skip >= iov->len) {
            skip -= iov->len;
            continue;
        }
        const u8 *from = iov->base + skip;
        u64 n = min_u64(len, iov->len - skip);
        skip = 0;
        len -= n;
        while (n) {
            u64 part = min_u64(n, SD_TRACE_RECORDS * LINE - at);
            sd_copy_user(ring + at, from, part); /* another thread may have unmapped it since */
            from += part;
            n -= part;
            at = (at + part) % (SD_TRACE_RECORDS * LINE);
        }
    }
}

static bool put(struct sd_tcb *t, const struct sd_trace_record *r, const struct iovec *iov, u64 skip, u64 len)
{
    struct sd_trace_channel *c = t->channel;
    u64 lines = 1 + (len + LINE - 1) / LINE, tail;

    do {
        tail = load_rlx(&c->tail);
        if (tail + lines - load_acq(&c->head) > SD_TRACE_RECORDS) { /* [T2] */
            atomic_fetch_add_explicit(&c->dropped, 1, memory_order_relaxed);
            return false;
        }
        store(t, tail, r);
        if (len)
            store_bytes(t, tail + 1, iov, skip, len);
    } while (!sd_cas_local(&c->tail, tail, tail + lines)); /* [T1] */
    return true;
}

void sd_trace_call(struct sd_tcb *t, const struct sd_trace_record *r)
{
    if (has_channel(t))
        put(t, r, NULL, 0, 0);
}

void sd_noted(u32 bit)
{
    struct sd_tcb *t = sd_self();

    if (t)
        t->noted |= bit;
}

/* ------------------------------------------------------------------- bytes */

void sd_saw_open(struct sock *s, int fd)
{
    struct sd_tcb *t = sd_self();
    u8 names[2 * NAME] = {0};
    struct iovec v = {names, sizeof names};
    u32 len = NAME, size = 8;
    u64 cookie = 0;

    if (s->shown || !t || g.boxed || SYS3(__NR_getpeername, fd, names + NAME, &len) < 0)
        return;
    len = NAME;
    if (SYS3(__NR_getsockname, fd, names, &len) < 0 || SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) < 0)
        return;
    struct sd_trace_record r = {.tsc = sd_tsc(), .nr = SD_TRACE_OPEN, .result = sizeof names, .arg = {cookie, s->b->role}};
    if (has_channel(t) && put(t, &r, &v, 0, sizeof names))
        s->shown = cookie;
}

void sd_saw(struct sock *s, u32 dir, u64 pos, const struct iovec *iov, u64 skip, u64 len)
{
    struct sd_tcb *t = sd_self();

    if (!t || !has_channel(t))
        return;
    while (len) {
        u64 n = iov ? min_u64(len, PIECE) : len;
        struct sd_trace_record r = {.tsc = sd_tsc(), .nr = SD_TRACE_DATA, .arg = {s->shown, dir, pos}, .sock = 1 + s->id,
                                    .result = iov ? (i64)n : -(i64)n};
        put(t, &r, iov, skip, iov ? n : 0);
        skip += n;
        pos += n;
        len -= n;
    }
}

static const struct sd_dir *dir_of(const struct sock *s, u32 dir) { return dir ? s->e.rx : s->e.tx; }

void sd_saw_ring(struct sock *s, u32 dir, u64 counter, const struct iovec *iov, u64 skip, u64 len)
{
    sd_saw(s, dir, load_rlx(&dir_of(s, dir)->sw_ring) - 1 + counter, iov, skip, len);
}

/* By the kernel's count, which every process that has the socket can ask for. It has bells in it once the ring was used; behind the ring the
 * program's bytes go on where it ended. A connection that is over is not told of any more: then by our own. */
u64 sd_saw_place(struct sock *s, int fd, u32 dir, u64 len)
{
    i64 end = dir ? sd_rx_pos(s, fd) : sd_tx_pos(s, fd);
    u64 at = end >= (i64)len ? (u64)end - len : load_rlx(&s->tcp_pos[dir]);

    store_rlx(&s->tcp_pos[dir], at + len);
    if (s->seg && load_rlx(dir ? &s->b->rx_mode : &s->b->tx_mode) == SD_MODE_BACK && load_rlx(&dir_of(s, dir)->sw_ring))
        at += load_rlx(&dir_of(s, dir)->sw_ring) + load_rlx(&dir_of(s, dir)->sw_back_at) - load_rlx(&dir_of(s, dir)->sw_back);
    return at;
}

void sd_saw_tcp(struct sock *s, int fd, u32 dir, const struct iovec *iov, u64 skip, u64 len)
{
    sd_saw(s, dir, sd_saw_place(s, fd, dir, len), iov, skip, len);
}

void sd_saw_end(struct sock *s, u32 how)
{
    struct sd_tcb *t = sd_self();
    struct sd_trace_record r = {.tsc = sd_tsc(), .nr = SD_TRACE_END, .arg = {s->shown, how}, .sock = 1 + s->id};

    if (t && s->shown)
        sd_trace_call(t, &r);
}
