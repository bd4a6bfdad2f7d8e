/* SPDX-License-Identifier: Apache-2.0
 *
 * fast.c - messages between two ends that are both awake, in as few instructions as it takes.
 *
 * A descriptor is *fast* (SD_KIND_FAST in sd_fdkind[]) while its connection is on the ring in a direction at least, nobody shares the socket and the
 * process has one thread; or *shared* (SD_KIND_SHARED) where that is not so. The gate then calls one of the functions below with the call's own arguments. Each either does all of the call or
 * answers SD_SLOW having done nothing; the call then starts over on the ordinary way (calls.c), which knows all the rest. So the conditions here are
 * those under which tx.c and rx.c would do the same: keep them together.
 *
 * sd_tick() makes a descriptor fast, sd_fast_off() ends it for all of them, before a fork and before a thread; the words of the block and of the ring that can
 * change at any time are looked at each time. A signal handler may come in anywhere and use the same connection: the index is moved by sd_cas_local,
 * and if it has moved meanwhile the call starts over.
 */
#include "sock/fast.h"

struct sock *sd_fast_sock[65536];

/* After a commit. On their own, so that the ways to them save no registers. */
long sd_sent_to_sleeper(struct sock *s, u64 fd, u64 n)
{
    if (sd_data_wanted(&s->e))
        sd_wake_reader(s, (int)fd);
    return (long)n;
}

long sd_taken_from_waiter(struct sock *s, u64 fd, u64 n)
{
    if (sd_room_wanted(&s->e))
        sd_ring_bell(s, (int)fd);
    return (long)n;
}

/* The plan is used up. Another one, but for when it is time to ask whether the peer is still there (sd_peer_left() in tx.c). */
bool sd_plan_again(struct sock *s, u64 len)
{
    struct sd_end *e = &s->e;

    if (s->probed || sd_tsc() - s->asked_tsc >= SD_LOOK_US * g.tsc_per_us || s->b->opt_saved & SD_SAVED_CORK || sd_cork_held(e->tx, e->bytes))
        return false; /* or others are to be held back, or are already */
    sd_tx_begin(e);
    if (e->tx_bytes - (load_rlx(&e->tx->tail) - e->tx_head_seen) < len + SMALL && sd_tx_look(e) < 0)
        return false;
    sd_tx_plan(e, len * SD_PLAN_MESSAGES);
    return planned(e, 0, len);
}

static inline u64 stack_pointer(void)
{
    u64 sp;

    __asm__("mov %%rsp, %0" : "=r"(sp));
    return sp;
}

/* Two words that lie side by side, in one look. */
static inline u64 load_pair(const _Atomic u32 *first)
{
#ifdef SD_HOSTED
    return load_rlx(&first[0]) | (u64)load_rlx(&first[1]) << 32;
#else
    typedef u64 __attribute__((may_alias)) pair;

    return *(const volatile pair *)first;
#endif
}

static long tx_planned(struct sock *s, u64 fd, const u8 *buf, u64 len);

static long tx_with_date(u64 fd, const u8 *buf, u64 len);

