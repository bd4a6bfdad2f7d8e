/* SPDX-License-Identifier: Apache-2.0
 *
 * end.c - sd_py.h: the ring's functions in types that cffi knows. Hosted builds only (Python, sanitizers); never in the image.
 *
 * No decision is taken here. What a test drives is what the library runs.
 */
#include <stdlib.h>
#include "ring/bell.h"
#include "ring/ring.h"
#include "ring/switch.h"
#include "ring/vec.h"
#include "sd_py.h"

struct sd_py_end {
    struct sd_end e;
    struct sd_seg *seg;
    u32 side;
    _Atomic u32 waiting; /* what struct sd_block.tx_wait is in the library */
};

_Static_assert(SD_PY_BROKEN == SD_BROKEN, "one number for a broken ring");
_Static_assert((int)SD_PY_TCP == SD_SW_TCP && (int)SD_PY_DRAIN == SD_SW_DRAIN && (int)SD_PY_RING == SD_SW_RING &&
                   (int)SD_PY_BAD == SD_SW_BROKEN, "steps");
_Static_assert(sizeof(struct sd_py_buffer) == sizeof(struct iovec) && offsetof(struct sd_py_buffer, bytes) == offsetof(struct iovec, len),
               "buffer is an iovec");

void sd_py_format(void *segment, uint32_t ring_bytes)
{
    sd_seg_init(segment, ring_bytes);
}

void sd_py_start_at(void *segment, uint32_t dir, uint64_t counter)
{
    struct sd_dir *d = &((struct sd_seg *)segment)->dir[dir & 1];

    store_rlx(&d->head, counter);
    store_rlx(&d->tail, counter);
    store_rlx(&d->held, counter);
}

struct sd_py_end *sd_py_open(void *segment, uint64_t file_bytes, uint32_t side)
{
    struct sd_py_end *end = calloc(1, sizeof *end);

    if (end && sd_end_open(&end->e, segment, file_bytes, side) < 0) {
        free(end);
        return NULL;
    }
    if (end) {
        end->seg = segment;
        end->side = side;
        /* Whoever starts at another counter than 0 must not find a distance to it. */
        end->e.rx_tail_seen = load_rlx(&end->e.rx->head);
        end->e.tx_head_seen = load_rlx(&end->e.tx->head);
    }
    return end;
}

void sd_py_close(struct sd_py_end *end)
{
    free(end);
}

/* ---- bytes */

int64_t sd_py_readable(struct sd_py_end *end)
{
    return sd_rx_avail(&end->e);
}

int64_t sd_py_writable(struct sd_py_end *end)
{
    return sd_tx_look(&end->e);
}

int64_t sd_py_gather(struct sd_py_end *end, struct sd_py_buffer *buffers, uint64_t count, uint64_t skip)
{
    u64 from = load_rlx(&end->e.tx->tail);
    i64 put = sd_tx_gather(&end->e, (const struct iovec *)buffers, count, skip, 0, ~(u64)0);

    if (put > 0)
        sd_tx_commit(&end->e, from, (u64)put);
    return put;
}

int64_t sd_py_scatter(struct sd_py_end *end, struct sd_py_buffer *buffers, uint64_t count, uint64_t skip)
{
    u64 from = load_rlx(&end->e.rx->head);
    i64 got = sd_rx_scatter(&end->e, (const struct iovec *)buffers, count, skip, 0);

    if (got > 0)
        sd_rx_commit(&end->e, from, (u64)got);
    return got;
}

int64_t sd_py_put(struct sd_py_end *end, const uint8_t *bytes, uint64_t n)
{
    struct sd_py_buffer one = {(uint8_t *)bytes, n};

    return sd_py_gather(end, &one, 1, 0);
}

int64_t sd_py_take(struct sd_py_end *end, uint8_t *bytes, uint64_t n)
{
    struct sd_py_buffer one = {bytes, n};

    return sd_py_scatter(end, &one, 1, 0);
}

