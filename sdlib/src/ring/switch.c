/* SPDX-License-Identifier: Apache-2.0
 *
 * switch.c - the decisions of the switch (switch.h). Every word of the peer is loaded once and checked or compared, never trusted twice.
 */
#include <linux/errno.h>
#include "ring/cork.h"
#include "ring/switch.h"

void sd_sw_publish(const struct sd_end *e, u64 tcp_pos)
{
    store_rel(&e->tx->sw_ring, tcp_pos + 1); /* [S1] */
}

enum sd_sw sd_sw_decide(const struct sd_end *e, u64 tcp_pos, u64 *left)
{
    u64 sw = load_acq(&e->rx->sw_ring); /* [S1] */

    if (!sw)
        return SD_SW_TCP;
    if (tcp_pos < sw - 1) {
        *left = sw - 1 - tcp_pos;
        return SD_SW_DRAIN;
    }
    return tcp_pos == sw - 1 ? SD_SW_RING : SD_SW_BROKEN;
}

bool sd_back_announce(const struct sd_end *e)
{
    sd_hint_say(e, SD_HINT_LEAVING);            /* [S4] a locked instruction: no fence needed */
    return load_rlx(&e->rx->tx_armed) != 0;
}

void sd_back_publish(const struct sd_end *e, u64 tcp_pos)
{
    store_rlx(&e->tx->sw_back_at, load_rlx(&e->tx->tail));
    store_rel(&e->tx->sw_back, tcp_pos + 1); /* [S2] */
}

bool sd_recall_claim(struct sd_dir *tx, u64 ring_bytes, u64 *n, bool *unread)
{
    u32 asked = load_rlx(&tx->go_back);

    *unread = asked == SD_GO_BACK_UNREAD;
    sd_cork_uncover(tx, ring_bytes, ring_bytes);
    *n = load_rlx(&tx->tail) - load_acq(&tx->head); /* [R2] */
    return *n <= ring_bytes && (asked == SD_GO_BACK_RESEND || *unread) && cas_u32(&tx->go_back, asked, SD_GO_BACK_TAKEN); /* [S5] [S6] */
}

i64 sd_recall_rung(const struct sd_dir *tx, u64 n, u64 tcp_pos)
{
    u64 behind = tcp_pos - (load_rlx(&tx->sw_ring) - 1);

    if (!behind)
        return 0;
    return behind == 1 && n && load_rlx(&tx->bell_first) ? 1 : -1;
}

/* Before the consumer arrives its head stands still, and what is in the ring stays there. */
u8 sd_bell_byte(const struct sd_end *e)
{
    u64 head = load_rlx(&e->tx->head);

    if (likely(load_rlx(&e->tx->arrived)) || load_acq(&e->tx->tail) == head)
        return 0;
    store_rlx(&e->tx->bell_first, 1);
    return e->tx_ring[(head - load_rlx(&e->tx->base)) & (e->bytes - 1)];
}

void sd_recall_sent(struct sd_dir *tx)
{
    store_rlx(&tx->held, load_rlx(&tx->head));
    store_rel(&tx->tail, load_rlx(&tx->head)); /* [S5] before sw_back_at and sw_back, which say that the ring ends there */
}

u64 sd_back_left(const struct sd_end *e, u64 tcp_pos)
{
    u64 resume = load_rlx(&e->rx->sw_back) - 1; /* sd_back_reached() has seen it [S2] */

    return resume > tcp_pos ? resume - tcp_pos : 0;
}

u32 sd_end_error(const struct sd_end *e, u32 err)
{
    u32 hint = load_rlx(&e->rx->prod_hint);
    bool unread = load_rlx(&e->tx->tail) != load_acq(&e->tx->head);

    /* The peer's kernel resets when doorbells were unread: not a reset that the program may see. It would see one if its peer had
     * closed with bytes unread, which are in our ring, or by TCP if the peer had not read up to the ring yet. */
    if (err == ECONNRESET && !unread && load_rlx(&e->tx->arrived) && !(hint & SD_HINT_ABORT))
        return 0;
    if (!err && unread && !(hint & SD_HINT_SHUT_WR))
        return ECONNRESET;
    return err;
}