static inline __attribute__((always_inline)) long fast_tx(u64 fd, const u8 *buf, u64 len, bool word, bool dated)
{
    if (unlikely(fd >= ARRAY_LEN(sd_fast_sock) || (!word && len - 1 >= LARGE) || !plausible(buf)))
        return SLOW;
    struct sock *s = sd_fast_sock[fd];
    struct sd_block *b = s->b;
    struct sd_dir *d = s->e.tx;
    u64 sp = stack_pointer(), tail, at;
    store_rlx(&s->tx_in, sp); /* a handler that sends on s from now on must not use the place that we write: tx.c, tx_nested() */
    atomic_signal_fence(memory_order_seq_cst);
    tail = load_rlx(&d->tail);
    at = tail - s->e.tx_from; /* the peer can write the tail, too: what it has made of it is seen here */
    u64 asked = dated ? load_rlx(&d->go_back) : load_pair(&d->go_back);
    if (unlikely(load_pair(&b->tx_mode) != SD_MODE_RING || load_pair(&b->latched) | asked | load_rlx(&s->e.rx->prod_hint))) {
        if (!dated && (asked >> 32))
            return tx_with_date(fd, buf, word ? 8 : len);
        goto slow; /* or tx_shut, or tx_wait */
    }
    if (unlikely(!planned(&s->e, at, len)))
        return tx_planned(s, fd, buf, len);
    if (unlikely(!put(&s->e, s->e.tx_place + at, buf, word ? 8 : len)))
        goto slow; /* says EFAULT */
    if (dated)
        sd_tx_date(&s->e, tail); /* [O1] */
    if (unlikely(!sd_cas_local(&s->tx_in, sp, 0) || !sd_cas_local(&d->tail, tail, tail + len))) /* [R1] */
        return SLOW;
    b->bytes_shm_tx += len;
    b->messages_tx++;
    count_fast(0, word ? 8 : len);
    return unlikely(load_rlx(&d->rx_armed) | load_rlx(&s->e.tx_fence)) ? sd_sent_to_sleeper(s, fd, len) : (long)len; /* [W1] */
slow:
    store_rlx(&s->tx_in, 0);
    return SLOW;
}

static NOINLINE long tx_any(u64 fd, const u8 *buf, u64 len) { return fast_tx(fd, buf, len, false, false); }

static NOINLINE long tx_with_date(u64 fd, const u8 *buf, u64 len) { return fast_tx(fd, buf, len, false, true); }

static NOINLINE long tx_planned(struct sock *s, u64 fd, const u8 *buf, u64 len)
{
    if (likely(sd_plan_again(s, len)))
        return tx_any(fd, buf, len);
    store_rlx(&s->tx_in, 0);
    return SLOW; /* no room, or around the corner */
}

static NOINLINE long rx_empty(struct sock *s, u64 fd, u8 *buf, u64 len);

/* A word is the same with everything known that can be. */
static inline __attribute__((always_inline)) long fast_rx(u64 fd, u8 *buf, u64 len, bool word, bool wait)
{
    if (unlikely(fd >= ARRAY_LEN(sd_fast_sock) || !plausible(buf)))
        return SLOW;
    struct sock *s = sd_fast_sock[fd];
    struct sd_block *b = s->b;
    struct sd_dir *d = s->e.rx;
    u64 head = load_rlx(&d->head), n = s->e.rx_tail_seen - head, least = word ? len : 1, at;
    if (n < len) {
        n = load_acq(&d->tail) - head; /* [R1] */
        if (unlikely(load_rlx(&d->sw_back)) || unlikely(len >> 47))
            return SLOW; /* TCP goes on where the ring ends; read says EFAULT */
        if (unlikely(n - least >= s->e.bytes)) /* not exact where it is broken: `at` is masked, and later the ordinary way finds out */
            return n ? SLOW : wait ? rx_empty(s, fd, buf, len) : rx_nothing(s, len); /* or broken */
        s->e.rx_tail_seen = head + n;
    }
    at = (head - load_rlx(&d->base)) & (s->e.bytes - 1); /* [R3]: after tail */
    n = word ? len : min_u64(n, len);
    if (unlikely((!word && n - 1 >= LARGE) || at + n > s->e.bytes || load_rlx(&b->rx_mode) != SD_MODE_RING))
        return SLOW; /* much, around the corner, or nothing was asked for */
    if (!word)
        sd_rx_here(&s->e, n);
    if (unlikely(!copy(buf, s->e.rx_ring + at, word ? 8 : n)))
        return SLOW; /* says EFAULT */
    if (unlikely(!sd_cas_local(&d->head, head, head + n))) /* [R2] */
        return SLOW;
    b->bytes_shm_rx += n;
    b->messages_rx++;
    count_fast(1, word ? 8 : n);
    return unlikely(load_rlx(&d->tx_armed)) ? sd_taken_from_waiter(s, fd, n) : (long)n; /* [W2] */
}

