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
#include "base/user.h"
#include "base/vector.h"
#include "poll/poll.h"
#include "ring/cork.h"
#include "ring/dates.h"
#include "sock/sock.h"

#define SLOW (-4096l)      /* enter.S */
#define SMALL SD_SMALL     /* larger ones are not worth an own loop */
#define LARGE 65536u       /* larger ones do not feel the difference */

static struct sock *sd_fast_sock[65536];

long sd_fast_read(u64 fd, u8 *buf, u64 len);
long sd_fast_write(u64 fd, const u8 *buf, u64 len);
long sd_fast_send(u64 fd, const u8 *buf, u64 len, u32 flags, u64 addr);
long sd_fast_recv(u64 fd, u8 *buf, u64 len, u32 flags, u64 addr);
long sd_shared_read(u64 fd, u8 *buf, u64 len);
long sd_shared_write(u64 fd, const u8 *buf, u64 len);
long sd_shared_send(u64 fd, const u8 *buf, u64 len, u32 flags, u64 addr);
long sd_shared_recv(u64 fd, u8 *buf, u64 len, u32 flags, u64 addr);

/* No string instruction: the program's direction flag stays as it is. False: the program's memory, be it here or there, is not there. */
static inline __attribute__((always_inline)) bool copy_small(u8 *dst, const u8 *src, u64 n)
{
    const u64 *from = (const u64 *)src;
    u64 *to = (u64 *)dst, a, b, c, d;
    u8 byte;

    if (likely(n == 8)) {
        SD_USER_GET(a, from, fault);
        SD_USER_PUT(to, a, fault);
        return true;
    }
    for (; n >= 32; n -= 32, from += 4, to += 4) {
        SD_USER_GET(a, &from[0], fault);
        SD_USER_GET(b, &from[1], fault);
        SD_USER_GET(c, &from[2], fault);
        SD_USER_GET(d, &from[3], fault);
        SD_USER_PUT(&to[0], a, fault);
        SD_USER_PUT(&to[1], b, fault);
        SD_USER_PUT(&to[2], c, fault);
        SD_USER_PUT(&to[3], d, fault);
    }
    for (; n >= 8; n -= 8, from++, to++) {
        SD_USER_GET(a, from, fault);
        SD_USER_PUT(to, a, fault);
    }
    for (dst = (u8 *)to, src = (const u8 *)from; n; n--, dst++, src++) {
        SD_USER_GET(byte, src, fault);
        SD_USER_PUT(dst, byte, fault);
    }
    return true;
    SD_USER_LABEL(fault);
fault:
    return false;
}

/* The direction flag, by what it is for: pushfq takes longer. */
static inline bool goes_down(void)
{
    const u8 *at = sd_fdkind, *from = at;

    __asm__ volatile("lodsb" : "+S"(at) : : "rax", "memory");
    return at < from;
}

/* Where the string instruction pays, so does the look at the program's direction flag, which is as good as never set. */
static NOINLINE bool copy_large(u8 *dst, const u8 *src, u64 n)
{
    return n <= sd_vector_most ? !sd_copy_vector(dst, src, n) : !goes_down() && !sd_copy_user(dst, src, n);
}

static inline __attribute__((always_inline)) bool copy(u8 *dst, const u8 *src, u64 n)
{
    return likely(n <= SMALL) ? copy_small(dst, src, n) : copy_large(dst, src, n);
}

static NOINLINE bool put_past(u8 *dst, const u8 *src, u64 n) { return !goes_down() && !sd_copy_past(dst, src, n); }

static inline __attribute__((always_inline)) bool put(const struct sd_end *e, u8 *dst, const u8 *src, u64 n)
{
    return unlikely(sd_tx_past(e, n)) ? put_past(dst, src, n) : copy(dst, src, n);
}

static inline u64 stack_pointer(void)
{
    u64 sp;

    __asm__("mov %%rsp, %0" : "=r"(sp));
    return sp;
}

/* What the kernel refuses at first sight is left to it. An address that is none at all faults, which SD_USER_GET tells. */
static inline bool plausible(const void *buf)
{
    return (i64)buf >= 4096;
}

static inline bool unusual(u32 flags, u32 known, u64 addr) { return (flags & ~known) | addr; }

static inline __attribute__((always_inline)) void count_fast(u32 dir, u64 n)
{
    struct sd_proc *p = g.proc; /* loaded once */

    p->ctr[SD_CTR_calls_library]++;
    p->sizes[dir][sd_size_class(n)]++;
}

/* After a commit. On their own, so that the ways to them save no registers. */
static NOINLINE long sent_to_sleeper(struct sock *s, u64 fd, u64 n)
{
    if (sd_data_wanted(&s->e))
        sd_wake_reader(s, (int)fd);
    return (long)n;
}

