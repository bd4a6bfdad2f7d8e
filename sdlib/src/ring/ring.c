/* SPDX-License-Identifier: Apache-2.0
 *
 * ring.c - bytes from one end to the other.
 *
 * Memory order. Two edges, each labelled at both ends:
 *   [R1] tail: the producer stores bytes, then releases tail; the consumer acquires tail, then reads the bytes.
 *   [R2] head: the consumer reads bytes, then releases head; the producer acquires head, then overwrites the bytes.
 *   [R3] base: the producer moves it only when it has acquired a head that is its own tail, so when nothing is unread, and stores it before
 *        the tail of the bytes that lie there; the consumer acquires that tail, then loads base. While it has unread bytes base stays.
 * On x86 a plain store is a release; sd_cas_local() is a plain store to other processors (no lock prefix), so it carries the edge too.
 *
 * Trust. The peer can write any value into any word. Indices are only used after `tail - head <= bytes` has been seen to hold and are
 * masked for every access, so no value leads outside of the ring; a peer that lies garbles its own connection, or breaks it (SD_BROKEN).
 */
#include "base/user.h"
#include "base/vector.h"
#include "ring.h"

void sd_seg_init(struct sd_seg *seg, u32 ring_bytes)
{
    sd_zero(seg, sizeof *seg);
    seg->version = SD_ABI_VERSION;
    seg->ring_bytes = ring_bytes;
    /* Armed from the start: the first byte in the ring always rings, since its consumer cannot be looking there yet. */
    store_rlx(&seg->dir[0].rx_armed, 1);
    store_rlx(&seg->dir[1].rx_armed, 1);
    seg->magic = SD_SEG_MAGIC;
}

u32 sd_has_rdpid, sd_vector_most;

/* Asked once: in a virtual machine cpuid goes to the hypervisor. */
static bool is_amd(void)
{
    static _Atomic u32 known; /* 1: no, 2: yes */
    u32 eax = 0, ebx, ecx = 0, edx;

    if (!load_rlx(&known)) {
        __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
        store_rlx(&known, ebx == 0x68747541 ? 2 : 1); /* "Auth", of AuthenticAMD */
    }
    return load_rlx(&known) == 2;
}

int sd_end_open(struct sd_end *e, struct sd_seg *seg, u64 file_bytes, u32 side)
{
    u64 n = seg->ring_bytes; /* read once: the peer may change it under us */
    u8 *rings = (u8 *)seg + SD_SEG_HDR_BYTES;

    if (side > 1 || seg->magic != SD_SEG_MAGIC || seg->version != SD_ABI_VERSION)
        return SD_BROKEN;
    if (n < SD_RING_MIN || n > SD_RING_MAX || (n & (n - 1)) || file_bytes != SD_SEG_HDR_BYTES + 2 * n)
        return SD_BROKEN;
    e->tx = &seg->dir[side];
    e->rx = &seg->dir[!side];
    e->tx_ring = rings + side * n;
    e->rx_ring = rings + !side * n;
    e->bytes = n;
    e->tx_bytes = n;
    e->rx_tail_seen = 0;
    e->tx_head_seen = 0;
    e->tx_base = load_rlx(&e->tx->base);
    e->tx_checked = 0;
    e->tx_dates_head = e->tx_dates = 0;
    sd_tx_unplan(e);
    e->tx_window = SD_RING_WINDOW;
    e->tx_past = is_amd(); /* measured there only */
    sd_vector_most = SD_VECTOR_MOST(e->tx_past);
    store_rlx(&e->tx_fence, 0);
    if (load_rlx(&e->tx->prod_fenced)) { /* an earlier image of this process has left it */
        store_rlx(&e->tx->prod_fenced, 0);
        sd_fence();
    }
    return 0;
}

/* Where several readers or writers use this end, an index that one of them moves makes no sense beside the other side's, loaded a moment before
 * or after: both are loaded again while that goes on. Not for ever: the other side may play tricks. */
#define TRIES 1000

i64 sd_rx_avail(struct sd_end *e)
{
    u64 head = load_rlx(&e->rx->head);
    u64 n = e->rx_tail_seen - head;

    /* The remembered tail may lie behind a head that another process of ours has moved: then n is huge and we look again. */
    if (n == 0 || n > e->bytes) {
        for (u32 i = 0; i < TRIES; i++) {
            head = load_rlx(&e->rx->head);
            e->rx_tail_seen = load_acq(&e->rx->tail); /* [R1] */
            n = e->rx_tail_seen - head;
            if (likely(n <= e->bytes) || load_rlx(&e->rx->head) == head)
                break;
        }
        if (unlikely(n > e->bytes))
            return SD_BROKEN;
    }
    return (i64)n;
}