int64_t sd_py_peek(struct sd_py_end *end, uint8_t *bytes, uint64_t n)
{
    return sd_rx_copy(&end->e, bytes, n, 0);
}

/* ---- sleeping and waking */

bool sd_py_rx_arm(struct sd_py_end *end) { return sd_rx_arm(&end->e); }
void sd_py_rx_disarm(struct sd_py_end *end) { sd_rx_disarm(&end->e); }
bool sd_py_rx_news(struct sd_py_end *end) { return sd_rx_news(&end->e, 0); }
void sd_py_tx_arm(struct sd_py_end *end) { sd_tx_arm(&end->e, &end->waiting); }
void sd_py_tx_disarm(struct sd_py_end *end) { sd_tx_disarm(&end->e, &end->waiting); }
bool sd_py_data_wanted(struct sd_py_end *end) { return sd_data_wanted(&end->e); }
bool sd_py_fence_begin(struct sd_py_end *end) { return sd_fence_begin(&end->e); }
void sd_py_fence_say(struct sd_py_end *end) { sd_fence_say(&end->e); }
void sd_py_fence_end(struct sd_py_end *end) { sd_fence_end(&end->e); }
bool sd_py_room_wanted(struct sd_py_end *end) { return sd_room_wanted(&end->e); }
void sd_py_tx_most(struct sd_py_end *end, uint64_t most) { sd_tx_most(&end->e, most); }
bool sd_py_bell_take(struct sd_py_end *end) { return sd_bell_take(&end->e); }
void sd_py_bell_give_back(struct sd_py_end *end) { sd_bell_give_back(&end->e); }
bool sd_py_bell_due(struct sd_py_end *end) { return sd_bell_due(&end->e); }
void sd_py_bell_eaten(struct sd_py_end *end) { sd_bell_eaten(&end->e); }

bool sd_py_bell_hear(struct sd_py_end *end)
{
    u32 more;

    return sd_bell_hear(&end->e, &more);
}

/* ---- time */

uint64_t sd_py_tsc(void) { return sd_tsc(); }

/* ---- the switch */

void sd_py_attached_say(struct sd_py_end *end) { sd_attached_say(end->seg, end->side); }
bool sd_py_attached_said(struct sd_py_end *end, uint32_t side) { return sd_attached_said(end->seg, side); }
void sd_py_sw_publish(struct sd_py_end *end, uint64_t tcp_pos) { sd_sw_publish(&end->e, tcp_pos); }
bool sd_py_sw_published(struct sd_py_end *end) { return sd_sw_published(&end->e); }
void sd_py_sw_arrive(struct sd_py_end *end) { sd_sw_arrive(&end->e); }
bool sd_py_back_announce(struct sd_py_end *end) { return sd_back_announce(&end->e); }
void sd_py_back_publish(struct sd_py_end *end, uint64_t tcp_pos) { sd_back_publish(&end->e, tcp_pos); }
bool sd_py_back_asked(struct sd_py_end *end) { return sd_back_asked(&end->e); }
bool sd_py_back_published(struct sd_py_end *end) { return sd_back_published(&end->e); }
bool sd_py_bells_over(struct sd_py_end *end) { return sd_bells_over(&end->e); }
bool sd_py_back_reached(struct sd_py_end *end) { return sd_back_reached(&end->e); }
uint64_t sd_py_back_left(struct sd_py_end *end, uint64_t tcp_pos) { return sd_back_left(&end->e, tcp_pos); }
void sd_py_hint_say(struct sd_py_end *end, uint32_t hint) { sd_hint_say(&end->e, hint); }
uint32_t sd_py_end_error(struct sd_py_end *end, uint32_t err) { return sd_end_error(&end->e, err); }

enum sd_py_step sd_py_sw_decide(struct sd_py_end *end, uint64_t tcp_pos, uint64_t *left)
{
    return (enum sd_py_step)sd_sw_decide(&end->e, tcp_pos, left);
}
