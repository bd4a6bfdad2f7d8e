/* SPDX-License-Identifier: Apache-2.0
 *
 * fast_shared.c - the short way of sockets that several threads or processes use: the same as fast.c between sd_take and sd_leave (token.h), and
 * with the socket kept from being unmapped as sd_sock_enter does (fd.c [F1]).
 */
#include "sock/fast.h"

static inline long done(struct sd_tcb *t, struct sock *s, long r)
{
    store_rel(&t->use[0], NULL);
    atomic_signal_fence(memory_order_seq_cst);
    if (unlikely(load_rlx(&s->dead) == 1)) /* [F2] */
        sd_sock_reap(s);
    return r;
}

static inline struct sd_tcb *enter(u64 fd, struct sock *s)
{
    struct sd_tcb *t = sd_self();

    if (unlikely(!t->part || t->uses > 1 || t->marks > 1)) /* the gate has seen that the level is 1 */
        return NULL;
    t->uses = 1;
    store_rel(&t->use[0], s); /* [F1] */
    atomic_signal_fence(memory_order_seq_cst);
    if (likely(*(volatile u32 *)&sd_fdent[fd] == s->ent))
        return t;
    done(t, s, 0); /* [F2] the closing thread may have seen us */
    return NULL;
}

static long put_shared(struct sock *s, u64 fd, const u8 *buf, u64 len)
{
    struct sd_block *b = s->b;
    struct sd_dir *d = s->e.tx;
    struct sd_hold h;
    bool sent = false;

    if (unlikely(b->tx_shut || b->opt_saved & SD_SAVED_CORK || load_rlx(&b->latched) | load_rlx(&d->go_back) | load_rlx(&s->e.rx->prod_hint)))
        return SLOW;
    sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);
    u64 tail = load_rlx(&d->tail);
    bool ring = h.word && !sd_cork_held(d, s->e.bytes) && load_rlx(&b->tx_mode) == SD_MODE_RING;
    /* Base is where we have left it: nobody else has started over. If others have sent, there is less room behind them. */
    bool room = load_rlx(&d->base) == s->e.tx_base && planned(&s->e, tail - s->e.tx_from, len);
    if (likely(ring) && (likely(room) || sd_plan_again(s, len)) && likely(put(&s->e, s->e.tx_place + (tail - s->e.tx_from), buf, len))) {
        sd_tx_dated(&s->e, tail); /* [O1] */
        sent = sd_commit_index(&h, &d->tail, tail, tail + len); /* [R1] */
        b->bytes_shm_tx += sent ? len : 0;
        b->messages_tx += sent;
    }
    sd_leave(&h);
    if (unlikely(!sent))
        return SLOW;
    count_fast(0, len);
    return unlikely(load_rlx(&d->rx_armed) | load_rlx(&s->e.tx_fence)) ? sd_sent_to_sleeper(s, fd, len) : (long)len; /* [W1] */
}

static long get_shared(struct sock *s, u64 fd, u8 *buf, u64 len)
{
    struct sd_block *b = s->b;
    struct sd_dir *d = s->e.rx;
    struct sd_hold h;
    bool got = false;

    if (unlikely(len >> 47)) /* read says EFAULT */
        return SLOW;
    if (unlikely(b->rcvlowat > 1 || load_rlx(&d->sw_back)) || load_rlx(&d->tail) == load_rlx(&d->head))
        return load_rlx(&b->nonblock) ? rx_nothing(s, len) : SLOW; /* empty, most often: not worth the token */
    sd_take(s, SD_DIR_RX, SD_MARK_OP, &h);
    u64 head = load_rlx(&d->head), n = s->e.rx_tail_seen - head;
    if (n < len || n > s->e.bytes) { /* or another process has read further than we have seen */
        n = load_acq(&d->tail) - head; /* [R1] */
        if (likely(n <= s->e.bytes))
            s->e.rx_tail_seen = head + n;
    }
    u64 at = (head - load_rlx(&d->base)) & (s->e.bytes - 1); /* [R3]: after tail */
    bool fits = n - 1 < s->e.bytes; /* neither empty nor broken */
    n = min_u64(n, len);
    sd_rx_here(&s->e, n);
    if (likely(fits && h.word && n - 1 < LARGE && at + n <= s->e.bytes && load_rlx(&b->rx_mode) == SD_MODE_RING) &&
        likely(copy(buf, s->e.rx_ring + at, n))) {
        got = sd_commit_index(&h, &d->head, head, head + n); /* [R2] */
        b->bytes_shm_rx += got ? n : 0;
        b->messages_rx += got;
    }
    sd_leave(&h);
    if (unlikely(!got))
        return SLOW;
    count_fast(1, n);
    return unlikely(load_rlx(&d->tx_armed)) ? sd_taken_from_waiter(s, fd, n) : (long)n; /* [W2] */
}

long sd_shared_write(u64 fd, const u8 *buf, u64 len)
{
    if (unlikely(fd >= ARRAY_LEN(sd_fast_sock) || len - 1 >= LARGE || !plausible(buf)))
        return SLOW;
    struct sock *s = sd_fast_sock[fd];
    struct sd_tcb *t = enter(fd, s);
    return likely(t) ? done(t, s, put_shared(s, fd, buf, len)) : SLOW;
}

long sd_shared_read(u64 fd, u8 *buf, u64 len)
{
    if (unlikely(fd >= ARRAY_LEN(sd_fast_sock) || !plausible(buf)))
        return SLOW;
    struct sock *s = sd_fast_sock[fd];
    struct sd_tcb *t = enter(fd, s);
    return likely(t) ? done(t, s, get_shared(s, fd, buf, len)) : SLOW;
}

/* Without waiting. */
static NOINLINE long shared_now(u64 fd, u8 *buf, u64 len)
{
    long r = sd_shared_read(fd, buf, len);
    struct sock *s;
    struct sd_tcb *t;

    if (r != SLOW || fd >= ARRAY_LEN(sd_fast_sock) || !plausible(buf))
        return r;
    s = sd_fast_sock[fd];
    t = enter(fd, s);
    return t ? done(t, s, rx_nothing(s, len)) : SLOW;
}

long sd_shared_recv(u64 fd, u8 *buf, u64 len, u32 flags, u64 addr)
{
    if (unlikely(unusual(flags, 0, addr)))
        return unusual(flags, MSG_DONTWAIT, addr) ? SLOW : shared_now(fd, buf, len);
    return sd_shared_read(fd, buf, len);
}

long sd_shared_send(u64 fd, const u8 *buf, u64 len, u32 flags, u64 addr)
{
    return unusual(flags, MSG_DONTWAIT | MSG_NOSIGNAL, addr) ? SLOW : sd_shared_write(fd, buf, len);
}