static NOINLINE long rx_any(u64 fd, u8 *buf, u64 len) { return fast_rx(fd, buf, len, false, true); }
static NOINLINE long rx_now(u64 fd, u8 *buf, u64 len) { return fast_rx(fd, buf, len, false, false); } /* without waiting */

/* The peer can only run on this CPU, and it is all that we wait for: the way through rx.c, on pages that this process has not used since it last
 * ran, would be longer than all the rest. A handler may close the descriptor while others run. */
static NOINLINE long rx_empty(struct sock *s, u64 fd, u8 *buf, u64 len)
{
    u32 tries = 0;
    bool again = true;

    if (load_rlx(&s->b->nonblock))
        return rx_nothing(s, len);
    if (load_rlx(&s->b->rx_mode) != SD_MODE_RING || load_rlx(&s->b->latched) || sd_cork_pending(&s->e) || !sd_gives_way(s))
        return SLOW;
    SYS0(__NR_sched_yield); /* sd_yield() reads the time */
    for (;;) {
        if (*(volatile u8 *)&sd_fdkind[fd] != SD_KIND_FAST || sd_fast_sock[fd] != s)
            return SLOW;
        if (sd_yield_won(sd_rx_news(&s->e, 0))) {
            long r = rx_now(fd, buf, len);
            return r == -EAGAIN ? SLOW : r; /* a handler has taken it */
        }
        if (!again)
            break;
        again = sd_yield(&tries);
    }
    s->yielded = true;
    return SLOW;
}

long sd_fast_read(u64 fd, u8 *buf, u64 len)
{
    return len == 8 ? fast_rx(fd, buf, 8, true, true) : rx_any(fd, buf, len);
}

long sd_fast_write(u64 fd, const u8 *buf, u64 len)
{
    return len == 8 ? fast_tx(fd, buf, 8, true, false) : tx_any(fd, buf, len);
}

long sd_fast_recv(u64 fd, u8 *buf, u64 len, u32 flags, u64 addr)
{
    if (unlikely(unusual(flags, 0, addr)))
        return unusual(flags, MSG_DONTWAIT, addr) ? SLOW : rx_now(fd, buf, len);
    return sd_fast_read(fd, buf, len);
}

long sd_fast_send(u64 fd, const u8 *buf, u64 len, u32 flags, u64 addr)
{
    return unusual(flags, MSG_DONTWAIT | MSG_NOSIGNAL, addr) ? SLOW : sd_fast_write(fd, buf, len);
}

static void set_kind(u32 fd, u8 from, u8 to)
{
    __atomic_compare_exchange_n(&sd_fdkind[fd], &from, to, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); /* a thread may close it meanwhile */
}

void sd_fast_on(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    bool ring = load_rlx(&b->rx_mode) == SD_MODE_RING || load_rlx(&b->tx_mode) == SD_MODE_RING;
    u8 kind = sd_shared(s) ? SD_KIND_SHARED : SD_KIND_FAST, was = *(volatile u8 *)&sd_fdkind[fd];

    if (likely(was == kind) || !ring || !was || (g.cfg->without & SD_WITHOUT_short) || sd_tracing(SD_TRACE_CALLS | SD_TRACE_BYTES) || b->rcvlowat > 1 || s->watched ||
        (u32)fd >= ARRAY_LEN(sd_fast_sock) || sd_sock_of((u32)fd) != s)
        return;
    if (kind == SD_KIND_FAST) { /* another process may have sent meanwhile, or read past what we have seen */
        sd_tx_unplan(&s->e);
        s->e.rx_tail_seen = load_rlx(&s->e.rx->head);
    }
    sd_fast_sock[fd] = s;
    set_kind((u32)fd, was, kind);
}

void sd_fast_off(void)
{
    for (u32 fd = 0; fd < sd_fd_top() && fd < ARRAY_LEN(sd_fast_sock); fd++) {
        u8 kind = *(volatile u8 *)&sd_fdkind[fd];
        if (kind == SD_KIND_FAST || kind == SD_KIND_SHARED) /* else the page stays as it is: a forked child shares it */
            set_kind(fd, kind, SD_KIND_OURS);
    }
}
