/* SPDX-License-Identifier: Apache-2.0
 *
 * copy.c - the monitor's part in one host's copy of a segment (sd_py.h). Labels: ring.c, bell.h, switch.h, sock/far.h.
 */
#include "ring/bell.h"
#include "ring/switch.h"
#include "sd_py.h"

static struct sd_dir *out_of(void *segment, u32 side) { return &((struct sd_seg *)segment)->dir[side & 1]; }
static struct sd_dir *into(void *segment, u32 side) { return &((struct sd_seg *)segment)->dir[!(side & 1)]; }

void sd_copy_init(void *segment, uint32_t side, uint64_t id0, uint64_t id1)
{
    struct sd_seg *seg = segment;

    store_rlx(&out_of(segment, side)->rx_armed, 0);
    store_rlx(&into(segment, side)->prod_fenced, 1); /* [W3] */
    seg->far_id[0] = id0;
    seg->far_id[1] = id1;
}

void sd_copy_read(void *segment, uint32_t side, struct sd_copy_words *w)
{
    struct sd_seg *seg = segment;
    struct sd_dir *out = out_of(segment, side), *in = into(segment, side);

    atomic_exchange(&out->bell, 0); /* [B1] whoever nudges from here on has news that we have not seen */
    w->settle_ask = load_acq(&seg->settle_ask);
    w->hint = load_acq(&out->prod_hint);
    w->go_back = load_acq(&in->go_back);
    w->attached = load_acq(&seg->attached[side & 1]);
    w->sw_ring = load_acq(&out->sw_ring); /* [S1] */
    w->heard = load_acq(&in->sw_ring) != 0;
    w->head = load_acq(&in->head);  /* [R2] */
    w->tail = load_acq(&out->tail); /* [R1] last: whatever is said above was said behind these bytes or before */
    w->base = load_acq(&out->base); /* [R3] */
}

void sd_copy_tell(void *segment, uint32_t side, const struct sd_copy_words *w)
{
    struct sd_seg *seg = segment;
    struct sd_dir *out = out_of(segment, side), *in = into(segment, side);

    if (w->attached)
        sd_attached_say(seg, !(side & 1)); /* [S3] */
    if (w->go_back)
        store_rel(&out->go_back, w->go_back);
    if (w->sw_ring)
        store_rel(&in->sw_ring, w->sw_ring); /* [S1] */
    if (w->heard)
        store_rel(&seg->heard, 1); /* [H3] */
    if (w->hint)
        atomic_fetch_or(&in->prod_hint, w->hint); /* [S4] */
}

/* [H4] False: `stop` stands, so the word is not ours to store. */
static bool move(struct sd_seg *seg, SD_ATOMIC u32 *stop, SD_ATOMIC u64 *word, u64 value)
{
    bool may;

    atomic_exchange(&seg->moving, 1);
    may = !load_acq(stop);
    if (may)
        store_rel(word, value); /* [R1] or [R2] */
    store_rel(&seg->moving, 0);
    sd_fence(); /* [W1] [W2] [W3] */
    return may;
}

bool sd_copy_land(void *segment, uint32_t side, uint64_t tail)
{
    struct sd_dir *in = into(segment, side);

    return move(segment, &((struct sd_seg *)segment)->frozen, &in->tail, tail) && load_rlx(&in->rx_armed) != 0;
}

bool sd_copy_credit(void *segment, uint32_t side, uint64_t head)
{
    struct sd_dir *out = out_of(segment, side);

    return move(segment, &((struct sd_seg *)segment)->pumped, &out->head, head) && load_rlx(&out->tx_armed) != 0;
}

void sd_copy_settle(void *segment, uint32_t answer) { store_rel(&((struct sd_seg *)segment)->settled, answer); } /* [H1] */
void sd_copy_told(void *segment) { store_rel(&((struct sd_seg *)segment)->told, 1); } /* [H3] */
void sd_copy_lose(void *segment) { store_rel(&((struct sd_seg *)segment)->lost, SD_REASON_link_lost); }
bool sd_copy_bell_take(void *segment, uint32_t side) { return sd_bell_take_of(into(segment, side)); } /* [B1] [B2] [B3] */

/* [B3] Who says that he has heard leaves it where it is. */
bool sd_copy_unheard(void *segment, uint32_t side)
{
    const struct sd_dir *in = into(segment, side);
    bool data = load_rlx(&in->rx_armed) && load_rlx(&in->tail) != load_rlx(&in->head);
    u32 bell = sd_bell_state(load_rlx(&in->bell));

    return bell != SD_BELL_NONE && bell != SD_BELL_HEARD && (data || load_rlx(&out_of(segment, side)->tx_armed));
}

void sd_copy_arm(void *segment, uint32_t side, bool data, bool room)
{
    store_rlx(&out_of(segment, side)->rx_armed, data);
    store_rlx(&into(segment, side)->tx_armed, room);
}

bool sd_copy_ring_enter(void *segment, uint32_t side, uint32_t who)
{
    struct sd_seg *seg = segment;
    struct sd_dir *out = out_of(segment, side);

    atomic_fetch_or(&seg->ringing, who); /* [H2] */
    return !(load_acq(&out->prod_hint) & SD_HINT_LEAVING) && load_acq(&out->sw_ring) && !load_acq(&out->sw_back) && !load_rlx(&seg->pumped);
}

void sd_copy_ring_leave(void *segment, uint32_t who) { atomic_fetch_and(&((struct sd_seg *)segment)->ringing, ~who); }

void sd_copy_hold(void *segment)
{
    sd_copy_ring_leave(segment, SD_RINGING_MONITOR);
    store_rel(&((struct sd_seg *)segment)->direct, 0);
}
