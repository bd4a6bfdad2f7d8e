/* SPDX-License-Identifier: Apache-2.0
 *
 * ring.h - one end of a segment: its producer ring, its consumer ring, arming and the words of the switch.
 *
 * Nothing in here makes a system call or knows of descriptors, so that all of it is driven from Python and by the sanitizers as it is.
 */
#ifndef SD_RING_H
#define SD_RING_H

#include "base/base.h"

/* Private to this end: the peer cannot change where we read and write. */
struct sd_end {
    struct sd_dir *rx, *tx;
    u8 *rx_ring, *tx_ring;
    u64 bytes; /* of each ring, a power of two */
    u64 tx_bytes; /* so many of ours may be unread: all of them, or less if the program has chosen a small buffer */
    u64 rx_tail_seen, tx_head_seen; /* last index read from the other side: avoids its cache line */
    u64 tx_base, tx_checked; /* of the producer: its own base, and where it last looked for an empty ring */
    u64 tx_window;           /* SD_RING_WINDOW */
    u64 tx_from, tx_span; /* a message of SD_SMALL bytes at most may begin at each of the span counters from tx_from on, */
    u8 *tx_place;         /* the first of which lies here, without a look at the other side; span 0: look */
    u64 tx_room;          /* larger ones must end within so many bytes from there */
    u64 tx_dates_head;      /* head, as it was known when there was room for a date (dates.h) */
    u32 tx_dates;           /* how many there were */
    bool tx_past;         /* see SD_PAST_BYTES; off where it does not pay */
    _Atomic u32 tx_fence; /* messages that still fence, 0: none does; SD_FENCE_ENDS: being switched off (bell.h, [W3]) */
    u32 tx_full;          /* where a sender was told that there is no room, + 1 */
};

/* From here on a producer stores past the caches if its consumer runs on another CPU. The lines that the consumer has read are still in that CPU's
 * cache, and an ordinary store has to get each of them out of there first: 28 ns a line on an AMD EPYC, 28 us for 64 KiB, where these take 2. */
#ifndef SD_PAST_BYTES
#define SD_PAST_BYTES 4096u
#endif

static inline void sd_rx_here(const struct sd_end *e, u64 n)
{
    u32 here;

    if (unlikely(n >= SD_PAST_BYTES) && load_rlx(&e->rx->cons_cpu) != (here = 1 + sd_cpu()))
        store_rlx(&e->rx->cons_cpu, here);
}

/* So many bytes are unread at most, as the producer says. A false word costs nobody but its own wake-up; what is read never depends on it. */
static inline u64 sd_rx_most(const struct sd_end *e)
{
    u32 most = load_rlx(&e->rx->tx_most);

    return most && most < e->bytes ? most : e->bytes;
}

/* TCP calls a socket writable when a third of its buffer is free; we, a quarter. */
static inline bool sd_tx_writable(const struct sd_end *e, u64 room)
{
    return room * 4 >= e->tx_bytes;
}

/* A kernel that has taken the end of a large message takes a few bytes more, and programs count on it (libuv's queue of writes). So much of the ring
 * is left free by larger messages that do not wait; smaller ones may have it, unless one was told that there is no room: the kernel says so of any
 * size then, until the reader has made some. */
static inline u64 sd_tx_spare(const struct sd_end *e)
{
    return e->tx_bytes / 64;
}

static inline bool sd_tx_refused(const struct sd_end *e)
{
    return e->tx_full == (u32)load_rlx(&e->tx->tail) + 1;
}

/* So much must be free for anything at all. */
static inline u64 sd_tx_least(const struct sd_end *e)
{
    return sd_tx_refused(e) ? sd_tx_spare(e) + 1 : 1;
}

/* 1 + the CPU that we are on, which the reader of what we send is told, too. */
static inline u32 sd_tell_cpu(const struct sd_end *e)
{
    u32 me = sd_cpu() + 1;

    if (load_rlx(&e->tx->prod_cpu) != me)
        store_rlx(&e->tx->prod_cpu, me);
    return me;
}

static inline bool sd_tx_past(const struct sd_end *e, u64 n)
{
    u32 there;

    return n >= SD_PAST_BYTES && e->tx_past && (there = load_rlx(&e->tx->cons_cpu)) && there != 1 + sd_cpu();
}

#define SD_BROKEN (-1) /* an index that an honest peer cannot write */
#define SD_FAULT (-2)  /* the program's memory is not there (base/user.h); nothing is committed */

void sd_seg_init(struct sd_seg *seg, u32 ring_bytes);
/* Checks a mapped segment of file_bytes; fills e. 0 or SD_BROKEN. */
int sd_end_open(struct sd_end *e, struct sd_seg *seg, u64 file_bytes, u32 side);
/* Bytes that can be read, or SD_BROKEN. */
i64 sd_rx_avail(struct sd_end *e);
/* Copies up to n bytes out from `skip` bytes behind the head, without consuming. Returns the count, SD_BROKEN or SD_FAULT. */
i64 sd_rx_copy(struct sd_end *e, u8 *dst, u64 n, u64 skip);
/* Consumes n bytes after sd_rx_copy looked at them from head `from`; false if a signal handler has consumed meanwhile: copy again. */
bool sd_rx_commit(struct sd_end *e, u64 from, u64 n);
/* Room for bytes, or SD_BROKEN. May be less than there is by now, but is never 0 when there is some. */
i64 sd_tx_room(struct sd_end *e);
/* The same, exact: reads the peer's word. */
i64 sd_tx_look(struct sd_end *e);
/* Before the first byte of a message, holding the direction: chooses its place. sd_tx_copy does it when skip is 0. */
void sd_tx_begin(struct sd_end *e);
#define SD_PLAN_MESSAGES 32u /* room is planned for as many of the size of the first */

#ifndef SD_SMALL
#define SD_SMALL 256u
#endif
/* From here on so many bytes are unread at most, as far as the ring holds them; SD_RING_MIN at least. */
void sd_tx_most(struct sd_end *e, u64 most);
/* Lets n bytes of messages go behind the tail, of small ones less, as far as there is contiguous room. sd_tx_begin ends it. */
void sd_tx_plan(struct sd_end *e, u64 n);
/* The next message is to go the ordinary way, which looks. */
static inline void sd_tx_unplan(struct sd_end *e) { e->tx_span = e->tx_room = 0; }
/* Stores up to n bytes `skip` behind the tail, unpublished. Returns the count, SD_BROKEN or SD_FAULT. */
i64 sd_tx_copy(struct sd_end *e, const u8 *src, u64 n, u64 skip);
bool sd_tx_commit(struct sd_end *e, u64 from, u64 n);

#endif
