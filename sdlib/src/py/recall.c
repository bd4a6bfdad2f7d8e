/* SPDX-License-Identifier: Apache-2.0
 *
 * recall.c - the producer's part of [S5] and [S6] (ring/switch.h), done by its supervisor while all its threads stand still.
 */
#include "ring/bell.h"
#include "ring/cork.h"
#include "ring/switch.h"
#include "sd_py.h"

static struct sd_dir *tx_of(void *segment, u32 side) { return &((struct sd_seg *)segment)->dir[side & 1]; }

bool sd_recall_begin(void *segment, uint32_t side, struct sd_recalled *r)
{
    struct sd_dir *tx = tx_of(segment, side), *rx = tx_of(segment, !(side & 1));
    i64 rung;
    bool unread;

    if (!sd_recall_claim(tx, r->ring_bytes, &r->bytes, &unread))
        return false;
    rung = unread ? sd_recall_rung(tx, r->bytes, r->tcp_pos) : 0;
    r->broken = rung < 0;
    r->bytes -= rung > 0;
    r->at = (load_rlx(&tx->head) - load_rlx(&tx->base) + (rung > 0)) & (r->ring_bytes - 1);
    atomic_fetch_or(&tx->prod_hint, SD_HINT_LEAVING);                                 /* [S4] */
    r->ring = !unread && load_rlx(&rx->tx_armed) && sd_bell_take_of(tx); /* it waits for room: the last bell */
    return true;
}

void sd_back_begin(void *segment, uint32_t side, struct sd_recalled *r)
{
    struct sd_dir *tx = tx_of(segment, side);

    if (sd_recall_begin(segment, side, r))
        return;
    r->bytes = 0; /* the peer reads the ring to its end */
    atomic_fetch_or(&tx->prod_hint, SD_HINT_LEAVING);
    r->ring = sd_bell_take_of(tx); /* whether it waits for room or for bytes, it shall hear of it */
}

void sd_back_end(void *segment, uint32_t side, uint64_t tcp_pos)
{
    struct sd_dir *tx = tx_of(segment, side);

    store_rlx(&tx->sw_back_at, load_rlx(&tx->tail));
    store_rel(&tx->sw_back, tcp_pos + 1); /* [S2] */
}

bool sd_recall_drop(void *segment, uint32_t side)
{
    _Atomic u32 *asked = &tx_of(segment, !(side & 1))->go_back;

    return cas_u32(asked, SD_GO_BACK_RESEND, SD_GO_BACK_CALL) || cas_u32(asked, SD_GO_BACK_UNREAD, SD_GO_BACK_CALL);
}

/* The consumer's part where the producer puts nothing there any more, held back bytes neither: head is ours to move. */
bool sd_left_begin(void *segment, uint32_t side, struct sd_recalled *r)
{
    struct sd_dir *rx = tx_of(segment, !(side & 1));

    sd_cork_uncover(rx, r->ring_bytes, r->ring_bytes);
    r->bytes = load_acq(&rx->tail) - load_rlx(&rx->head); /* [R1] */
    r->at = (load_rlx(&rx->head) - load_rlx(&rx->base)) & (r->ring_bytes - 1);
    return r->bytes <= r->ring_bytes;
}

void sd_left_end(void *segment, uint32_t side)
{
    struct sd_dir *rx = tx_of(segment, !(side & 1));

    store_rel(&rx->head, load_rlx(&rx->tail));
}

uint32_t sd_left_error(void *segment, uint32_t side, uint32_t err)
{
    struct sd_end e = {.tx = tx_of(segment, side), .rx = tx_of(segment, !(side & 1))};

    return sd_end_error(&e, err);
}

void sd_recall_end(void *segment, uint32_t side, uint64_t tcp_pos)
{
    struct sd_dir *tx = tx_of(segment, side);

    sd_recall_sent(tx);
    store_rlx(&tx->sw_back_at, load_rlx(&tx->tail));
    store_rel(&tx->sw_back, tcp_pos + 1); /* [S2] */
}