static NOINLINE long taken_from_waiter(struct sock *s, u64 fd, u64 n)
{
    if (sd_room_wanted(&s->e))
        sd_ring_bell(s, (int)fd);
    return (long)n;
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

static inline bool planned(const struct sd_end *e, u64 at, u64 len)
{
    return likely(len <= SMALL) ? at < e->tx_span : at < e->tx_room && len <= e->tx_room - at;
}

/* The plan is used up. Another one, but for when it is time to ask whether the peer is still there (peer_left() in tx.c). */
static NOINLINE bool plan_again(struct sock *s, u64 len)
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
    return unlikely(load_rlx(&d->rx_armed) | load_rlx(&s->e.tx_fence)) ? sent_to_sleeper(s, fd, len) : (long)len; /* [W1] */
slow:
    store_rlx(&s->tx_in, 0);
    return SLOW;
}

static NOINLINE long tx_any(u64 fd, const u8 *buf, u64 len) { return fast_tx(fd, buf, len, false, false); }

static NOINLINE long tx_with_date(u64 fd, const u8 *buf, u64 len) { return fast_tx(fd, buf, len, false, true); }

static NOINLINE long tx_planned(struct sock *s, u64 fd, const u8 *buf, u64 len)
{
    if (likely(plan_again(s, len)))
        return tx_any(fd, buf, len);
    store_rlx(&s->tx_in, 0);
    return SLOW; /* no room, or around the corner */
}

/* EAGAIN, if nothing but bytes could have come, and it is not time to ask the kernel: so rx.c would say, in kernel_has_news() and around it. */
static NOINLINE long rx_nothing(struct sock *s, u64 len)
{
    const struct sd_block *b = s->b;
    const struct sd_dir *d = s->e.rx;
    bool usual = len && b->rcvlowat <= 1 && !((s->kcheck & 1) | load_rlx(&b->latched) | load_rlx(&d->prod_hint)) && load_rlx(&b->rx_mode) == SD_MODE_RING &&
                 !sd_back_published(&s->e) && !sd_cork_pending(&s->e);

    return usual && sd_tsc() - s->checked_tsc <= SD_KERNEL_US * g.tsc_per_us && load_acq(&d->tail) == load_rlx(&d->head) ? -EAGAIN : SLOW;
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
        if (unlikely(load_rlx(&d->sw_back)))
            return SLOW; /* TCP goes on where the ring ends */
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
    return unlikely(load_rlx(&d->tx_armed)) ? taken_from_waiter(s, fd, n) : (long)n; /* [W2] */
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

/* ---- shared: the same between sd_take and sd_leave (token.h), and with the socket kept from being unmapped as sd_sock_enter does (fd.c [F1]) */

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
    store_rel(&t->use[0], NULL);
    return NULL;
}

static inline long done(struct sd_tcb *t, struct sock *s, long r)
{
    store_rel(&t->use[0], NULL);
    atomic_signal_fence(memory_order_seq_cst);
    if (unlikely(load_rlx(&s->dead) == 1)) /* [F2] */
        sd_sock_reap(s);
    return r;
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
    if (likely(ring) && (likely(room) || plan_again(s, len)) && likely(put(&s->e, s->e.tx_place + (tail - s->e.tx_from), buf, len))) {
        sd_tx_dated(&s->e, tail); /* [O1] */
        sent = sd_commit_index(&h, &d->tail, tail, tail + len); /* [R1] */
        b->bytes_shm_tx += sent ? len : 0;
        b->messages_tx += sent;
    }
    sd_leave(&h);
    if (unlikely(!sent))
        return SLOW;
    count_fast(0, len);
    return unlikely(load_rlx(&d->rx_armed) | load_rlx(&s->e.tx_fence)) ? sent_to_sleeper(s, fd, len) : (long)len; /* [W1] */
}

static long get_shared(struct sock *s, u64 fd, u8 *buf, u64 len)
{
    struct sd_block *b = s->b;
    struct sd_dir *d = s->e.rx;
    struct sd_hold h;
    bool got = false;

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
    return unlikely(load_rlx(&d->tx_armed)) ? taken_from_waiter(s, fd, n) : (long)n; /* [W2] */
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

/* ---- */

static void set_kind(u32 fd, u8 from, u8 to)
{
    __atomic_compare_exchange_n(&sd_fdkind[fd], &from, to, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); /* a thread may close it meanwhile */
}

void sd_fast_on(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    bool ring = load_rlx(&b->rx_mode) == SD_MODE_RING || load_rlx(&b->tx_mode) == SD_MODE_RING;
    u8 kind = sd_shared(s) ? SD_KIND_SHARED : SD_KIND_FAST, was = *(volatile u8 *)&sd_fdkind[fd];

    if (likely(was == kind) || !ring || !was || (g.cfg->without & SD_WITHOUT_short) || sd_tracing(SD_TRACE_CALLS | SD_TRACE_BYTES) || b->rcvlowat > 1 ||
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
