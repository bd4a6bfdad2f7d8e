/* SPDX-License-Identifier: Apache-2.0
 *
 * fast.h - what both short ways are made of: that of a process which has its connection for itself (fast.c), and all others' (fast_shared.c).
 *
 * Some of it is called in the middle of a way. Such functions are static, though each way then has its own: the compiler knows what registers they
 * leave alone, and saves none for them (four instructions a message).
 */
#ifndef SD_FAST_H
#define SD_FAST_H

#include "base/user.h"
#include "base/vector.h"
#include "poll/poll.h"
#include "ring/cork.h"
#include "ring/dates.h"
#include "sock/sock.h"

#define SLOW (-4096l)      /* enter.S */
#define SMALL SD_SMALL     /* larger ones are not worth an own loop */
#define LARGE 65536u       /* larger ones do not feel the difference */

extern struct sock *sd_fast_sock[65536];

/* Called by enter.S with the call's own arguments. */
long sd_fast_read(u64 fd, u8 *buf, u64 len);
long sd_fast_write(u64 fd, const u8 *buf, u64 len);
long sd_fast_send(u64 fd, const u8 *buf, u64 len, u32 flags, u64 addr);
long sd_fast_recv(u64 fd, u8 *buf, u64 len, u32 flags, u64 addr);
long sd_shared_read(u64 fd, u8 *buf, u64 len);
long sd_shared_write(u64 fd, const u8 *buf, u64 len);
long sd_shared_send(u64 fd, const u8 *buf, u64 len, u32 flags, u64 addr);
long sd_shared_recv(u64 fd, u8 *buf, u64 len, u32 flags, u64 addr);

/* fast.c */
long sd_sent_to_sleeper(struct sock *s, u64 fd, u64 n);
long sd_taken_from_waiter(struct sock *s, u64 fd, u64 n);
bool sd_plan_again(struct sock *s, u64 len);

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

static NOINLINE bool put_past(u8 *dst, const u8 *src, u64 n) { return !goes_down() && !sd_copy_past(dst, src, n); }

static inline __attribute__((always_inline)) bool copy(u8 *dst, const u8 *src, u64 n)
{
    return likely(n <= SMALL) ? copy_small(dst, src, n) : copy_large(dst, src, n);
}

static inline __attribute__((always_inline)) bool put(const struct sd_end *e, u8 *dst, const u8 *src, u64 n)
{
    return unlikely(sd_tx_past(e, n)) ? put_past(dst, src, n) : copy(dst, src, n);
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

static inline bool planned(const struct sd_end *e, u64 at, u64 len)
{
    return likely(len <= SMALL) ? at < e->tx_span : at < e->tx_room && len <= e->tx_room - at;
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

#endif
