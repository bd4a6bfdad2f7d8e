/* SPDX-License-Identifier: Apache-2.0
 *
 * dates.c - messages get a date, and it is found again (dates.h).
 */
#include "ring/dates.h"

#define PLACE ((1ull << SD_DATE_PLACE) - 1)
#define TIME (~0ull >> SD_DATE_PLACE)

/* Nobody has begun to read the message that came then, as far as `head` tells. */
static bool unread(u64 date, u64 head, u64 at)
{
    return date && ((date - head) & PLACE) <= ((at - head) & PLACE);
}

void sd_tx_date(struct sd_end *e, u64 at)
{
    _Atomic u64 *date = &e->tx->date[e->tx_dates % SD_DATES];
    u64 was = load_rlx(date);

    if (unread(was, e->tx_dates_head, at) && unread(was, e->tx_dates_head = load_rlx(&e->tx->head), at))
        return;
    store_rlx(date, (sd_tsc() >> SD_DATE_TICKS) << SD_DATE_PLACE | (at & PLACE)); /* [O1] */
    e->tx_dates++;
}

u64 sd_rx_came(const struct sd_end *e, u64 at, u64 now)
{
    u64 ago = TIME;

    for (u32 i = 0; i < SD_DATES; i++) {
        u64 date = load_rlx(&e->rx->date[i]), time = date >> SD_DATE_PLACE; /* [O1] */
        if (time && !((at - date) & PLACE))
            ago = min_u64(ago, ((now >> SD_DATE_TICKS) - time) & TIME);
    }
    if (ago == TIME)
        return 0;
    return ago <= TIME / 2 ? ((now >> SD_DATE_TICKS) - ago) << SD_DATE_TICKS : now; /* else the clocks of two CPUs differ by a little */
}