i64 sd_rx_copy(struct sd_end *e, u8 *dst, u64 n, u64 skip)
{
    i64 avail = sd_rx_avail(e);
    u64 at, first;

    if (avail < 0)
        return SD_BROKEN;
    if (skip + n > (u64)avail) { /* the remembered tail may be old: look once more before giving less */
        u64 head = load_rlx(&e->rx->head);
        e->rx_tail_seen = load_acq(&e->rx->tail); /* [R1] */
        avail = (i64)(e->rx_tail_seen - head);
        if (unlikely((u64)avail > e->bytes))
            return SD_BROKEN;
    }
    if (skip >= (u64)avail)
        return 0;
    n = min_u64(n, (u64)avail - skip);
    sd_rx_here(e, n);
    at = (load_rlx(&e->rx->head) + skip - load_rlx(&e->rx->base)) & (e->bytes - 1); /* [R3] */
    first = min_u64(n, e->bytes - at);
    if (unlikely(sd_copy_user(dst, e->rx_ring + at, first)))
        return SD_FAULT;
    if (first < n && unlikely(sd_copy_user(dst + first, e->rx_ring, n - first)))
        return SD_FAULT;
    return (i64)n;
}

bool sd_rx_commit(struct sd_end *e, u64 from, u64 n)
{
    return sd_cas_local(&e->rx->head, from, from + n); /* [R2] */
}

NOINLINE i64 sd_tx_look(struct sd_end *e)
{
    u64 head = 0, used = 0;

    for (u32 i = 0; i < TRIES; i++) {
        head = load_acq(&e->tx->head); /* [R2] [W2] */
        used = load_acq(&e->tx->tail) - head;
        if (likely(used <= e->bytes) || load_rlx(&e->tx->head) == head)
            break;
    }
    if (unlikely(used > e->bytes))
        return SD_BROKEN;
    e->tx_head_seen = head;
    return used < e->tx_bytes ? (i64)(e->tx_bytes - used) : 0;
}

i64 sd_tx_room(struct sd_end *e)
{
    u64 used = load_rlx(&e->tx->tail) - e->tx_head_seen;

    return likely(used < e->tx_bytes) ? (i64)(e->tx_bytes - used) : sd_tx_look(e);
}

void sd_tx_most(struct sd_end *e, u64 most)
{
    e->tx_bytes = max_u64(min_u64(most, e->bytes), SD_RING_MIN);
    store_rlx(&e->tx->tx_most, e->tx_bytes < e->bytes ? (u32)e->tx_bytes : 0); /* before any arming [W2] */
    sd_tx_unplan(e);
}

void sd_tx_begin(struct sd_end *e)
{
    u64 tail = load_rlx(&e->tx->tail);

    sd_tx_unplan(e);
    e->tx_base = load_rlx(&e->tx->base); /* who shares this end may have moved it */
    if (likely(tail - e->tx_base < e->tx_window || tail - e->tx_checked < e->tx_window))
        return;
    e->tx_checked = tail;
    if (sd_tx_look(e) < 0 || e->tx_head_seen != tail)
        return;
    store_rel(&e->tx->base, tail); /* [R3] */
    e->tx_base = tail;
}

/* Small ones are many, and after a plan the peer's death is not noticed until it is used up. */
#define SMALL_AT_ONCE 4096u

void sd_tx_plan(struct sd_end *e, u64 n)
{
    u64 tail = load_rlx(&e->tx->tail), at = (tail - e->tx_base) & (e->bytes - 1), used = tail - e->tx_head_seen;
    u64 free = used < e->tx_bytes ? e->tx_bytes - used : 0, room = min_u64(e->bytes - at, free), spare = sd_tx_spare(e);

    e->tx_from = tail;
    e->tx_place = e->tx_ring + at;
    e->tx_room = min_u64(n, min_u64(room, free > spare ? free - spare : 0));
    e->tx_span = room >= sd_tx_least(e) + SD_SMALL ? min_u64(min_u64(n, SMALL_AT_ONCE), room - SD_SMALL) : 0;
}

static u64 put(const struct sd_end *e, u8 *to, const u8 *from, u64 n)
{
    return sd_tx_past(e, n) ? sd_copy_past(to, from, n) : sd_copy_user(to, from, n);
}

i64 sd_tx_copy(struct sd_end *e, const u8 *src, u64 n, u64 skip)
{
    i64 room = sd_tx_room(e);
    u64 at, first;

    if (!skip)
        sd_tx_begin(e);

    if (room >= 0 && skip + n > (u64)room)
        room = sd_tx_look(e); /* the remembered head may be old: look once more before taking less */
    if (unlikely(room < 0))
        return SD_BROKEN;
    if (skip >= (u64)room)
        return 0;
    n = min_u64(n, (u64)room - skip);
    at = (load_rlx(&e->tx->tail) + skip - e->tx_base) & (e->bytes - 1);
    first = min_u64(n, e->bytes - at);
    if (unlikely(put(e, e->tx_ring + at, src, first)))
        return SD_FAULT;
    if (first < n && unlikely(put(e, e->tx_ring, src + first, n - first)))
        return SD_FAULT;
    return (i64)n;
}

bool sd_tx_commit(struct sd_end *e, u64 from, u64 n)
{
    return sd_cas_local(&e->tx->tail, from, from + n); /* [R1] */
}
